"""The gate: what passes is right, and every way of being wrong that DINO engines have shown is caught."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch

from dino_perception.engines.base import EngineError, Program
from dino_perception.engines.eager import Eager
from dino_perception.engines.parity import SURE, Gate, Reference, compare, meanings_of, summary
from dino_perception.engines.parity_pictures import parity_inputs
from dino_perception.models.checkpoints import load_backbone
from dino_perception.models.heads.base import load_head


def engine_of(module, example):
    return Eager().compile(Program(module, example), "float32", 0)


def failures(reference: Reference, module) -> list[str]:
    return Gate().failures(reference.compare(engine_of(module, reference.inputs[0])))


@pytest.fixture(scope="module")
def reference(vit):
    return Reference(vit, parity_inputs((vit.example(),)), torch.device("cpu"))


def test_the_reference_agrees_with_itself(reference, vit):
    record = reference.compare(engine_of(vit, reference.inputs[0]))
    assert record["frames"] == 3 and not Gate().failures(record)
    assert all(output["cosine_worst"] > 0.999999 for output in record["outputs"])


@pytest.mark.parametrize("block", range(8))
def test_a_missing_block_fails(reference, vit, block):
    """Each block of the graph counts: random weights with LayerScale near one do not hide a lost block."""
    broken = copy.deepcopy(vit)
    scales = [
        p for name, p in broken.named_parameters() if f"blocks.{block}." in name and name.endswith(("scale1", "scale2"))
    ]
    assert len(scales) == 2
    for scale in scales:
        scale.zero_()
    assert failures(reference, broken)


def test_swapped_height_and_width_fails(reference, vit):
    class Transposed(torch.nn.Module):
        def forward(self, pixels):
            return tuple(t.transpose(2, 3).reshape(t.shape) for t in vit(pixels))

    assert failures(reference, Transposed())


def test_one_bad_patch_fails_by_the_worst_and_not_by_the_mean(reference, vit):
    class Speck(torch.nn.Module):
        def forward(self, pixels):
            first, last = vit(pixels)
            last = last.clone()
            last[:, :, 1, 2] = last[:, :, 1, 2].flip(1)
            return first, last

    found = failures(reference, Speck())
    assert len(found) == 2 and all("output 1" in text for text in found)
    generous = Gate(cosine_mean=0.9)
    record = reference.compare(engine_of(Speck(), reference.inputs[0]))
    assert [text for text in generous.failures(record) if "cosine_worst" in text] == generous.failures(record) != []


def test_nan_and_inf_fail(reference, vit):
    for poison in (math.nan, math.inf):

        class Poisoned(torch.nn.Module):
            def forward(self, pixels):
                maps = [t.clone() for t in vit(pixels)]
                maps[0][0, 0, 0, 0] = poison
                return tuple(maps)

        assert any("1 NaN or Inf" in text or "3 NaN or Inf" in text for text in failures(reference, Poisoned()))


def test_the_worst_frame_counts_and_not_the_best(reference, vit):
    class SometimesWrong(torch.nn.Module):
        calls = 0

        def forward(self, pixels):
            self.calls += 1
            maps = [t.clone() for t in vit(pixels)]
            if self.calls == 2:
                maps[0][:, :, 0, 0] *= -1
            return tuple(maps)

    (output, _) = reference.compare(engine_of(SometimesWrong(), reference.inputs[0]))["outputs"]
    assert output["cosine_worst"] == pytest.approx(-1) and output["cosine_mean"] > 0.9


def test_numbers_stay_numbers_when_the_output_is_none():
    nothing = compare("features", torch.ones(1, 4, 2, 2), torch.full((1, 4, 2, 2), math.nan))
    assert (nothing["cosine_mean"], nothing["cosine_worst"], nothing["nonfinite"]) == (-1, -1, 16)


def test_a_constant_output_fails(reference, vit):
    class Flat(torch.nn.Module):
        def forward(self, pixels):
            return tuple(torch.ones_like(t) for t in vit(pixels))

    assert failures(reference, Flat())


def test_cosine_matches_numpy():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 1, 5, 3, 4)).astype(np.float32)
    numbers = compare("features", torch.from_numpy(a), torch.from_numpy(b))
    cosine = (a * b).sum(1) / np.sqrt((a * a).sum(1) * (b * b).sum(1))
    assert numbers["cosine_mean"] == pytest.approx(cosine.mean(), abs=1e-6)
    assert numbers["cosine_worst"] == pytest.approx(cosine.min(), abs=1e-6)


def test_masks_confidences_and_depths_are_compared_in_their_own_terms():
    mask = torch.arange(100, dtype=torch.uint8).reshape(1, 10, 10) % 5
    other = mask.clone()
    other[0, 0, :3] += 1
    assert compare("labels", mask, other)["label_agreement"] == pytest.approx(0.97)
    assert compare("levels", mask, mask + 3)["level_difference"] == pytest.approx(3.0)

    depth = torch.full((1, 10, 10), 4.0)
    depth[0, 0, 0] = math.nan
    close = depth * 1.02
    close[0, 0, 1] = math.nan
    numbers = compare("metres", depth, close)
    assert numbers["depth_abs_rel"] == pytest.approx(0.02, rel=1e-4)
    assert numbers["unknown_difference"] == pytest.approx(0.01)
    assert numbers["nonfinite"] == 0
    assert Gate().failures({"outputs": [compare("metres", depth, torch.full_like(depth, math.nan))]})


def test_boxes_need_a_partner_of_their_class_in_both():
    boxes = torch.tensor(
        [[[0, 0, 10, 10, 0.9, 1], [20, 20, 40, 30, 0.5, 2], [50, 50, 60, 60, 0.1, 1], [0] * 6]]
    ).float()
    assert compare("boxes", boxes, boxes.flip(1))["box_agreement"] == 1, "in whatever order"
    moved = boxes.clone()
    moved[0, 1, :4] += torch.tensor([1.0, 0, 1, 0])  # IoU 19 / 21
    assert compare("boxes", boxes, moved)["box_agreement"] == 1
    moved[0, 1, 5] = 3
    assert compare("boxes", boxes, moved)["box_agreement"] == pytest.approx(2 / 4)
    unsure = boxes.clone()
    unsure[0, 2, :4] += 30  # below SURE nobody minds
    assert unsure[0, 2, 4] < SURE and compare("boxes", boxes, unsure)["box_agreement"] == 1
    assert Gate().failures({"outputs": [compare("boxes", boxes, torch.zeros_like(boxes))]})


def test_what_an_output_means_is_said_and_not_guessed(vit):
    assert meanings_of(vit, 2) == ("features", "features")
    backbone = load_backbone("rover-tiny")
    for kind, meanings in [
        ("segmentation", ("labels", "levels")),
        ("depth", ("metres", "levels")),
        ("correspondences", ("descriptors",)),
    ]:
        assert meanings_of(load_head(kind, backbone).at(32, 48), len(meanings)) == meanings
    with pytest.raises(EngineError, match="Identity gives 1 outputs and says of 0 what they mean"):
        meanings_of(torch.nn.Identity(), 1)


def test_pictures_fill_a_batch_with_different_ones():
    inputs = parity_inputs((torch.zeros(2, 48, 64, 3, dtype=torch.uint8),))
    assert len(inputs) >= 3
    for (pixels,) in inputs:
        assert pixels.shape == (2, 48, 64, 3) and pixels.dtype == torch.uint8
        assert pixels.float().std() > 10 and not torch.equal(pixels[0], pixels[1])


def test_a_record_reads_as_one_line(reference, vit):
    line = summary(reference.compare(engine_of(vit, reference.inputs[0])))
    assert line == "cosine 1.00000 (worst 1.00000); cosine 1.00000 (worst 1.00000) on 3 frames"
