"""The model that ships: whole, small, described, and as good on the sample drive as it was when it was shipped.

The sample drive is a world and a style that nothing was trained on. A head, an engine or a preprocessing that has changed
for the worse shows here.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from dino_perception.models.checkpoints import BUNDLED, load_backbone
from dino_perception.models.heads import load_head
from dino_perception.perception.perceiver import Perceiver
from dino_perception.perception.settings import Settings
from dino_perception.training import report
from dino_perception.training.datasets import open_dataset
from dino_perception.training.evaluation import evaluate

SAMPLE = Path(__file__).parents[2] / "data" / "sample_drive"
FILES = [BUNDLED / f"rover-tiny{part}.safetensors" for part in ("", "-segmentation", "-depth")]


@pytest.fixture(scope="module")
def numbers(tmp_path_factory):
    """What eight frames of the sample drive say at full size."""
    if not SAMPLE.exists():
        pytest.skip("the sample drive is not in data/")
    perceiver = Perceiver(Settings.from_flat({"engine": "torch"}), cache=tmp_path_factory.mktemp("engines"),
                          report=lambda line: None)
    try:
        data = open_dataset(SAMPLE, cache=tmp_path_factory.mktemp("cache"))
        return report.as_data(evaluate(perceiver, data, gaps=(3,), pairs=4, limit=8))
    finally:
        perceiver.close()


def test_it_is_complete_small_and_trained():
    assert sum(file.stat().st_size for file in FILES) < 15e6
    backbone = load_backbone("rover-tiny")
    assert backbone.trained
    for kind in ("segmentation", "depth"):
        head = load_head(kind, backbone)
        assert head.trained and head.spec.backbone_hash == backbone.weights_hash
        assert head.spec.training["frames"] > 0 and head.spec.metrics["validation"]


def test_it_tells_classes_better_than_colour_does(numbers):
    """It reached 0.551, colour that has seen half of the very frames 0.513."""
    s = numbers["segmentation"]
    assert s["miou"] > 0.53 and s["miou"] > s["baseline_miou"]
    assert s["iou"]["sky"] > 0.98 and s["iou"]["big_rock"] > 0.08


def test_it_knows_depth_better_than_flat_ground_does(numbers):
    """It reached 0.105 and 0.883, a plane at the camera's true height and tilt 0.112."""
    d = numbers["depth"]
    assert d["abs_rel"] < 0.11 and d["abs_rel"] < d["baseline_abs_rel"] and d["delta1"] > 0.87


def test_its_matches_are_right(numbers):
    row = numbers["correspondences"]["3"]
    assert row["pck4"] > 0.97 and row["matches"] > 300
