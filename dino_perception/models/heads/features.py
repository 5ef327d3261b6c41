"""What the backbone sees, patch by patch, for whoever wants to look at it (perception/feature_colours.py). No weights."""

from __future__ import annotations

from torch import Tensor, nn

from dino_perception.models.heads.weightless import WeightlessHead
from dino_perception.models.outputs import Output


class FeaturesHead(WeightlessHead):
    """Raw map and final array: the last layer's features as they are, (B, D, h, w) float32 on the patch grid of the
    network's input, padding included; the output size does not matter."""

    KIND = "features"
    OUTPUTS = (Output("map", "features"),)
    ARCHES = {"last": nn.Identity}

    def forward(self, *features: Tensor) -> Tensor:
        return features[0]

    def reduce(self, raw: Tensor, height: int, width: int) -> tuple[Tensor, ...]:
        return (raw * 1,)  # a graph must compute something: engines refuse one that hands on its input


HEAD = FeaturesHead
