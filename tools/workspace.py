"""Makes every Python of the virtual environment see this workspace, as a shell that has sourced it would.

`tools/setup.py` copies this file into the environment and has it run at start-up. It adds to what is there, so a
sourced workspace of the user's stays in front, for Python and for the loader alike. Caches and logs go into the
repository's folder unless the user said otherwise.
"""

import os
import sys
from pathlib import Path

REPOSITORY = Path(sys.prefix).parent
PYTHON_DIRECTORY = Path("lib", f"python{sys.version_info[0]}.{sys.version_info[1]}", "site-packages")
DONE = "_ROS_WHEELS_BOOTSTRAP_COMPLETE"
"""What the ROS wheels' own start-up looks for before it sets the library path."""


def enter():
    packages = sorted(path for path in (REPOSITORY / "install").glob("*") if path.is_dir())
    _append("AMENT_PREFIX_PATH", [*packages, sys.prefix])
    _append("CMAKE_PREFIX_PATH", [*packages, sys.prefix])
    _append("PATH", [os.path.join(sys.prefix, "bin")], first=True)
    # The sources come before what is installed of them, so that a new file needs no build; messages are only installed.
    sys.path += [str(REPOSITORY), *(str(package / PYTHON_DIRECTORY) for package in packages)]
    for name, folder in (
        ("ROS_LOG_DIR", "log/ros"),
        ("XDG_CACHE_HOME", ".cache"),
        ("MPLCONFIGDIR", ".cache/matplotlib"),
        ("TORCHINDUCTOR_CACHE_DIR", ".cache/torchinductor"),
    ):
        os.environ.setdefault(name, str(REPOSITORY / folder))
    _find_libraries(packages)


def _find_libraries(packages):
    """The library path, in one order: what the user has sourced, the wheels, this workspace, as on sys.path. The type
    support of a message is a library that is looked up by its bare name, and must be that of the module in use.

    The loader reads the path when a process starts, so Python starts once more. The ROS wheels would do the same with
    the folders in an order that changes from run to run, and are told that it is done.
    """
    site = Path(sys.prefix) / PYTHON_DIRECTORY
    wheels = [Path(sys.prefix, "lib"), *sorted(path for path in site.glob("ros_*.libs") if path.is_dir())]
    before = os.environ.get("LD_LIBRARY_PATH", "")
    _append("LD_LIBRARY_PATH", [*wheels, *(package / "lib" for package in packages)])
    os.environ[DONE] = "1"
    if os.environ["LD_LIBRARY_PATH"] != before:
        os.execve(sys.executable, sys.orig_argv, os.environ)


def _append(name, paths, first=False):
    present = [path for path in os.environ.get(name, "").split(os.pathsep) if path]
    new = [str(path) for path in paths if str(path) not in present]
    os.environ[name] = os.pathsep.join(new + present if first else present + new)


enter()
