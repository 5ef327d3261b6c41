"""One package in three guises: the ROS package, the Python package that pip installs, and what colcon has installed."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

import dino_perception

ROOT = Path(__file__).resolve().parents[2]


def manifest() -> ElementTree.Element:
    return ElementTree.parse(ROOT / "package.xml").getroot()


def test_every_file_states_the_same_version():
    setup = re.search(r'version="([^"]+)"', (ROOT / "setup.py").read_text()).group(1)
    assert manifest().findtext("version") == setup == dino_perception.__version__


def test_the_manifest_is_what_catkin_and_rosdep_accept():
    catkin_pkg = pytest.importorskip("catkin_pkg.package")
    package = catkin_pkg.parse_package(str(ROOT / "package.xml"))
    package.validate()
    assert package.get_build_type() == "ament_cmake"


def test_every_ros_package_that_is_imported_is_a_dependency():
    imported = set()
    for path in [*(ROOT / "dino_perception").rglob("*.py"), *(ROOT / "launch").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            names = (
                [alias.name for alias in node.names]
                if isinstance(node, ast.Import)
                else [node.module]
                if isinstance(node, ast.ImportFrom) and node.module and not node.level
                else []
            )
            imported |= {name.split(".")[0] for name in names}
    ros = {
        name
        for name in imported
        if name.endswith(("_msgs", "_srvs", "_interfaces", "_python")) or name in ("rclpy", "launch", "launch_ros")
    }
    declared = {e.text for tag in ("depend", "exec_depend") for e in manifest().iter(tag)}
    optional = {"ament_index_python"} & declared
    assert ros - optional <= declared


@pytest.mark.parametrize(
    "room", ["models", "engines", "perception", "messages", "bags", "training", "measuring", "cli"]
)
def test_only_the_live_room_imports_rclpy(room):
    """Directly: cli runs nodes through dino_perception.ros, when it is asked to."""
    for path in (ROOT / "dino_perception" / room).rglob("*.py"):
        for node in ast.parse(
            path.read_text()
        ).body:  # what is imported inside a function is imported when it is needed
            names = (
                [alias.name for alias in node.names]
                if isinstance(node, ast.Import)
                else [node.module or ""]
                if isinstance(node, ast.ImportFrom)
                else []
            )
            assert not any(name.split(".")[0] == "rclpy" for name in names), path


def test_imports_point_one_way():
    order = {
        "models": set(),
        "canopy": set(),
        "engines": {"models"},
        "perception": {"models", "engines"},
        "messages": {"models", "engines", "perception"},
        "bags": {"models", "engines", "perception", "messages"},
        "ros": {"models", "engines", "perception", "messages"},
        "training": {"models", "engines", "perception", "messages", "bags"},  # bags: a recording is a dataset
        "measuring": {"models", "engines", "perception", "messages", "bags", "ros", "training"},
        "cli": {"models", "engines", "perception", "messages", "bags", "ros", "training", "measuring", "canopy"},
    }
    for room, allowed in order.items():
        for path in (ROOT / "dino_perception" / room).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("dino_perception."):
                    target = node.module.split(".")[1]
                    assert target in allowed | {
                        room,
                        "child_processes",
                        "missing_packages",
                        "process_memory",
                        "results",
                        "share",
                    }, f"{path.relative_to(ROOT)} imports {node.module}"


def test_the_code_is_formatted_and_has_no_lint():
    ruff = [sys.executable, "-m", "ruff"]
    for command in (["check", "--quiet"], ["format", "--check", "--quiet"]):
        done = subprocess.run([*ruff, *command, "--no-cache", "."], capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 0, done.stdout + done.stderr


def test_the_command_line_answers_help_without_loading_torch():
    code = (
        "import sys\nfrom dino_perception.cli.__main__ import main\n"
        "try:\n main(['--help'])\nexcept SystemExit as end:\n assert end.code == 0\n"
        "assert not {'torch', 'rclpy', 'openvino', 'matplotlib'} & set(sys.modules), 'heavy'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "demo" in done.stdout and "play" in done.stdout


def test_what_colcon_installed_is_whole():
    index = pytest.importorskip("ament_index_python.packages")
    try:
        prefix = Path(index.get_package_prefix("dino_perception"))
    except index.PackageNotFoundError:
        pytest.skip("the package is not built by colcon here")
    share = prefix / "share" / "dino_perception"
    for path in (
        "package.xml",
        "config/rover.yaml",
        "config/fastdds/large_images.xml",
        "launch/rover.launch.py",
        "launch/replay.launch.py",
        "msg/Correspondences.msg",
    ):
        assert (share / path).is_file(), path
    (module,) = prefix.glob("lib/python3*/*-packages/dino_perception")
    sources = {
        p.relative_to(ROOT / "dino_perception")
        for p in (ROOT / "dino_perception").rglob("*")
        if p.is_file() and "__pycache__" not in p.parts
    }
    assert sources <= {p.relative_to(module) for p in module.rglob("*") if p.is_file()}
    assert "__version__" in (module / "__init__.py").read_text()  # ours, not the empty one that rosidl generates
    for executable in ("perception_node", "dino-perception"):
        assert (prefix / "lib" / "dino_perception" / executable).stat().st_mode & 0o111, executable


def test_the_message_has_the_fields_of_the_contract():
    msg = pytest.importorskip("dino_perception.msg")
    assert msg.Correspondences.get_fields_and_field_types() == {
        "header": "std_msgs/Header",
        "reference_header": "std_msgs/Header",
        "width": "uint32",
        "height": "uint32",
        "track_id": "sequence<uint64>",
        **{name: "sequence<float>" for name in ("x", "y", "reference_x", "reference_y", "score")},
    }


@pytest.mark.parametrize("name", ["tf2_msgs/msg/TFMessage", "vision_msgs/msg/LabelInfo", "vision_msgs/msg/VisionClass"])
def test_interfaces_made_for_a_bare_machine_are_the_real_ones_on_the_wire(name):
    """By their type hashes (REP 2016), by which a ROS 2 installation recognises a type. rosbags knows tf2_msgs itself,
    and vision_msgs by its fields."""
    from dino_perception.messages.types import RosbagsTypes

    index = pytest.importorskip("ament_index_python.packages")
    package, _, leaf = name.split("/")
    try:
        description = Path(index.get_package_share_directory(package), "msg", f"{leaf}.json")
    except index.PackageNotFoundError:
        pytest.skip(f"{package} is not installed")
    if not description.exists():
        pytest.skip("this ROS 2 distribution has no type hashes")
    hashes = {entry["type_name"]: entry["hash_string"] for entry in json.loads(description.read_text())["type_hashes"]}
    assert hashes[name] == RosbagsTypes().typestore.hash_rihs01(name)


def test_every_requirement_is_pinned_exactly():
    for path in (ROOT / "requirements").glob("*.txt"):
        for line in path.read_text().splitlines():
            text = line.split("#")[0].strip()
            assert not text or re.fullmatch(r"[\w.\-]+(\[\w+\])?==[\w.]+", text), f"{path.name}: {line}"
