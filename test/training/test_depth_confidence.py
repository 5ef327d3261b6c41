"""A depth head's confidence is worth what was found on frames with true depth."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from dino_perception.cli.__main__ import main
from dino_perception.models.checkpoints import load_backbone
from dino_perception.models.heads import HeadError, load_head, save_head
from dino_perception.models.outputs import Output
from dino_perception.perception.geometry import letterbox
from dino_perception.perception.head_answers import answer
from dino_perception.perception.settings import HeadSettings
from dino_perception.training.datasets import DataError, open_dataset
from dino_perception.training.depth_confidence import FEWEST, worth
from dino_perception.training.evaluation.evaluate import common_grid

SAMPLE = Path(__file__).parents[2] / "data" / "sample_drive"
LEVELS = np.arange(256)


def pixels(errors: np.ndarray, each: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """`each` pixels at every level, all with the level's error."""
    return np.repeat(LEVELS, each).astype(np.uint8), np.repeat(errors, each)


def test_each_level_is_worth_the_error_that_was_found_there() -> None:
    errors = np.linspace(0.6, 0.02, 256)
    np.testing.assert_allclose(worth(*pixels(errors)), 255 * (1 - errors), atol=1)


def test_where_the_surest_levels_are_the_worst_they_are_worth_least() -> None:
    """As those of a network that cannot answer nearer than some bin."""
    errors = np.linspace(0.6, 0.1, 256)
    errors[-6:] = 0.1, 0.2, 0.3, 0.4, 0.5, 0.9
    found = np.array(worth(*pixels(errors)))
    np.testing.assert_allclose(found[-5:], 255 * (1 - errors[-5:]), atol=1)
    assert found[255] < found[0] < found[249]


def test_levels_of_few_pixels_are_worth_what_their_neighbours_are() -> None:
    levels, errors = pixels(np.linspace(0.6, 0.2, 256), 1000)
    kept = (levels < 60) | (levels > 200)
    lone = (np.array([130], np.uint8), np.array([5.0]))
    found = np.array(worth(np.concatenate([levels[kept], lone[0]]), np.concatenate([errors[kept], lone[1]])))
    np.testing.assert_allclose(found, 255 * np.linspace(0.4, 0.8, 256), atol=2)
    with pytest.raises(DataError, match="are too few"):
        worth(levels[: FEWEST - 1], errors[: FEWEST - 1])


def test_a_heads_file_keeps_it_and_a_percept_tells_it(tmp_path) -> None:
    head = load_head("depth", load_backbone("rover-tiny"))
    levels = tuple(int(v) for v in np.random.default_rng(0).integers(0, 256, 256))
    head.spec = dataclasses.replace(head.spec, worth=levels)
    save_head(head, tmp_path / "d.safetensors")
    again = load_head("depth", load_backbone("rover-tiny"), tmp_path / "d.safetensors")
    assert again.spec == head.spec
    raw = torch.arange(256, dtype=torch.uint8).view(16, 16)
    box = letterbox(480, 640, 32, 32, 16, 16)
    outputs = (Output("metres", "metres"), Output("confidence", "levels"))
    told = answer(again.spec, outputs, [torch.ones(16, 16), raw], box, HeadSettings()).confidence
    np.testing.assert_array_equal(told, np.array(levels)[box.crop(raw).numpy()])
    head.spec = dataclasses.replace(head.spec, worth=levels[1:])
    save_head(head, tmp_path / "d.safetensors")
    with pytest.raises(HeadError, match="256 whole numbers"):
        load_head("depth", load_backbone("rover-tiny"), tmp_path / "d.safetensors")


@pytest.mark.skipif(not SAMPLE.exists(), reason="the sample drive is not in data/")
def test_calibrated_confidence_is_one_less_the_error_that_is_found(tmp_path, capsys) -> None:
    """On the frames that it was learnt from the two have one mean."""
    from dino_perception.perception.perceiver import Perceiver
    from dino_perception.perception.settings import Settings

    out = tmp_path / "d.safetensors"
    command = ["calibrate", "depth", "--confidence", SAMPLE, "--limit", 6, "--input", "240x320", "--engine", "torch",
               "--cache", tmp_path, "--out", out]  # fmt: skip
    assert main([str(word) for word in command]) == 0, capsys.readouterr().err
    size = {"input_height": 240, "input_width": 320, "output_height": 120, "output_width": 160}
    settings = Settings.from_flat({"heads": ["depth"], "engine": "torch", "depth.weights": str(out), **size})
    perceiver = Perceiver(settings, cache=tmp_path / "engines", report=lambda line: None)
    said, found = [], []
    samples = open_dataset(SAMPLE, cache=tmp_path).samples
    for i in np.rint(np.linspace(0, len(samples) - 1, 6)).astype(int):
        frame = samples[i].frame()
        percept = perceiver.perceive([frame])[0]
        own = percept.depth.metres, percept.depth.confidence
        truth, metres, sure = common_grid(samples[i].truth("depth", frame.image), percept, *own)
        known = (truth > 0.1) & (truth <= 30)
        said.append(1 - sure[known] / 255)
        found.append(np.clip(np.abs(metres[known] / truth[known] - 1), 0, 1))
    perceiver.close()
    assert np.concatenate(said).mean() == pytest.approx(np.concatenate(found).mean(), abs=0.015)
    assert main(["calibrate", "segmentation", "--confidence", str(SAMPLE), "--out", str(out)]) == 1
    assert "--confidence is about depth" in capsys.readouterr().err
