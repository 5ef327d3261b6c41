"""Plays a bag through the perception node, once the node listens, and ends with the bag.

    ros2 launch dino_perception replay.launch.py                  (the sample drive that comes with the package)
    ros2 launch dino_perception replay.launch.py bag:=my_drive image:=/front/image_raw rate:=0.5 loop:=true

Takes every argument of rover.launch.py, too. The bag is played by `ros2 bag play` where that is installed, by
`dino-perception play` elsewhere.
"""

import importlib.util
import runpy
import sys
from pathlib import Path

import yaml
from ament_index_python.packages import get_package_prefix, get_package_share_directory
from launch.actions import (
    DeclareLaunchArgument,
    EmitEvent,
    ExecuteProcess,
    IncludeLaunchDescription,
    LogInfo,
    OpaqueFunction,
    RegisterEventHandler,
    TimerAction,
)
from launch.event_handlers import OnProcessExit
from launch.events import Shutdown
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration
from launch_ros.ros_adapters import get_ros_node
from rclpy.node import NodeNameNonExistentError

from dino_perception.ros.large_messages import large_message_profile
from dino_perception.ros.launch_arguments import full_name, misspelt, names_given, on_command_line, truth
from launch import LaunchDescription

SHARE = Path(get_package_share_directory("dino_perception"))
ROVER = SHARE / "launch" / "rover.launch.py"
IMAGES = {"sensor_msgs/msg/Image": "raw", "sensor_msgs/msg/CompressedImage": "compressed"}
LOOK_S, SAY_S = 0.2, 10.0
"""How often it is looked whether the node listens, and how often it is said that it does not."""

ARGUMENTS = {
    "bag": (str(SHARE / "data" / "sample_drive"), "the bag: a folder, .mcap or .db3"),
    "rate": ("1.0", "how many times as fast as recorded"),
    "loop": ("false", "start over at the end"),
    **runpy.run_path(str(ROVER))["ARGUMENTS"],
    "image": ("", "topic of the camera's images; empty: the bag's first one"),
    "image_transport": ("", "raw or compressed; empty: as the bag is played"),
    "use_sim_time": ("true", "take the time from /clock, which the bag brings"),
}


def generate_launch_description():
    arguments = [
        DeclareLaunchArgument(name, default_value=default, description=description)
        for name, (default, description) in ARGUMENTS.items()
    ]
    return LaunchDescription([*arguments, OpaqueFunction(function=replay)])


def replay(context):
    if on_command_line("replay.launch.py"):
        for sentence in misspelt(names_given(context.argv), ARGUMENTS, certain=True):
            raise RuntimeError(sentence)
    given = {name: LaunchConfiguration(name).perform(context) for name in ARGUMENTS}
    if not Path(given["bag"]).exists():
        raise RuntimeError(f"there is no bag {given['bag']}")
    with_rosbag2 = importlib.util.find_spec("ros2bag") is not None
    topic, transport = image_topic(Path(given["bag"]), given["image"])
    player = ExecuteProcess(
        cmd=play_command(given, with_rosbag2), additional_env=large_message_profile(), output="screen"
    )
    rover = IncludeLaunchDescription(
        PythonLaunchDescriptionSource(str(ROVER)),
        launch_arguments={
            "use_sim_time": given["use_sim_time"],
            "image": topic,
            # dino-perception plays compressed images raw; ros2 bag plays them as they are.
            "image_transport": given["image_transport"] or (transport if with_rosbag2 else "raw"),
        }.items(),
    )
    node = full_name(context.launch_configurations.get("ros_namespace", ""), given["namespace"], given["name"])
    return [
        RegisterEventHandler(OnProcessExit(target_action=player, on_exit=end)),
        rover,
        *play_once_heard(player, node),
    ]


def play_once_heard(player, node, waited=0.0):
    """Looks again and again whether the node subscribes to images, which it does as long as it is active, and then
    starts the player, once. No event is waited for: one may pass before anybody hears it, or come a second time."""

    def look(context):
        if context.is_shutdown:
            return []
        if listens(get_ros_node(context), node):
            return [player]
        due = round(waited / LOOK_S) % round(SAY_S / LOOK_S) == 0 and waited > 0
        waiting = LogInfo(msg=f"the bag waits for {node} to be active; it may be building its engines")
        return [*([waiting] if due else []), *play_once_heard(player, node, waited + LOOK_S)]

    return [TimerAction(period=LOOK_S, actions=[OpaqueFunction(function=look)])]


def listens(observer, node):
    """Whether a node of this full name subscribes to images."""
    namespace, _, name = node.rpartition("/")
    try:
        topics = observer.get_subscriber_names_and_types_by_node(name, namespace or "/")
    except NodeNameNonExistentError:  # not there yet, or between death and respawn
        return False
    return any(kind in IMAGES for _, kinds in topics for kind in kinds)


def end(event, context):
    """Ends the launch with the bag, unless it is ending already. Raises RuntimeError when the player has failed."""
    if context.is_shutdown:
        return None
    if event.returncode:
        raise RuntimeError(f"the bag's player has ended with exit code {event.returncode}; its last lines say why")
    return EmitEvent(event=Shutdown(reason="the bag has ended"))


def play_command(given, with_rosbag2):
    try:
        if not 0 < float(given["rate"]) < float("inf"):
            raise ValueError
    except ValueError:
        raise RuntimeError(f"'rate' is '{given['rate']}'; accepted is a number above 0") from None
    loop = ["--loop"] if truth("loop", given) else []
    if with_rosbag2:
        return ["ros2", "bag", "play", given["bag"], "--clock", "100", "--rate", given["rate"], *loop]
    command = Path(get_package_prefix("dino_perception"), "lib", "dino_perception", "dino-perception")
    return [sys.executable, str(command), "play", given["bag"], "--rate", given["rate"], *loop]


def image_topic(bag, wanted):
    """The images' name, without /compressed, and transport: the topic asked for, or else the first one that is no
    ground truth, as the bag's metadata lists them."""
    try:
        listed = yaml.safe_load((bag / "metadata.yaml").read_text())["rosbag2_bagfile_information"][
            "topics_with_message_count"
        ]
        topics = sorted((entry["topic_metadata"]["name"], entry["topic_metadata"]["type"]) for entry in listed)
    except (OSError, yaml.YAMLError, KeyError, TypeError):
        topics = []  # a bare .mcap or .db3 says it only inside
    for name, kind in topics:
        base = name.removesuffix("/compressed")
        if kind in IMAGES and (base == wanted if wanted else not name.startswith("/ground_truth/")):
            return base, IMAGES[kind]
    return wanted or "/camera/image_raw", "raw"
