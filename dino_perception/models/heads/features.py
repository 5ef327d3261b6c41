"""What the backbone sees, patch by patch, for whoever wants to look at it (perception/feature_colours.py). No weights."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor, nn

from dino_perception.models.backbone import Backbone
from dino_perception.models.heads.base import Head, HeadSpec
from dino_perception.models.outputs import Output


class FeaturesHead(Head):
    """Raw map and final array: the last layer's features as they are, (B, D, h, w) float32 on the patch grid of the
    network's input, padding included; the output size does not matter."""

    KIND = "features"
    OUTPUTS = (Output("map", "features"),)
    ARCHES = {"last": nn.Identity}

    def __init__(self, spec: HeadSpec):
        super().__init__(spec)
        self.trained = True  # there is nothing to train

    def forward(self, *features: Tensor) -> Tensor:
        return features[0]

    def reduce(self, raw: Tensor, height: int, width: int) -> tuple[Tensor, ...]:
        return (raw * 1,)  # a graph must compute something: engines refuse one that hands on its input

    @classmethod
    def needs_weights(cls) -> bool:
        return False

    @classmethod
    def complete(cls, spec: HeadSpec, backbone: Backbone) -> HeadSpec:
        return replace(spec, taps=spec.taps or (backbone.spec.depth - 1,), labels=(), depth_range=None)


HEAD = FeaturesHead
