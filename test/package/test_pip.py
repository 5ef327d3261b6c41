"""`pip install .` gives the part that needs no ROS, with all the files it ships."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("setuptools")

ROOT = Path(__file__).resolve().parents[2]
NOT_SOURCE = (".git", ".venv", ".cache", "build", "install", "log", "out", "__pycache__", "*.egg-info", ".pytest_cache")


def pip(*arguments: str) -> None:
    done = subprocess.run([sys.executable, "-m", "pip", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT, folder / "source", ignore=shutil.ignore_patterns(*NOT_SOURCE))  # building leaves files behind
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(folder / "source"))
    return next(folder.glob("*.whl"))


def test_every_file_of_the_module_and_of_config_is_in_the_wheel(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    source = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "dino_perception").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and not path.name.startswith(".")
    }
    assert source <= names
    shared = {name.partition("/data/share/dino_perception/")[2] for name in names}
    assert {str(path.relative_to(ROOT)) for path in (ROOT / "config").rglob("*") if path.is_file()} <= shared


def test_an_installed_package_runs_and_finds_its_files(wheel, tmp_path):
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv")], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    pip("--python", str(python), "install", "--no-deps", str(wheel))
    environment = {"PATH": "/usr/bin:/bin"}
    shown = subprocess.run(
        [str(python.with_name("dino-perception")), "--version"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert (shown.returncode, shown.stdout.split()[0]) == (0, "dino_perception"), shown.stderr
    code = "from dino_perception.share import share; print(share('config', 'rover.yaml'))"
    found = subprocess.run([str(python), "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert Path(found.stdout.strip()).is_relative_to(tmp_path / "venv"), found.stderr
