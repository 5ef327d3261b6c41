"""What decoders write their own way is what torch computes: a transposed convolution, a class for every pixel."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dino_perception.models import catalog
from dino_perception.models.checkpoints import load_backbone, untrained
from dino_perception.models.heads import create_head, load_head
from dino_perception.models.heads.decoders import Unfold
from dino_perception.models.heads.segmentation import NO_CLASS


def shipped(kind: str) -> Unfold:
    return load_head(kind, load_backbone("rover-tiny", "")).net.unfold


@pytest.mark.parametrize(
    "unfold",
    [lambda: shipped("segmentation"), lambda: shipped("depth"), lambda: Unfold(7, 5, 2), lambda: Unfold(3, 8, 4)],
    ids=["segmentation that ships", "depth that ships", "random, factor 2", "random, factor 4"],
)
def test_unfolding_is_a_transposed_convolution_with_the_same_weights(unfold) -> None:
    unfold = unfold()
    channels, outputs, factor, _ = unfold.weight.shape
    transposed = nn.ConvTranspose2d(channels, outputs, factor, stride=factor)
    transposed.load_state_dict(unfold.state_dict())  # the same names and shapes: files of either fit the other
    x = torch.randn(2, channels, 6, 9, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.allclose(unfold(x), transposed(x), rtol=1e-5, atol=1e-5)
        assert torch.allclose(unfold.double()(x.double()), transposed.double()(x.double()), rtol=1e-13, atol=1e-13)


def test_a_mask_names_the_first_class_of_the_largest_logit() -> None:
    head = create_head("segmentation", untrained(catalog.get("rover-tiny")))
    logits = torch.randint(-2, 3, (2, 5, 40, 50), generator=torch.Generator().manual_seed(0)).float()  # many ties
    mask, _ = head.reduce(logits, 40, 50)
    assert torch.equal(mask.long(), logits.max(dim=1).indices)


def test_a_pixel_whose_logits_are_not_numbers_has_no_class() -> None:
    head = create_head("segmentation", untrained(catalog.get("rover-tiny")))
    logits = torch.zeros(1, 5, 4, 4)
    logits[0, 3, 1, 2] = torch.nan
    mask, _ = head.reduce(logits, 4, 4)
    assert mask[0, 1, 2] == NO_CLASS and (mask == NO_CLASS).sum() == 1
