"""`calibrate` needs no labels; `train` writes the same statistics by itself."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from small_data import SIZE

from dino_perception.cli.__main__ import main
from dino_perception.models.checkpoints import load_backbone
from dino_perception.models.heads import load_head

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
