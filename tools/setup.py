#!/usr/bin/env python3
"""Sets up all that `make demo` and `make test` need, inside this folder and without root.

That is a virtual environment with pinned wheels, ROS 2 Jazzy among them, and this package built by colcon in it. With
everything in place it only compares hashes.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
STAMP = VENV / "setup.json"
LOG = ROOT / "log" / "setup.txt"
REQUIREMENTS = [ROOT / "requirements" / f"{name}.txt" for name in ("runtime", "ros", "test")]
CONSTRAINTS = ROOT / "requirements" / "constraints.txt"
OLDER = ROOT / "requirements" / "jazzy_robot.txt"
CPU_TORCH = "https://download.pytorch.org/whl/cpu"
PYTHONS = ((3, 11), (3, 14))

# What a sourced ROS 2 or another workspace would mix into this one.
FOREIGN = (
    "PYTHONPATH",
    "PYTHONHOME",
    "AMENT_PREFIX_PATH",
    "CMAKE_PREFIX_PATH",
    "COLCON_PREFIX_PATH",
    "LD_LIBRARY_PATH",
    "ROS_DISTRO",
    "_ROS_WHEELS_BOOTSTRAP_COMPLETE",
)


class SetupError(Exception):
    """The set-up cannot go on; the message says why and what to do."""


def main() -> int:
    LOG.parent.mkdir(exist_ok=True)
    with open(LOG, "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two `make` at once wait for each other
        try:
            set_up()
        except SetupError as error:
            print(error, file=sys.stderr)
            return 1
    return 0


def set_up() -> None:
    stamp = read_stamp()
    files = [*REQUIREMENTS, CONSTRAINTS, OLDER, Path(__file__).resolve()]
    environment = {"python": sys.version, "root": str(ROOT), "files": digest(files)}
    workspace = digest([*built_files(), ROOT / "tools" / "workspace.py"]) + digest_of_names(installed_files())
    if stamp == {"environment": environment, "workspace": workspace}:
        return
    started = time.monotonic()
    require_system_packages()
    LOG.write_text("")
    if stamp.get("environment") != environment:
        if not environment_fits():
            create_environment()
        install_wheels()
        name_this_interpreter()
        write_stamp({"environment": environment})
    enter_workspace()
    build()
    write_stamp({"environment": environment, "workspace": workspace})
    say(f"Set up in {time.monotonic() - started:.0f} s.")


def require_system_packages() -> None:
    """Raises SetupError with one sentence that names all that is missing and the command that brings it."""
    if not PYTHONS[0] <= sys.version_info[:2] <= PYTHONS[1]:
        raise SetupError(
            f"Python {'.'.join(map(str, sys.version_info[:2]))} is too "
            f"{'old' if sys.version_info < PYTHONS[0] else 'new'}: "
            "dino_perception's set-up takes 3.11 to 3.14; name another one with `make PYTHON=python3.12`."
        )
    version = f"python3.{sys.version_info[1]}" if "deadsnakes" in sys.version else "python3"
    missing = {
        package: what
        for package, what, present in (
            (f"{version}-venv", "Python's venv", have_module("ensurepip")),
            (f"{version}-dev", "Python's headers", Path(sysconfig.get_paths()["include"], "Python.h").exists()),
            ("cmake", "cmake", shutil.which("cmake")),
            ("g++", "a C++ compiler", shutil.which("c++") or shutil.which("g++")),
            ("make", "make", shutil.which("make")),
        )
        if not present
    }
    if missing:
        raise SetupError(
            f"This machine lacks {', '.join(missing.values())}; install with: sudo apt install {' '.join(missing)}"
        )


def environment_fits() -> bool:
    """Whether there is an environment made by this interpreter and for this folder."""
    try:
        made_here = (VENV / "bin" / "pip").read_text().startswith(f"#!{VENV}")
        return made_here and output([str(PYTHON), "-c", "import sys; print(sys.version)"]) == sys.version
    except (OSError, subprocess.CalledProcessError):
        return False


def create_environment() -> None:
    say("[1/3] Creating the virtual environment .venv")
    for folder in (VENV, ROOT / "build", ROOT / "install"):  # they hold absolute paths into one another
        shutil.rmtree(folder, ignore_errors=True)
    run([sys.executable, "-m", "venv", str(VENV)], "The virtual environment could not be created")


def install_wheels() -> None:
    say("[2/3] Installing the pinned wheels (a first time downloads 0.5 GB, or 3 GB where torch comes with CUDA)")
    pip = [str(PYTHON), "-m", "pip", "install", "--no-input"]
    if not Path("/dev/nvidiactl").exists():
        # PyPI's torch for Linux brings gigabytes of CUDA. Without an NVIDIA GPU its makers' CPU build is taken, if
        # their server answers; the next command installs whatever is missing then.
        pin = next(line.split()[0] for line in REQUIREMENTS[0].read_text().splitlines() if line.startswith("torch=="))
        run([*pip, "--no-deps", "--retries", "1", "--timeout", "15", "--extra-index-url", CPU_TORCH, pin], None)
    files = [argument for path in REQUIREMENTS for argument in ("-r", str(path))]
    run([*pip, *files, "-c", str(CONSTRAINTS)], "The wheels could not be installed")
    if sys.version_info < (3, 13):  # NumPy 1.26 knows no later Python
        older = [*pip, "--no-deps", "--upgrade", "--target", str(VENV / "older"), "-r", str(OLDER)]
        run(older, "Jazzy's own NumPy and OpenCV, which a test runs with, could not be installed")


def name_this_interpreter() -> None:
    """The ROS wheels' CMake files name the include folders of the machine that built them; put this one's there."""
    numpy_include = output([str(PYTHON), "-c", "import numpy; print(numpy.get_include())"])
    python_include = sysconfig.get_paths()["include"]
    for path in (VENV / "share").glob("*/cmake/*generator_py*Export*.cmake"):
        text = path.read_text()
        fixed = "\n".join(
            f'  INTERFACE_INCLUDE_DIRECTORIES "{python_include};{numpy_include}"'
            if line.lstrip().startswith("INTERFACE_INCLUDE_DIRECTORIES") and "/opt/python/" in line
            else line
            for line in text.split("\n")
        )
        if fixed != text:
            path.write_text(fixed)


def enter_workspace() -> None:
    """Has every Python of the environment see ./install, and puts the two commands into its bin folder."""
    packages = Path(output([str(PYTHON), "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])"]))
    shutil.copyfile(ROOT / "tools" / "workspace.py", packages / "_dino_perception_workspace.py")
    # Read in alphabetical order, so before the ROS wheels' own, which restarts Python with the library path set here.
    (packages / "_dino_perception_workspace.pth").write_text("import _dino_perception_workspace\n")
    for script in (ROOT / "bin").iterdir():
        installed = VENV / "bin" / script.name
        installed.write_text(f"#!{PYTHON}\n" + script.read_text().split("\n", 1)[1])
        installed.chmod(0o755)


def build() -> None:
    say("[3/3] Building the messages and the package with colcon")
    command = [
        str(VENV / "bin" / "colcon"),
        "build",
        "--symlink-install",
        "--base-paths",
        ".",
        *interface_packages(),
        "--cmake-args",
        f"-DPython3_EXECUTABLE={PYTHON}",
        "-DBUILD_TESTING=OFF",
        "--no-warn-unused-cli",
    ]
    if not run(command, None):  # CMake's own records may be what is stale: once more without them
        for folder in (ROOT / "build", ROOT / "install"):
            shutil.rmtree(folder, ignore_errors=True)
        run(command, "colcon could not build the package")


def interface_packages() -> list[str]:
    return sorted(str(path.relative_to(ROOT)) for path in (ROOT / "tools" / "interfaces").iterdir())


def built_files() -> list[Path]:
    """Files whose content a build depends on."""
    return sorted(
        [
            ROOT / "package.xml",
            ROOT / "CMakeLists.txt",
            *(ROOT / "msg").glob("*.msg"),
            *(ROOT / "srv").glob("*.srv"),
            *(ROOT / "bin").iterdir(),
            *(ROOT / "src" / "matching").iterdir(),
            *(path for path in (ROOT / "tools" / "interfaces").rglob("*") if path.is_file()),
        ]
    )


def installed_files() -> list[Path]:
    """Files that are installed as links: only their names matter."""
    return sorted(
        path
        for folder in ("dino_perception", "config", "launch", "data")
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    )


def run(command: list[str], failure: str | None) -> bool:
    """Runs a command with its output in the log and a sign of life on the terminal; whether it succeeded. Raises
    SetupError if not, and `failure` says what has failed."""
    with open(LOG, "ab") as log, Life() as life:
        process = subprocess.Popen(
            command, cwd=ROOT, env=clean_environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        for line in process.stdout:
            log.write(line)
            log.flush()
            life.show(line.decode(errors="replace"))
        done = process.wait()
    if done and failure:
        tail = "\n".join(LOG.read_text(errors="replace").splitlines()[-15:])
        raise SetupError(f"{tail}\n\n{failure}; the whole output is in {os.path.relpath(LOG, ROOT)}.")
    return done == 0


class Life:
    """Says how long a step has been at work and what it is busy with: one line that changes on a terminal, a line
    every half minute elsewhere (a log of continuous integration)."""

    EVERY_S = 30
    NEWS = re.compile(
        r"^(Downloading|Collecting|Building wheel|Installing collected packages|Starting >>>)\s*([^\s;=<>]*)"
    )

    def __init__(self):
        self.start = self.last = time.monotonic()
        self.terminal = sys.stdout.isatty()

    def show(self, line: str) -> None:
        news = self.NEWS.match(line.strip())
        now = time.monotonic()
        if not news or (not self.terminal and now - self.last < self.EVERY_S):
            return
        self.last = now
        what = f"{news.group(1)} {news.group(2).rpartition('/')[2]}"
        text = f"      {now - self.start:4.0f} s  {what}"
        print(f"\r{text[:100]:<100}" if self.terminal else text, end="" if self.terminal else "\n", flush=True)

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        if self.terminal:
            print(f"\r{'':<100}\r", end="", flush=True)


def output(command: list[str]) -> str:
    return subprocess.run(command, env=clean_environment(), check=True, capture_output=True, text=True).stdout.strip()


def clean_environment() -> dict[str, str]:
    """The user's environment without other workspaces, and with every cache and log inside this folder."""
    environment = {name: value for name, value in os.environ.items() if name not in FOREIGN}
    cache = ROOT / ".cache"
    (cache / "tmp").mkdir(parents=True, exist_ok=True)
    environment.update(
        PATH=f"{VENV / 'bin'}{os.pathsep}{environment.get('PATH', os.defpath)}",
        VIRTUAL_ENV=str(VENV),
        TMPDIR=str(cache / "tmp"),
        PIP_CACHE_DIR=str(cache / "pip"),
        PIP_DISABLE_PIP_VERSION_CHECK="1",
        COLCON_HOME=str(cache / "colcon"),
        COLCON_LOG_PATH=str(ROOT / "log"),
        AMENT_PREFIX_PATH=str(VENV),
        CMAKE_PREFIX_PATH=str(VENV),
    )
    return environment


def digest(paths: list[Path]) -> str:
    total = hashlib.sha256()
    for path in paths:
        total.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes() + b"\0")
    return total.hexdigest()


def digest_of_names(paths: list[Path]) -> str:
    return hashlib.sha256("\0".join(str(path.relative_to(ROOT)) for path in paths).encode()).hexdigest()


def have_module(name: str) -> bool:
    return subprocess.run([sys.executable, "-c", f"import {name}"], capture_output=True).returncode == 0


def read_stamp() -> dict:
    try:
        return json.loads(STAMP.read_text())
    except (OSError, ValueError):
        return {}


def write_stamp(stamp: dict) -> None:
    STAMP.write_text(json.dumps(stamp, indent=1) + "\n")


def say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
