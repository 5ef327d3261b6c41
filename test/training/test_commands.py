"""`extract`, `train` and `evaluate` as a user types them, one after the other."""

from __future__ import annotations

import argparse
import importlib
import json
import shlex
from pathlib import Path

import cv2
import numpy as np
import pytest
from small_data import SIZE, picture

from dino_perception.cli.__main__ import main
from dino_perception.models.checkpoints import load_backbone
from dino_perception.models.heads import load_head
from dino_perception.models.taps import Tap

SAMPLE = Path(__file__).parents[2] / "data" / "sample_drive"
needs_sample = pytest.mark.skipif(not SAMPLE.exists(), reason="the sample drive is not in data/")


def run(*arguments) -> int:
    return main([str(a) for a in arguments])


def trained(tmp_path, head, data, *more) -> tuple[int, Path]:
    out = tmp_path / f"{head}.safetensors"
    code = run(
        "train",
        head,
        "--data",
        data,
        "--out",
        out,
        "--cache",
        tmp_path / "cache",
        "--input",
        "48x64",
        "--engine",
        "torch",
        "--threads",
        1,
        "--steps",
        30,
        "--epochs",
        1,
        "--batch",
        4,
        *more,
    )
    return code, out


def test_a_head_file_says_what_it_was_trained_on_and_how_well(labelled, tmp_path, capsys):
    code, out = trained(tmp_path, "segmentation", labelled, "--seed", 3, "--json", tmp_path / "t.json")
    assert code == 0 and "IoU ground" in capsys.readouterr().out
    head = load_head("segmentation", load_backbone("rover-tiny"), out)
    assert head.trained and [label.name for label in head.spec.labels] == ["sky", "ground"]
    training, metrics = head.spec.training, head.spec.metrics
    assert training["data"] == "folder labelled" and training["frames"] == 8 and training["validation_frames"] == 2
    assert training["recipe"]["seed"] == 3 and training["input"] == [48, 64] and 0 < training["steps"] <= 30
    assert 0 <= metrics["validation"]["miou"] <= 1
    told = json.loads((tmp_path / "t.json").read_text())
    assert told["metrics"] == json.loads(json.dumps(metrics)) and told["history"][-1]["step"] == training["steps"]


def test_the_same_command_gives_the_same_file(labelled, tmp_path):
    files = [trained(tmp_path / str(i), "segmentation", labelled)[1].read_bytes() for i in range(2)]
    assert files[0] == files[1]


def test_depth_is_learnt_within_the_range_asked_for_and_measured_on_other_data(labelled, tmp_path):
    code, out = trained(
        tmp_path, "depth", labelled, "--depth-range", 0.2, 8, "--test", labelled, "--arch", "linear", "--val", 0
    )
    head = load_head("depth", load_backbone("rover-tiny"), out)
    assert (
        code == 0 and head.spec.depth_range == (0.2, 8.0) and head.spec.arch == "linear" and head.spec.taps == (Tap(7),)
    )
    assert head.spec.metrics["test"]["abs_rel"] > 0 and head.spec.training["validation_frames"] == 0


def test_a_limit_counts_all_labelled_frames(labelled, tmp_path):
    _, out = trained(tmp_path, "segmentation", labelled, "--limit", 5)
    training = load_head("segmentation", load_backbone("rover-tiny"), out).spec.training
    assert training["frames"] + training["validation_frames"] == 5


def test_label_efficiency_is_a_table_a_plot_and_numbers(labelled, tmp_path, capsys):
    code = run(
        "train",
        "segmentation",
        "--data",
        labelled,
        "--curve",
        "2,50",
        "--draws",
        2,
        "--out",
        tmp_path / "curve.png",
        "--json",
        tmp_path / "curve.json",
        "--cache",
        tmp_path / "cache",
        "--input",
        "48x64",
        "--engine",
        "torch",
        "--threads",
        1,
        "--steps",
        20,
        "--epochs",
        1,
    )
    rows = json.loads((tmp_path / "curve.json").read_text())["rows"]
    assert code == 0 and [row["frames"] for row in rows] == [2, 8]  # there are no more than eight
    assert all(0 <= row[key] <= 1 for row in rows for key in ("miou", "spread", "shown_miou", "baseline_miou"))
    assert "colour k-NN" in capsys.readouterr().out and cv2.imread(str(tmp_path / "curve.png")) is not None


@pytest.mark.parametrize(
    "arguments, says",
    [
        (["train", "segmentation", "--data", "nowhere", "--out", "x"], "nowhere does not exist"),
        (
            ["train", "depth", "--data", "{f}", "--out", "x", "--arch", "huge"],
            "no depth head 'huge'; accepted are light, fine, linear",
        ),
        (["train", "depth", "--data", "{f}"], "say with --out"),
        (["train", "depth", "--data", "{f}", "--out", "x", "--curve", "5"], "--curve measures mIoU"),
        (
            [
                "train",
                "segmentation",
                "--data",
                "{f}",
                "--out",
                "x",
                "--val",
                "2",
                "--input",
                "48x64",
                "--engine",
                "torch",
            ],
            "--val is 2",
        ),
        (["evaluate"], "say with --data, --bag or --terrain"),
        (["evaluate", "--data", "{f}", "--gaps", "1,x"], "--gaps is '1,x'"),
        (["evaluate", "--data", "{f}", "--set", "rate"], "--set rate is no NAME=VALUE"),
        (["evaluate", "--data", "{f}", "--set", "speed=3"], "no setting 'speed'"),
        (["extract", "{f}", "{f}"], "images holds files already"),
    ],
)
def test_a_wrong_command_ends_in_one_sentence(labelled, tmp_path, capsys, arguments, says):
    assert run(*(a.format(f=labelled) for a in arguments)) == 1
    told = capsys.readouterr().err.strip()
    assert told.startswith("dino-perception") and says in told and "\n" not in told


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "segmentation", "--data", "x", "--input", "big"],
        ["train", "smell"],
        ["train", "depth", "--data", "x", "--limit", "-3"],
    ],
)
def test_arguments_that_cannot_be_are_refused_by_the_parser(arguments):
    with pytest.raises(SystemExit) as stopped:
        run(*arguments)
    assert stopped.value.code == 2


def test_a_bad_mask_names_its_file(labelled, tmp_path, capsys):
    picture(labelled / "masks" / "007.png", np.full(SIZE, 77, np.uint8))
    assert trained(tmp_path, "segmentation", labelled)[0] == 1
    assert "007.png holds 77" in capsys.readouterr().err


def documented() -> list[list[str]]:
    text = (Path(__file__).parents[2] / "docs" / "training.md").read_text().replace("\\\n", " ")
    return [shlex.split(line)[1:] for line in text.splitlines() if line.startswith("dino-perception ")]


@pytest.mark.parametrize("arguments", documented(), ids=lambda arguments: " ".join(arguments[:2]))
def test_every_command_of_the_guide_is_understood(arguments):
    command = importlib.import_module(f"dino_perception.cli.{arguments[0]}")
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    parser.parse_args(arguments[1:])


@needs_sample
def test_from_a_bag_to_a_measured_head(tmp_path, capsys):
    """The way docs/training.md goes."""
    frames, small = (
        tmp_path / "frames",
        ["input_height=96", "input_width=128", "output_height=48", "output_width=64", "engine=torch", "threads=1"],
    )
    assert run("extract", SAMPLE, frames, "--count", 6, "--truth") == 0
    assert sorted(p.name for p in frames.iterdir()) == ["depth", "images", "labels.yaml", "masks"]
    assert [len(list((frames / d).iterdir())) for d in ("images", "masks", "depth")] == [6, 6, 6]
    code, out = trained(tmp_path, "segmentation", frames, "--input", "96x128", "--limit", 4)
    assert code == 0
    capsys.readouterr()
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- evaluation -->\nold\n<!-- end -->\nafter\n")
    code = run(
        "evaluate",
        "--bag",
        SAMPLE,
        "--heads",
        "segmentation",
        "--set",
        f"segmentation.weights={out}",
        "--limit",
        4,
        *(x for setting in small for x in ("--set", setting)),
        "--cache",
        tmp_path / "cache",
        "--json",
        tmp_path / "e.json",
        "--page",
        page,
    )
    data = json.loads((tmp_path / "e.json").read_text())
    assert code == 0 and set(data) >= {"segmentation", "weights_trained", "model"} and "depth" not in data
    assert "colour k-NN" in capsys.readouterr().out
    lines = page.read_text().splitlines()
    assert lines[0] == "before" and lines[-1] == "after" and "old" not in lines
    miou, base = data["segmentation"]["miou"], data["segmentation"]["baseline_miou"]
    assert f"| mIoU | {miou:.3f} | {base:.3f} |" in lines and "|  | this | colour k-NN |" in lines


@needs_sample
def test_without_truth_only_pictures_and_a_note_are_written(tmp_path, capsys):
    assert run("extract", SAMPLE, tmp_path / "f", "--count", 3) == 0
    assert sorted(p.name for p in (tmp_path / "f").iterdir()) == ["images", "labels.yaml"]
    assert "label them" in capsys.readouterr().out
    assert cv2.imread(str(next((tmp_path / "f" / "images").iterdir()))).shape == (480, 640, 3)
