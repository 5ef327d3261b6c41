"""Every command that the README and docs/ show is one that this package takes: its name, its options, its files."""

from __future__ import annotations

import argparse
import ast
import importlib.util
import re
import shlex
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
OTHERS = {"ros2", "rviz2", "rosdep", "colcon", "sudo", "git", "pip"}
"""Programs of others: what they do with their arguments is theirs to say, and only `ros2 launch` of ours is looked at."""


class Parsed(BaseException):
    """Raised where a command would begin its work."""


def shown() -> list[str]:
    """The commands of all blocks without a language or for a shell, "page: command", comments left out."""
    found = []
    for page in PAGES:
        for language, block in FENCE.findall(page.read_text()):
            if language in ("", "bash", "sh"):
                lines = block.replace("\\\n", " ").splitlines()
                found += [f"{page.name}: {part.strip()}" for line in lines for part in line.split("&&") if part.strip()]
    return found


def named() -> list[str]:
    """Commands of ours within a sentence; they may leave out what they need."""
    texts = {page.name: FENCE.sub("", page.read_text()) for page in PAGES}
    return [
        f"{name}: {command}"
        for name, text in texts.items()
        for command in re.findall(r"`((?:\.venv/bin/)?dino-perception [^`]+|make [^`]+)`", text)
    ]


def words_of(command: str) -> list[str]:
    words = shlex.split(command.partition(": ")[2], comments=True)
    if words and words[0] == "torchrun":
        words = ["python", *words[words.index("-m") :]]
    return [word for word in (words[: words.index(">")] if ">" in words else words) if word != "&"]


def parses(words: list[str], monkeypatch) -> bool:
    """Whether one of our own programs takes these words as its command line."""
    parse = argparse.ArgumentParser.parse_args

    def parse_only(self, args=None, namespace=None):
        raise Parsed(parse(self, args, namespace))

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_only)
    monkeypatch.chdir(ROOT)
    try:
        main_of(words, monkeypatch)()
    except Parsed:
        return True
    except SystemExit:
        return False
    raise AssertionError("it has not looked at its command line")


def main_of(words: list[str], monkeypatch):
    if words[0] == "dino-perception":
        from dino_perception.cli.__main__ import main

        return lambda: main(words[1:])
    monkeypatch.setattr(sys, "argv", words[2:] if words[1] == "-m" else words[1:])
    if words[1] == "-m":
        return importlib.import_module(words[2]).main
    path = ROOT / words[1]
    monkeypatch.syspath_prepend(str(path.parent))
    spec = importlib.util.spec_from_file_location(f"documented_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # where dataclasses look
    spec.loader.exec_module(module)
    return module.main


@pytest.mark.parametrize("command", shown())
def test_a_command_that_is_shown_is_taken_as_written(command, monkeypatch, capsys):
    words = words_of(command)
    if not words or "=" in words[0] or words[0] == ".":
        return  # a comment, a variable, or an environment that is sourced
    program = Path(words[0]).name
    for word in words[1:]:
        if re.match(r"(config|data|docs|tools|test|launch|msg|docker|requirements)/", word):
            assert (ROOT / word).exists(), f"{word} is not in this repository"
    if program in ("python", "python3"):
        if words[1] in ("-c", "-m") and not words[2].startswith("dino_perception"):
            return
        assert parses(words, monkeypatch), capsys.readouterr().err
    elif program == "dino-perception":
        assert parses([program, *words[1:]], monkeypatch), capsys.readouterr().err
    elif program == "make":
        assert_targets(words[1:])
    elif words[:3] == ["ros2", "launch", "dino_perception"]:
        known = launch_arguments(words[3])
        assert {word.partition(":=")[0] for word in words[4:] if ":=" in word} <= known
    else:
        assert program in OTHERS, f"{program} is neither ours nor known to this test"


@pytest.mark.parametrize("command", sorted(set(named())))
def test_a_command_within_a_sentence_has_options_that_exist(command, monkeypatch, capsys):
    words = words_of(command)
    if words[0] == "make":
        return assert_targets(words[1:])
    name, options = words[1], [word for word in words[2:] if word.startswith("--")]
    with pytest.raises(SystemExit):
        main_of(["dino-perception", name, "--help"], monkeypatch)()
    usage = capsys.readouterr().out
    assert [option for option in options if not re.search(rf"{option}\b", usage)] == []


def assert_targets(words: list[str]) -> None:
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {word for word in words if "=" not in word} <= set(targets)


def launch_arguments(file: str) -> set[str]:
    """The names that a launch file declares, read from its source and those that it includes: launch itself may not be
    installed."""
    source = (ROOT / "launch" / file).read_text()
    names = {
        key.value
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Assign)
        and isinstance(node.value, ast.Dict)
        and "ARGUMENTS" in ast.unparse(node.targets)
        for key in node.value.keys
        if isinstance(key, ast.Constant)
    }
    return names | (launch_arguments("rover.launch.py") if file != "rover.launch.py" else set())


def test_the_pages_are_read():
    assert len(shown()) > 60 and len(named()) > 15
    assert launch_arguments("replay.launch.py") > launch_arguments("rover.launch.py") > {"image", "preset"}
