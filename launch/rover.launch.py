"""The perception node for one camera or several.

    ros2 launch dino_perception rover.launch.py image:=/camera/image_raw
    ros2 launch dino_perception rover.launch.py cameras:=my_cameras.yaml     (see config/cameras.yaml)

`ros2 launch dino_perception rover.launch.py --show-args` tells of every argument.
"""

from pathlib import Path

import launch.logging
import yaml
from ament_index_python.packages import get_package_share_directory
from launch.actions import DeclareLaunchArgument, OpaqueFunction, RegisterEventHandler
from launch.event_handlers import OnProcessExit
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import LifecycleNode

from dino_perception.ros.large_messages import large_message_profile
from dino_perception.ros.launch_arguments import full_name, logger_name, misspelt, names_given, on_command_line, truth
from dino_perception.ros.parameter_files import check_parameter_file
from launch import LaunchDescription

SHARE = Path(get_package_share_directory("dino_perception"))
LEVELS = ("debug", "info", "warn", "error", "fatal")

ARGUMENTS = {
    "namespace": ("", "namespace of the node and of relative topic names"),
    "name": ("dino_perception", "name of the node; its outputs are <namespace>/<name>/..."),
    "params_file": (str(SHARE / "config" / "rover.yaml"), "parameter file; arguments given here win over it"),
    "preset": (
        "",
        "outdoor, indoor, street, ...: a ready configuration of config/presets, or a file; wins over the parameter file",
    ),
    "image": ("image", "topic of the camera's images; camera_info is looked for beside it"),
    "camera_info": ("", "topic of the camera's CameraInfo, where it is not beside the images"),
    "cameras": ("", "YAML file that names several cameras and their topics, instead of image and camera_info"),
    "image_transport": ("", "raw or compressed; empty: as the parameter file says"),
    "backbone": ("", "backbone id; empty: as the parameter file says"),
    "weights": ("", "backbone weights, a file or folder; empty: as the parameter file says"),
    "engine": ("", "auto, tensorrt, cuda, openvino or torch; empty: as the parameter file says"),
    "use_sim_time": ("false", "take the time from /clock"),
    "autostart": ("true", "configure and activate at start; false: wait for a lifecycle manager"),
    "exit_on_failure": ("", "end when configuring fails; empty: with autostart, without a lifecycle manager"),
    "log_level": ("info", "debug, info, warn, error or fatal"),
    "respawn": ("false", "start the node again when it dies"),
}


def generate_launch_description():
    arguments = [
        DeclareLaunchArgument(name, default_value=default, description=description)
        for name, (default, description) in ARGUMENTS.items()
    ]
    return LaunchDescription([*arguments, OpaqueFunction(function=perception_node)])


def perception_node(context):
    check_names(context)
    given = {name: LaunchConfiguration(name).perform(context) for name in ARGUMENTS}
    if given["log_level"].lower() not in LEVELS:
        raise RuntimeError(f"'log_level' is '{given['log_level']}'; accepted are {', '.join(LEVELS)}")
    node = full_name(context.launch_configurations.get("ros_namespace", ""), given["namespace"], given["name"])
    check_parameter_file(given["params_file"], node)
    overrides = {name: given[name] for name in ("image_transport", "backbone", "weights", "engine") if given[name]}
    overrides["use_sim_time"] = truth("use_sim_time", given)
    overrides["autostart"] = truth("autostart", given)
    overrides["exit_on_failure"] = truth("exit_on_failure" if given["exit_on_failure"] else "autostart", given)
    if given["cameras"]:
        names, remappings = several_cameras(given["cameras"])
        overrides["cameras"] = names
    else:
        remappings = topics_of("", given)
    respawn = truth("respawn", given)
    process = LifecycleNode(
        package="dino_perception",
        executable="perception_node",
        name=given["name"],
        namespace=given["namespace"],
        parameters=[given["params_file"], *preset(given["preset"], node), overrides],  # the later one wins
        remappings=remappings,
        arguments=["--ros-args", "--log-level", f"{logger_name(node)}:={given['log_level']}"],
        additional_env=large_message_profile(),  # Fast DDS loses big messages without
        respawn=respawn,
        respawn_delay=1.0,
        output="screen",
        emulate_tty=True,
    )
    if respawn or not on_command_line("rover.launch.py", "replay.launch.py"):
        return [process]
    return [process, RegisterEventHandler(OnProcessExit(target_action=process, on_exit=ended))]


def check_names(context):
    """Refuses misspelt arguments of the command line. Among those that another launch file hands on there may be any
    of its own, so that one which looks misspelt is only pointed out."""
    if on_command_line("rover.launch.py"):
        for sentence in misspelt(names_given(context.argv), ARGUMENTS, certain=True):
            raise RuntimeError(sentence)
    elif not on_command_line("replay.launch.py"):
        for sentence in misspelt(context.launch_configurations, ARGUMENTS, certain=False):
            launch.logging.get_logger("rover.launch.py").warning(sentence)


def ended(event, context):
    """With its only node gone, the launch fails, so that what has started it sees a code other than 0."""
    if event.returncode > 0 and not context.is_shutdown:
        raise RuntimeError(f"the perception node has ended with exit code {event.returncode}; its last lines say why")


def preset(name, node):
    """The parameter file of a preset, if one was asked for: by name, or a file of one's own."""
    path = SHARE / "config" / "presets" / f"{name}.yaml"
    if name.endswith((".yaml", ".yml")):
        check_parameter_file(name, node)
        return [name]
    if name and not path.is_file():
        known = ", ".join(sorted(p.stem for p in path.parent.glob("*.yaml")))
        raise RuntimeError(f"there is no preset '{name}'; the presets are {known}")
    return [str(path)] if name else []


def topics_of(prefix, topics):
    """The remappings of one camera from a mapping with `image` and perhaps `camera_info`."""
    unknown = set(topics) - {"image", "camera_info"} if prefix else ()
    if unknown:
        raise RuntimeError(f"camera '{prefix[:-1]}' has '{sorted(unknown)[0]}'; accepted are image and camera_info")
    return [
        (prefix + name, topics[name])
        for name in ("image", "camera_info")
        if topics.get(name) not in (None, "", prefix + name)
    ]


def several_cameras(path):
    """Names and remappings from a file that says `cameras: {front: {image: ..., camera_info: ...}, ...}`."""
    try:
        cameras = yaml.safe_load(Path(path).read_text())["cameras"]
        remappings = [pair for name, topics in cameras.items() for pair in topics_of(f"{name}/", dict(topics or {}))]
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise RuntimeError(f"{path} is no list of cameras ({error}); config/cameras.yaml shows how one looks") from None
    return list(cameras), remappings
