"""What a person or a machine can get wrong with a command is one sentence and an exit code, never a traceback."""

import errno
import subprocess
import sys

import pytest

from dino_perception.cli import __main__ as program
from dino_perception.cli.__main__ import main

WRONG = [
    ("train segmentation --data terrain:1 --out x --input 33by47", "no size"),
    ("train segmentation --data terrain:1 --out x --input 0x47", "no size"),
    ("train segmentation --data terrain:1 --out x --input 4096x4096", "at most 2048 each"),
    ("train segmentation --data terrain:1 --out x --device nope", "no device"),
    ("train segmentation --data terrain:1 --out x --threads -5", "no number of threads"),
    ("train segmentation --data terrain:1 --out x --rate nan", "not a positive number"),
    ("train segmentation --data terrain:1 --out x --seed -1", "not a whole number"),
    ("train segmentation --data terrain:1 --out x --label-smoothing 1", "no share"),
    ("train depth --data terrain:1 --out x --depth-range 1 inf", "not a positive number"),
    ("train depth --data terrain:1 --out x --epochs 99999999999999999999999", "not a whole number"),
    ("evaluate --terrain 9000 --pairs -1", "not a whole number"),
    ("evaluate --terrain 9000 --farthest nan", "not a positive number"),
    ("play x.mcap --remap x", "no FROM:=TO"),
    ("play x.mcap --remap /a:=", "no FROM:=TO"),
    ("play x.mcap --rate inf", "not a positive number"),
    ("play x.mcap --clock -1", "not a number, 0 or more"),
    ("replay a b --start nan", "no time"),
    ("replay a b --duration 1e300", "no time"),
    ("replay a b --every 0", "not a whole number above 0"),
    ("replay a b --workers -2", "not a whole number, 0 or more"),
    ("extract a b --count -3", "not a whole number above 0"),
    ("benchmark --rounds x", "not a whole number above 0"),
    ("compile --workspace nan", "not a number"),
]


@pytest.mark.parametrize("line, sentence", WRONG)
def test_a_wrong_argument_is_refused_before_any_work(line, sentence, capsys):
    with pytest.raises(SystemExit) as end:
        main(line.split())
    said = capsys.readouterr().err
    assert end.value.code == 2 and sentence in said, said


@pytest.mark.parametrize(
    "error, sentence",
    [
        (OSError(errno.ENOSPC, "No space left on device", "/a/b"), "/a/b: No space left on device"),
        (PermissionError(errno.EACCES, "Permission denied", "/x\x1b[31m"), "/x\\x1b[31m: Permission denied"),
        (NotADirectoryError(errno.ENOTDIR, "Not a directory", "/dev/null"), "/dev/null: Not a directory"),
        (MemoryError(), "not enough memory"),
    ],
)
def test_what_the_machine_refuses_is_a_sentence(error, sentence, monkeypatch, capsys):
    from dino_perception.cli import extract

    def fails(args):
        raise error

    monkeypatch.setattr(extract, "run", fails)
    assert program.main(["extract", "a", "b"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("dino-perception extract: ") and sentence in said and said.count("\n") == 1


def test_a_reader_of_a_pipe_that_leaves_early_is_no_error():
    command = f"{sys.executable} -m dino_perception.cli models | head -c 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert "Traceback" not in done.stderr and "Exception" not in done.stderr, done.stderr


def test_names_in_brackets_are_printed_as_they_are(capsys):
    from dino_perception.cli.progress import Stages, wide_console

    console = wide_console()
    with Stages(console) as stages:
        stages.say("topic /a[red]b[/wrong] is not copied")
        stages("[/nothing] opened", 1, 2)
    assert "/a[red]b[/wrong]" in capsys.readouterr().out
