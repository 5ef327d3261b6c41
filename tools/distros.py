#!/usr/bin/env python3
"""Runs the tests with the Python, NumPy, OpenCV and torch that each supported ROS distribution really brings.

`make test-distros` runs all of them, `make test-distros ARGS=humble` one. What rosdep installs on a robot is older than
what pip takes, and a function that came with a newer OpenCV fails only there. Each distribution gets a copy of the
sources and an environment under .distros; the first time it downloads some gigabytes of torch. `--remove` takes an
environment away once its tests have run (one takes 6 GB where torch comes with CUDA), `--rooms` chooses folders of test/.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PLACE = ROOT / ".distros"
CORE = ("test/messages", "test/perception", "test/models", "test/engines", "test/bags")
LIVE = ("test/ros",)


@dataclass(frozen=True)
class Distribution:
    """What a robot with this distribution has: by rosdep from Ubuntu, torch from its maker.

    `ros`: whether ROS 2 for this Python comes as wheels, so that the node's own tests run, too. `more` are the
    versions of what the tests need that still run with this NumPy."""

    name: str
    python: str
    numpy: str
    opencv: str
    torch: str
    ros: bool
    more: tuple[str, ...] = ()


DISTRIBUTIONS = (
    Distribution(
        "humble", "3.10", "1.21.5", "4.5.4.60", "2.4.1", False, ("scipy==1.8.0", "matplotlib==3.5.1", "Pillow==9.0.1")
    ),
    Distribution("jazzy", "3.12", "1.26.4", "4.6.0.66", "2.13.0", True),
    Distribution("newest", "3.13", "", "", "2.13.0", True),
)
"""Kilted runs on the same Ubuntu 24.04 as Jazzy, with the same Python, NumPy and OpenCV. Empty: as pinned."""


def main() -> int:
    names = [d.name for d in DISTRIBUTIONS]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(names)} (default: all)")
    parser.add_argument(
        "--rooms", default="", metavar="ROOM,..", help="of test/ (default: the core's, and ros where it is)"
    )
    parser.add_argument("--remove", action="store_true", help="remove each environment once its tests have run")
    args = parser.parse_args()
    asked, rooms = args.names or names, [room for room in args.rooms.split(",") if room]
    if unknown := sorted(set(asked) - set(names)):
        parser.error(f"{', '.join(unknown)}: known are {', '.join(names)}")
    if missing := [room for room in rooms if not (ROOT / "test" / room).is_dir()]:
        parser.error(f"--rooms {','.join(missing)}: no such folder in test/")
    rows = []
    for d in DISTRIBUTIONS:
        if d.name in asked:
            rows.append(tested(d, [f"test/{room}" for room in rooms]))
            if args.remove:
                shutil.rmtree(PLACE / d.name, ignore_errors=True)
    print(
        "\n| distribution | Python | NumPy | OpenCV | torch | ROS | tests | minutes |\n|---|---|---|---|---|---|---|---|"
    )
    for _, row in rows:
        print(row)
    failed = sum(not good for good, _ in rows)
    return 1 if failed else 0


def tested(distribution: Distribution, rooms: list[str]) -> tuple[bool, str]:
    """(whether nothing failed, the row of the table) of these folders of tests, by default all that the distribution has.
    An interpreter that this machine lacks is no failure."""
    d = distribution
    python = interpreter(d.python)
    if python is None:
        return True, f"| {d.name} | {d.python} | | | | | not run: no Python {d.python} here | |"
    start = time.monotonic()
    source = copied(d.name)
    own = with_ros(d, python, source) if d.ros else core_only(d, python, source)
    rooms = rooms or [*CORE, *(LIVE if d.ros else ())]
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    command = [str(own), "-m", "pytest", "-q", "-p", "no:cacheprovider", *rooms]
    done = subprocess.run(command, cwd=source, env=environment, stdout=subprocess.PIPE, text=True)
    print(done.stdout[-6000:], flush=True)
    versions = subprocess.run(
        [str(own), "-c", "import numpy, cv2, torch; print(numpy.__version__, cv2.__version__, torch.__version__)"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    result = re.search(r"\d+ (passed|failed).*(?= in )", done.stdout)
    said = result.group(0) if result else "did not run"
    said += "" if done.returncode in (0, 1) else "; it did not come to its end"
    cells = [d.name, d.python, *versions, "yes" if d.ros else "no", said]
    return done.returncode == 0, f"| {' | '.join(cells)} | {(time.monotonic() - start) / 60:.0f} |"


def interpreter(version: str) -> str | None:
    """A Python of that minor version: on the path, or one of pyenv's."""
    own = Path.home().glob(f".pyenv/versions/{version}.*/bin/python")
    return shutil.which(f"python{version}") if working(f"python{version}") else next(map(str, sorted(own)), None)


def working(name: str) -> bool:
    """Whether a command starts: pyenv's stand-ins are there for versions that are not chosen, and refuse."""
    return shutil.which(name) is not None and not subprocess.run([name, "-c", ""], capture_output=True).returncode


def copied(name: str) -> Path:
    """The sources as they are now, in a folder of their own; what was built there before stays."""
    source = PLACE / name
    source.mkdir(parents=True, exist_ok=True)
    files = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\0")
    wanted = {file for file in files if file and (ROOT / file).is_file()}
    for room in ("dino_perception", "test"):
        for path in (source / room).rglob("*.py"):
            if str(path.relative_to(source)) not in wanted:
                path.unlink()
    for file in wanted:
        target = source / file
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / file, target)
    return source


def core_only(d: Distribution, python: str, source: Path) -> Path:
    """An environment without ROS: what replay, training and the perception core run on."""
    environment = source / ".venv-core"
    own = environment / "bin" / "python"
    if not own.exists():
        run([python, "-m", "venv", str(environment)])
    wheels = [f"numpy=={d.numpy}", f"opencv-python-headless=={d.opencv}", f"torch=={d.torch}", *d.more]
    others = ["PyYAML", "safetensors", "rosbags", "lz4", "rich", "openvino", "av", "simplejpeg", "pytest==8.3.5"]
    others += ["mcap", "mcap-ros2-support", "foxglove-schemas-protobuf"]
    run([str(own), "-m", "pip", "install", "--quiet", "--no-input", *wheels, *others])
    return own


def with_ros(d: Distribution, python: str, source: Path) -> Path:
    """The whole set-up of this repository under another Python, then the distribution's NumPy and OpenCV over it."""
    run(["make", "-C", str(source), "setup", f"PYTHON={python}"])
    own = source / ".venv" / "bin" / "python"
    if d.numpy:
        wheels = [f"numpy=={d.numpy}", f"opencv-python-headless=={d.opencv}"]
        run([str(own), "-m", "pip", "install", "--quiet", "--no-input", "--no-deps", *wheels])
    return own


def run(command: list[str]) -> None:
    print("$", " ".join(command), flush=True)
    subprocess.run(command, check=True)


if __name__ == "__main__":
    sys.exit(main())
