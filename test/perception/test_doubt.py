"""A frame unlike the training has low confidence, is told, and says nothing where asked; others stay as they are."""

from __future__ import annotations

import dataclasses

import cv2
import numpy as np
import pytest
import torch

from dino_perception.models.checkpoints import load_backbone
from dino_perception.models.domain import fit, summary
from dino_perception.models.heads import load_head, save_head
from dino_perception.perception.doubt import belief
from dino_perception.perception.frame import IGNORE, Frame
from dino_perception.perception.perceiver import Perceiver
from dino_perception.perception.settings import Settings

SIZE = {"input_height": 96, "input_width": 128, "output_height": 48, "output_width": 64, "engine": "torch"}


def scene(seed: int) -> np.ndarray:
    """Ground with coarse blotches under a bright sky."""
    rng = np.random.default_rng(seed)
    image = cv2.resize(rng.integers(60, 160, (6, 8, 3), np.uint8), (128, 96), interpolation=cv2.INTER_CUBIC)
    image[: 30 + seed % 8] = (150, 180, 220)
    return image


def noise(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (96, 128, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def perceiver(tmp_path_factory):
    """The bundled heads with statistics of such scenes."""
    folder = tmp_path_factory.mktemp("heads")
    backbone = load_backbone("rover-tiny")
    net = backbone.at(96, 128, [7])
    with torch.inference_mode():
        seen = torch.stack([summary(net(torch.from_numpy(scene(i))[None])[0][0]) for i in range(30)])
    settings = {"heads": ["segmentation", "depth"], **SIZE}
    for kind in settings["heads"]:
        head = load_head(kind, backbone)
        head.domain = fit(seen[:20].clone(), seen[20:].clone())
        save_head(head, folder / f"{kind}.safetensors")
        settings[f"{kind}.weights"] = str(folder / f"{kind}.safetensors")
    return Perceiver(Settings.from_flat(settings), cache=folder / "cache", report=lambda line: None)


def percept(perceiver, image: np.ndarray, **domain: bool):
    settings = perceiver.settings
    perceiver.settings = dataclasses.replace(settings, domain=dataclasses.replace(settings.domain, **domain))
    try:
        return perceiver.perceive([Frame("camera", 0, "optical", image)])[0]
    finally:
        perceiver.settings = settings


def test_usual_frames_are_left_as_they_are(perceiver) -> None:
    seen, plain = percept(perceiver, scene(40)), percept(perceiver, scene(40), check=False)
    assert set(seen.strangeness) == {"segmentation", "depth"} and max(seen.strangeness.values()) <= 1
    assert np.array_equal(seen.segmentation.confidence, plain.segmentation.confidence) and not plain.strangeness


def test_noise_has_less_confidence_and_says_nothing_where_asked(perceiver) -> None:
    seen, plain = percept(perceiver, noise(1)), percept(perceiver, noise(1), check=False)
    strange = seen.strangeness["segmentation"]
    assert strange > 1.5
    lowered = plain.segmentation.confidence * strange**-2
    assert np.abs(seen.segmentation.confidence - lowered).max() <= 1
    assert np.array_equal(seen.segmentation.mask, plain.segmentation.mask)
    assert np.array_equal(seen.depth.metres, plain.depth.metres)
    assert np.abs(seen.depth.confidence - plain.depth.confidence * belief(seen.strangeness["depth"])).max() <= 1
    silent = percept(perceiver, noise(1), ignore=True)
    assert (silent.segmentation.mask == IGNORE).all() and not silent.segmentation.confidence.any()
    assert np.isnan(silent.depth.metres).all() and not silent.depth.confidence.any()


def test_padding_is_no_part_of_the_frame(perceiver) -> None:
    """The left two thirds of a scene, beside padding, are as usual as the scene."""
    narrow = np.ascontiguousarray(scene(41)[:, :80])
    assert (
        percept(perceiver, narrow).strangeness["segmentation"]
        < percept(perceiver, noise(2)).strangeness["segmentation"]
    )
    assert percept(perceiver, narrow).strangeness["segmentation"] < 1.5
