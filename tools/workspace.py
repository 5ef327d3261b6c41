"""Makes every Python of the virtual environment see this workspace, as a shell that has sourced it would.

`tools/setup.py` copies this file into the environment and has it run at start-up. It adds to what is there, so a
sourced workspace of the user's stays in front. Caches and logs go into the repository's folder unless the user said
otherwise.
"""

import os
import sys
from pathlib import Path

REPOSITORY = Path(sys.prefix).parent
PYTHON_DIRECTORY = Path("lib", f"python{sys.version_info[0]}.{sys.version_info[1]}", "site-packages")


def enter():
    packages = sorted(path for path in (REPOSITORY / "install").glob("*") if path.is_dir())
    _append("AMENT_PREFIX_PATH", [*packages, sys.prefix])
    _append("CMAKE_PREFIX_PATH", [*packages, sys.prefix])
    # The type support of a message is a library that the ROS wheels look up by its bare name.
    _append("LD_LIBRARY_PATH", [package / "lib" for package in packages])
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


def _append(name, paths, first=False):
    present = [path for path in os.environ.get(name, "").split(os.pathsep) if path]
    new = [str(path) for path in paths if str(path) not in present]
    os.environ[name] = os.pathsep.join(new + present if first else present + new)


enter()
