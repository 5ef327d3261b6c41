"""Plays a bag through the perception node, once the node is ready, and ends with the bag.

    ros2 launch dino_perception replay.launch.py                  (the sample drive that comes with the package)
    ros2 launch dino_perception replay.launch.py bag:=my_drive image:=/front/image_raw rate:=0.5 loop:=true

Takes every argument of rover.launch.py, too. The bag is played by `ros2 bag play` where that is installed, by
`dino-perception play` elsewhere.
"""

import importlib.util
import sys
from pathlib import Path

import yaml
from ament_index_python.packages import get_package_prefix, get_package_share_directory
from launch.actions import (
    DeclareLaunchArgument,
    EmitEvent,
    ExecuteProcess,
    IncludeLaunchDescription,
    OpaqueFunction,
    RegisterEventHandler,
)
from launch.event_handlers import OnProcessExit
from launch.events import Shutdown
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration
from launch_ros.event_handlers import OnStateTransition

from dino_perception.ros.large_messages import large_message_profile
from launch import LaunchDescription

SHARE = Path(get_package_share_directory("dino_perception"))
IMAGES = {"sensor_msgs/msg/Image": "raw", "sensor_msgs/msg/CompressedImage": "compressed"}

ARGUMENTS = {
    "bag": (str(SHARE / "data" / "sample_drive"), "the bag: a folder, .mcap or .db3"),
    "rate": ("1.0", "how many times as fast as recorded"),
    "loop": ("false", "start over at the end"),
    "image": ("", "topic of the camera's images; empty: the bag's first one"),
    "image_transport": ("", "raw or compressed; empty: as the bag is played"),
}


def generate_launch_description():
    arguments = [
        DeclareLaunchArgument(name, default_value=default, description=description)
        for name, (default, description) in ARGUMENTS.items()
    ]
    return LaunchDescription([*arguments, OpaqueFunction(function=replay)])


def replay(context):
    given = {name: LaunchConfiguration(name).perform(context) for name in ARGUMENTS}
    if not Path(given["bag"]).exists():
        raise RuntimeError(f"there is no bag {given['bag']}")
    with_rosbag2 = importlib.util.find_spec("ros2bag") is not None
    topic, transport = image_topic(Path(given["bag"]), given["image"])
    player = ExecuteProcess(
        cmd=play_command(given, with_rosbag2), additional_env=large_message_profile(), output="screen"
    )
    node = IncludeLaunchDescription(
        PythonLaunchDescriptionSource(str(SHARE / "launch" / "rover.launch.py")),
        launch_arguments={
            "use_sim_time": "true",
            "image": topic,
            # dino-perception plays compressed images raw; ros2 bag plays them as they are.
            "image_transport": given["image_transport"] or (transport if with_rosbag2 else "raw"),
        }.items(),
    )
    return [
        RegisterEventHandler(OnStateTransition(goal_state="active", entities=[player])),
        RegisterEventHandler(OnProcessExit(target_action=player, on_exit=end)),
        node,
    ]


def end(event, context):
    """Ends the launch with the bag, unless it is ending already."""
    return None if context.is_shutdown else EmitEvent(event=Shutdown(reason="the bag has ended"))


def play_command(given, with_rosbag2):
    loop = ["--loop"] if given["loop"].lower() in ("true", "1") else []
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
