"""The core with the NumPy and OpenCV that a Jazzy robot gets from Ubuntu 24.04: older than those of pip."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from begun_early import Job

ROOT = Path(__file__).resolve().parents[2]
OLDER = Path(sys.prefix) / "older"
ROOMS = ("test/messages", "test/perception")

spec = importlib.util.spec_from_file_location("distros", ROOT / "tools" / "distros.py")
distros = importlib.util.module_from_spec(spec)
sys.modules["distros"] = distros
spec.loader.exec_module(distros)


PASSES = Job(
    "test_the_core_passes_with_what_a_jazzy_robot_has",
    lambda folder: (
        [[sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *(str(ROOT / r) for r in ROOMS)]]
        if OLDER.is_dir()
        else []
    ),
    {"PYTHONPATH": str(OLDER)},
)


def test_the_core_passes_with_what_a_jazzy_robot_has():
    """`make test-distros` does the same for all rooms and distributions, in environments of their own."""
    if not OLDER.is_dir():
        pytest.skip("tools/setup.py has not put Jazzy's NumPy and OpenCV beside the environment (an older Python?)")
    environment = {**os.environ, "PYTHONPATH": str(OLDER)}
    ask = "import cv2, numpy; print(numpy.__version__, cv2.__version__)"
    versions = subprocess.run([sys.executable, "-c", ask], env=environment, capture_output=True, text=True, check=True)
    jazzy = next(d for d in distros.DISTRIBUTIONS if d.name == "jazzy")
    assert versions.stdout.split() == [jazzy.numpy, jazzy.opencv.rpartition(".")[0]]
    (done,) = PASSES.result()
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


def test_the_readme_and_the_packages_name_the_oldest_versions_that_are_tested():
    oldest = distros.DISTRIBUTIONS[0]
    setup = (ROOT / "setup.py").read_text()
    assert f'python_requires=">={oldest.python}"' in setup
    for package, version in (
        ("numpy", oldest.numpy),
        ("opencv-python-headless", oldest.opencv),
        ("torch", oldest.torch),
    ):
        asked = re.search(rf'"{package}>=([0-9.]+)"', setup).group(1)
        assert version.startswith(asked) and asked.count(".") >= 1, f"setup.py asks for {package}>={asked}"
    table = (ROOT / "README.md").read_text()
    for d in distros.DISTRIBUTIONS[:2]:
        row = next(line for line in table.splitlines() if re.match(rf"\| {d.name}", line, re.IGNORECASE))
        for version in (d.python, d.numpy, d.opencv.rpartition(".")[0]):
            assert version in row, f"README's row of {d.name} does not name {version}"
