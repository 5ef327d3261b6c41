"""What this machine has for the package to run on: one finding a thing, with what to do where something is amiss.

Nothing here starts an engine or a node; `engine_trial` does. A check that raises is itself a finding, so that one
broken installation never hides the rest.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

OK, ABSENT, WRONG = "ok", "absent", "wrong"
"""A thing is there; it is not there and need not be; it is needed or half there, and `advice` says what to do."""


@dataclass(frozen=True)
class InventoryLine:
    """One thing about the machine: what it is, what was found, its level, and what to do about it."""

    name: str
    found: str
    level: str = OK
    advice: str = ""


def inventory() -> list[InventoryLine]:
    """Every finding, in the order in which a person reads them. Takes a second or two (it imports torch and rclpy)."""
    return [finding for check in CHECKS for finding in _all_of(check)]


def _all_of(check: Callable[[], Iterator[InventoryLine]]) -> Iterator[InventoryLine]:
    name = check.__name__.strip("_").replace("_", " ")
    try:
        yield from check()
    except Exception as error:  # a library that is there and broken may raise anything
        yield InventoryLine(name, f"cannot be asked: {type(error).__name__}: {_first_line(error)}", WRONG)


def _python() -> Iterator[InventoryLine]:
    version = platform.python_version()
    old = sys.version_info < (3, 10)
    yield InventoryLine(
        "Python",
        f"{version} on {platform.system()} {platform.machine()}",
        WRONG if old else OK,
        "Python 3.10 or newer is needed" if old else "",
    )


def _processor() -> Iterator[InventoryLine]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield InventoryLine("processor", f"{_cpu_name()}, {cores} cores for this process, {_memory_gb():.0f} GB of memory")


def _libraries() -> Iterator[InventoryLine]:
    for name, package, needed in LIBRARIES:
        found = version(package)
        if found is None and importlib.util.find_spec(name):
            found = str(getattr(importlib.import_module(name), "__version__", "of unknown version"))
        if found:
            yield InventoryLine(package, found)
        else:
            yield InventoryLine(package, "not installed", WRONG if needed else ABSENT, f"pip install {package}")


def _torch() -> Iterator[InventoryLine]:
    if importlib.util.find_spec("torch") is None:
        yield InventoryLine("torch", "not installed", WRONG, "pip install torch")
        return
    import torch

    yield InventoryLine(
        "torch", f"{torch.__version__}, {'CUDA ' + torch.version.cuda if torch.version.cuda else 'no CUDA'}"
    )
    board = _first_line_of("/etc/nv_tegra_release")
    driver = _first_line_of("/proc/driver/nvidia/version") or board
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            about = torch.cuda.get_device_properties(index)
            yield InventoryLine(
                f"GPU {index}",
                f"{about.name}, compute capability {about.major}.{about.minor}, {about.total_memory / 2**30:.0f} GiB",
            )
        triton = version("triton")
        yield InventoryLine(
            "triton",
            triton or "not installed",
            OK if triton else ABSENT,
            "" if triton else "without it the engine 'cuda' runs its graphs uncompiled",
        )
    elif driver:
        why = "this torch was built without CUDA" if not torch.version.cuda else "torch finds no GPU behind it"
        yield InventoryLine(
            "GPU", f"a driver is there, but {why}", WRONG, "install the torch build that fits the driver"
        )
    else:
        yield InventoryLine("GPU", "no NVIDIA driver", ABSENT, "the engines of a CPU run instead")
    if driver:
        yield InventoryLine("driver", driver)


def _tensorrt() -> Iterator[InventoryLine]:
    for package, names in FLAVOURS.items():
        found = next(((name, version(name)) for name in names if version(name)), None)
        there = importlib.util.find_spec(package) is not None
        if found:
            yield InventoryLine(package, f"{found[1]} ({found[0]})" if found[0] != package else found[1])
        elif there:
            yield InventoryLine(package, "importable, without the metadata of a package")
        else:
            yield InventoryLine(package, "not installed", ABSENT)
    if version("torch-tensorrt") and version("torch-tensorrt-rtx"):
        yield InventoryLine(
            "torch_tensorrt",
            "torch-tensorrt and torch-tensorrt-rtx are both installed, under one import name",
            WRONG,
            "pip uninstall one of them",
        )


def _ros() -> Iterator[InventoryLine]:
    distribution = os.environ.get("ROS_DISTRO", "")
    if importlib.util.find_spec("rclpy") is None:
        advice = "source /opt/ros/<distribution>/setup.bash; replay, training and measuring need no ROS"
        yield InventoryLine("ROS 2", "rclpy is not importable", WRONG if distribution else ABSENT, advice)
        return
    import rclpy

    source = Path(rclpy.__file__).parents[1]
    yield InventoryLine(
        "ROS 2", f"{distribution or 'no ROS_DISTRO set'}, rclpy {version('rclpy') or ''} in {source}".strip()
    )
    from rclpy.utilities import get_rmw_implementation_identifier

    middleware = get_rmw_implementation_identifier()
    yield InventoryLine("middleware", f"{middleware}, domain {os.environ.get('ROS_DOMAIN_ID', '0 (the default)')}")
    yield from _messages()
    yield from _large_images(middleware)


def _messages() -> Iterator[InventoryLine]:
    from dino_perception.messages.types import RclpyTypes

    types = RclpyTypes()
    for name, advice in (
        ("dino_perception/msg/Correspondences", "colcon build, then source install/setup.bash"),
        ("vision_msgs/msg/LabelInfo", "rosdep install, or: sudo apt install ros-$ROS_DISTRO-vision-msgs"),
    ):
        there = types.available(name)
        yield InventoryLine(name, "built" if there else "not there", OK if there else WRONG, "" if there else advice)


def _large_images(middleware: str) -> Iterator[InventoryLine]:
    from dino_perception.ros.large_messages import VARIABLES, large_message_profile

    if "fastrtps" not in middleware:
        return
    chosen = next((os.environ[name] for name in VARIABLES if os.environ.get(name)), "")
    if chosen and not Path(chosen).is_file():
        yield InventoryLine(
            "Fast DDS profile", f"{chosen} is no file", WRONG, "name an existing file or unset the variable"
        )
    elif chosen:
        yield InventoryLine("Fast DDS profile", chosen)
    else:
        ours = next(iter(large_message_profile({}).items()))
        yield InventoryLine(
            "Fast DDS profile",
            "none in this shell; the launch files set theirs",
            ABSENT,
            f"a camera driver of large images needs it, too: export {ours[0]}={ours[1]}",
        )


def _engine_cache() -> Iterator[InventoryLine]:
    from dino_perception.engines import default_folder
    from dino_perception.engines.cache import records

    folder = default_folder()
    parent = next(path for path in (folder, *folder.parents) if path.exists())
    kept = records(folder) if folder.exists() else []
    what = f"{folder}: {len(kept)} engines, {sum(r['bytes'] for r in kept) / 1e6:.0f} MB"
    free = shutil.disk_usage(parent).free / 1e9
    if not os.access(parent, os.W_OK):
        yield InventoryLine(
            "engine cache", f"{what}; it cannot be written", WRONG, "set engine_cache to a folder of yours"
        )
    else:
        low = free < 2
        yield InventoryLine(
            "engine cache", f"{what}; {free:.0f} GB free", WRONG if low else OK, "make room: 2 GB" if low else ""
        )


def _weights() -> Iterator[InventoryLine]:
    from dino_perception.models.checkpoints import BUNDLED

    files = sorted(BUNDLED.glob("*.safetensors"))
    yield InventoryLine(
        "bundled weights",
        ", ".join(path.stem for path in files) or f"none in {BUNDLED}",
        OK if files else WRONG,
        "" if files else "install the package again; its weights were left out",
    )


CHECKS = (_python, _processor, _libraries, _torch, _tensorrt, _ros, _engine_cache, _weights)

LIBRARIES = (
    ("numpy", "numpy", True),
    ("cv2", "opencv-python", True),
    ("yaml", "PyYAML", True),
    ("safetensors", "safetensors", False),
    ("openvino", "openvino", False),
    ("rosbags", "rosbags", False),
)
"""Import name, package, and whether the node cannot do without."""

FLAVOURS = {
    "torch_tensorrt": ("torch-tensorrt", "torch-tensorrt-rtx"),
    "tensorrt": ("tensorrt", "tensorrt-cu13", "tensorrt-cu12"),
    "tensorrt_rtx": ("tensorrt-rtx", "tensorrt-rtx-cu13", "tensorrt-rtx-cu13-bindings"),
}
"""Import name of each way to TensorRT, and the packages that bring it."""


def version(package: str) -> str | None:
    """The installed version of a package, under any of the names it is published by; None without one."""
    for name in (package, *ALIASES.get(package, ())):
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


ALIASES = {
    "opencv-python": ("opencv-python-headless", "opencv-contrib-python", "opencv-contrib-python-headless"),
    "rclpy": ("ros-rclpy",),
}


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "Model"))]
    return names[0] if names else platform.processor() or platform.machine()


def _memory_gb() -> float:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9
    except (ValueError, OSError):
        return float("nan")


def _first_line_of(path: str) -> str:
    try:
        return Path(path).read_text().splitlines()[0]
    except (OSError, IndexError):
        return ""


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0]
