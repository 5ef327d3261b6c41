"""The catalogue states what the released models are; nothing large is allocated to check it."""

from __future__ import annotations

import re

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from dino_perception.models import catalog, cost
from dino_perception.models.checkpoints import CLASSES

# Parameters in millions as measured on the original code, and GFLOPs at 512x512 from the DINOv3 paper (Fig. 16a).
MEASURED = {
    "dinov3-vits16": 21.601,
    "dinov3-vits16plus": 28.697,
    "dinov3-vitb16": 85.670,
    "dinov3-vitl16": 303.154,
    "dinov3-vith16plus": 840.634,
    "dinov3-vit7b16": 6716,
    "dinov3-convnext-tiny": 27.820,
    "dinov3-convnext-small": 49.455,
    "dinov3-convnext-base": 87.566,
    "dinov3-convnext-large": 196.230,
}
PAPER = {
    "dinov3-vits16": 63,
    "dinov3-vits16plus": 79,
    "dinov3-vitb16": 216,
    "dinov3-vitl16": 721,
    "dinov3-vith16plus": 1903,
    "dinov3-vit7b16": 14515,
}


@pytest.mark.parametrize("backbone_id", MEASURED)
def test_parameters_are_those_of_the_original_code(backbone_id: str) -> None:
    spec = catalog.get(backbone_id)
    training = spec.dim if spec.family == "dinov3-vit" else 0  # the mask token
    ours = (cost.parameters(spec) + training) / 1e6
    if spec.convolutional:  # the original counts its final norm once
        assert ours == pytest.approx(MEASURED[backbone_id], abs=0.001)
    else:
        assert ours == pytest.approx(MEASURED[backbone_id], rel=2e-5)


@pytest.mark.parametrize("backbone_id", PAPER)
def test_operations_agree_with_the_paper(backbone_id: str) -> None:
    assert cost.flops(catalog.get(backbone_id), 512, 512) / 1e9 == pytest.approx(PAPER[backbone_id], rel=0.015)


@pytest.mark.parametrize(
    "backbone_id", ["rover-tiny", "dinov3-vits16", "dinov3-convnext-small", "dinov2-vits14-reg", "dinov3-vit7b16"]
)
def test_operations_are_what_torch_counts(backbone_id: str) -> None:
    spec = catalog.get(backbone_id)
    height, width = 3 * spec.stride, 5 * spec.stride
    with torch.device("meta"):
        graph = CLASSES[spec.family](spec).at(height, width, [spec.depth - 1])
        pixels = graph.example()
    with FlopCounterMode(display=False) as counter:
        graph(pixels)
    assert cost.flops(spec, height, width) == counter.get_total_flops()


def test_rover_tiny_is_a_dinov3_of_five_to_six_million_parameters() -> None:
    spec = catalog.get("rover-tiny")
    assert 5e6 < cost.parameters(spec) < 6e6
    assert (spec.family, spec.patch, spec.dim, spec.depth, spec.dim // spec.heads, spec.registers) == (
        "dinov3-vit",
        16,
        256,
        8,
        64,
        4,
    )


def test_taps_are_those_that_dinov3_trained_its_heads_on() -> None:
    taps = {
        spec.depth: spec.taps
        for spec in map(catalog.get, catalog.all_ids())
        if not spec.convolutional and "chmv2" not in spec.id
    }
    assert taps == {8: (1, 3, 5, 7), 12: (2, 5, 8, 11), 24: (4, 11, 17, 23), 32: (7, 15, 23, 31), 40: (9, 19, 29, 39)}
    assert catalog.get("dinov3-vitl16-chmv2").taps == (5, 11, 17, 23)
    assert catalog.get("dinov3-convnext-tiny").taps == (0, 1, 2, 3)


def test_satellite_and_canopy_weights_have_their_own_normalisation() -> None:
    kinds = {
        spec.id: spec.normalisation
        for spec in map(catalog.get, catalog.all_ids())
        if spec.normalisation != catalog.IMAGENET
    }
    assert kinds == {
        "dinov3-vitl16-sat": catalog.SATELLITE,
        "dinov3-vit7b16-sat": catalog.SATELLITE,
        "dinov3-vitl16-chmv2": catalog.CANOPY,
    }


def test_every_entry_is_consistent_and_every_released_dinov3_is_there() -> None:
    entries = [catalog.get(name) for name in catalog.all_ids()]
    for spec in entries:
        assert spec.access == "open" or spec.access.startswith("https://")
        assert spec.licence and spec.data and all(0 <= tap < spec.depth for tap in spec.taps)
        if not spec.convolutional:
            assert spec.dim % spec.heads == 0 and spec.dim // spec.heads in (64, 128)
        assert spec.file or spec.timm or spec.huggingface or spec.id == "rover-tiny"
    files = [spec.file for spec in entries if spec.file]
    assert len(set(files)) == len(files)
    hashes = {m[1] for f in files if (m := re.search("-([0-9a-f]{8})\\.pth$", f))}
    assert hashes == {
        "08c60483",
        "4057cbaa",
        "73cec8be",
        "8aa4cbdd",
        "46503df0",
        "7c1da9a5",
        "a955f4ea",
        "eadcf0ff",
        "a6675841",
        "21b726bb",
        "296db49d",
        "801f2ba9",
        "61fa432d",
    }
    assert [spec.id for spec in entries if spec.recommended] == ["dinov3-vits16plus"]


def test_the_recommended_one_beats_both_small_ones_in_every_published_column() -> None:
    plus, small, old = (catalog.get(name).published for name in ("dinov3-vits16plus", "dinov3-vits16", "dinov2-vits14"))
    for other in (small, old):
        assert plus.ade20k > other.ade20k and plus.nyuv2 < other.nyuv2 and plus.navi > other.navi


def test_an_unknown_id_is_answered_with_those_that_exist() -> None:
    with pytest.raises(KeyError) as refused:
        catalog.get("dinov3-vits14")
    assert str(refused.value).startswith(
        "there is no backbone 'dinov3-vits14'; the ids are rover-tiny, dinov3-vits16, "
    )
