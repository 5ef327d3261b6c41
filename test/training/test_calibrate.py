"""`calibrate` needs no labels; `train` writes the same statistics by itself."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from small_data import SIZE

from dino_perception.cli.__main__ import main
from dino_perception.models.checkpoints import load_backbone
from dino_perception.models.domain import fit
from dino_perception.models.heads import create_head, load_head, save_head
from dino_perception.models.taps import Tap

SAMPLE = Path(__file__).parents[2] / "data" / "sample_drive"


@pytest.mark.skipif(not SAMPLE.exists(), reason="the sample drive is not in data/")
def test_a_recording_without_labels_teaches_a_head_what_is_usual(tmp_path, capsys) -> None:
    out = tmp_path / "calibrated.safetensors"
    shots = tmp_path / "elsewhere"
    shots.mkdir()
    for i in range(4):
        picture = np.random.default_rng(i).integers(0, 256, (90, 120, 3)).astype(np.uint8)
        cv2.imwrite(str(shots / f"{i}.png"), picture)
    command = ["calibrate", "segmentation", "--bag", SAMPLE, "--out", out, "--input", f"{SIZE[0]}x{SIZE[1]}", "--engine",
               "torch", "--limit", 24, "--against", shots, "--cache", tmp_path, "--json", tmp_path / "t.json"]  # fmt: skip
    assert main([str(word) for word in command]) == 0, capsys.readouterr().err
    rows = {row["pictures"]: row for row in json.loads((tmp_path / "t.json").read_text())["rows"]}
    assert rows[str(shots)]["told"] == rows["noise"]["told"] == rows["blank"]["told"] == 1
    assert rows["usual frames"]["told"] < 0.1
    backbone = load_backbone("rover-tiny")
    head, before = load_head("segmentation", backbone, out), load_head("segmentation", backbone)
    assert head.domain.about["data"] == str(SAMPLE) and head.spec == before.spec
    assert all((a == b).all() for a, b in zip(head.state_dict().values(), before.state_dict().values()))


def test_what_cannot_be_calibrated_is_said(tmp_path, capsys) -> None:
    assert main(["calibrate", "depth", "--out", str(tmp_path / "d.safetensors")]) == 1
    assert "say with --bag or --data what usual frames are" in capsys.readouterr().err


@pytest.mark.skipif(not SAMPLE.exists(), reason="the sample drive is not in data/")
def test_the_table_tells_false_alarms_and_confidence_and_another_head_takes_the_statistics(tmp_path, capsys) -> None:
    """With other light, another input size and frames that decided nothing; a second run looks at nothing anew."""
    out, page, data = tmp_path / "s.safetensors", tmp_path / "page.md", tmp_path / "t.json"
    page.write_text("# Table\n\n<!-- unlike the training -->\n<!-- end -->\n")
    command = ["calibrate", "segmentation", "--bag", SAMPLE, "--out", out, "--input", f"{SIZE[0]}x{SIZE[1]}", "--engine",
               "torch", "--limit", 16, "--views", 3, "--also", "64x96", "--honest", f"again={SAMPLE}", "--cache", tmp_path,
               "--json", data, "--page", page]  # fmt: skip
    assert main([str(word) for word in command]) == 0, capsys.readouterr().err
    rows = {row["pictures"]: row for row in json.loads(data.read_text())["rows"]}
    assert rows["again"]["count"] == rows["again, input 64x96"]["count"] == 16
    assert rows["again, also mirrored and in other light"]["count"] == 48
    assert rows["usual frames"]["count"] == 12 * 3 * 2 and rows["held out, for the threshold"]["count"] == 4 * 3 * 2
    assert rows["again"]["told"] < 0.1 and rows["again"]["after"] == pytest.approx(rows["again"]["before"], abs=0.02)
    assert rows["noise"]["told"] == 1 and rows["noise"]["after"] < 0.8 * rows["noise"]["before"]
    assert f"| noise | 10 | {rows['noise']['told']:.1%} |" in page.read_text()
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "seen").rglob("*.npy")}
    assert main([str(word) for word in command]) == 0, capsys.readouterr().err
    assert kept == {path: path.stat().st_mtime_ns for path in (tmp_path / "seen").rglob("*.npy")} and kept

    depth = tmp_path / "d.safetensors"
    assert main(["calibrate", "depth", "--same-as", str(out), "--out", str(depth)]) == 0, capsys.readouterr().err
    backbone = load_backbone("rover-tiny")
    mine, its = load_head("depth", backbone, depth), load_head("segmentation", backbone, out)
    assert (mine.domain.mean == its.domain.mean).all() and mine.domain.threshold == its.domain.threshold
    bare = load_head("depth", backbone)
    assert all((a == b).all() for a, b in zip(mine.state_dict().values(), bare.state_dict().values()))


def test_a_head_on_another_layer_is_told_how_to_get_its_own_statistics(tmp_path, capsys) -> None:
    backbone = load_backbone("rover-tiny")
    head = create_head("segmentation", backbone)
    head.spec = dataclasses.replace(head.spec, taps=(*head.spec.taps[:-1], Tap(0)))
    features = torch.randn(20, 512, generator=torch.Generator().manual_seed(0))
    head.domain = fit(features[:12], features[12:])
    save_head(head, tmp_path / "other.safetensors")
    command = ["calibrate", "depth", "--same-as", tmp_path / "other.safetensors", "--out", tmp_path / "d.safetensors"]
    assert main([str(word) for word in command]) == 1
    assert "reads another last layer; calibrate this head with --bag or --data" in capsys.readouterr().err


def test_a_head_without_statistics_has_none_to_give(tmp_path, capsys) -> None:
    backbone = load_backbone("rover-tiny")
    save_head(create_head("segmentation", backbone), tmp_path / "bare.safetensors")
    command = ["calibrate", "depth", "--same-as", tmp_path / "bare.safetensors", "--out", tmp_path / "d.safetensors"]
    assert main([str(word) for word in command]) == 1
    assert "bare.safetensors holds no statistics; calibrate that head first" in capsys.readouterr().err
