"""What each patch looks like, as a unit vector: two frames match where these agree. No weights."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor, nn

from ..backbone import Backbone
from .base import Head, HeadSpec


class Correspondences(Head):
    """Raw map: the last layer's features as they are. Final array: descriptors (B, N, D) float32 of unit length, one
    a patch, row by row; the output size does not matter."""

    KIND = "correspondences"
    ARCHES = {"cosine": nn.Identity}

    def __init__(self, spec: HeadSpec):
        super().__init__(spec)
        self.trained = True  # there is nothing to train

    def forward(self, *features: Tensor) -> Tensor:
        return features[0]

    def reduce(self, raw: Tensor, height: int, width: int) -> tuple[Tensor, ...]:
        x = raw.flatten(2).transpose(1, 2)
        return (x * (x * x).sum(dim=-1, keepdim=True).clamp_min(1e-12).rsqrt(),)

    @classmethod
    def needs_weights(cls) -> bool:
        return False

    @classmethod
    def complete(cls, spec: HeadSpec, backbone: Backbone) -> HeadSpec:
        return replace(spec, taps=spec.taps or (backbone.spec.depth - 1,), labels=(), depth_range=None)


HEAD = Correspondences
