"""What each patch looks like, as a unit vector: two frames match where these agree. No weights."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor, nn

from dino_perception.models.backbone import Backbone
from dino_perception.models.heads.base import HeadSpec
from dino_perception.models.heads.weightless import WeightlessHead
from dino_perception.models.outputs import Output

CELL = 16
"""Pixels between descriptors, at most: a 640x480 image has 1200 of them. A ConvNeXt's last stage would give 300."""


class CorrespondencesHead(WeightlessHead):
    """Raw map: the features of one layer as they are, of the deepest whose cells are at most CELL pixels apart: a ViT's
    last, a ConvNeXt's third stage. Final array: descriptors (B, N, D) float32 of unit length, one a patch, row by row; the
    output size does not matter."""

    KIND = "correspondences"
    OUTPUTS = (Output("descriptors", "descriptors"),)
    ARCHES = {"cosine": nn.Identity}

    def forward(self, *features: Tensor) -> Tensor:
        return features[0]

    def reduce(self, raw: Tensor, height: int, width: int) -> tuple[Tensor, ...]:
        x = raw.flatten(2).transpose(1, 2)
        return (x * (x * x).sum(dim=-1, keepdim=True).clamp_min(1e-12).rsqrt(),)

    @classmethod
    def complete(cls, spec: HeadSpec, backbone: Backbone) -> HeadSpec:
        fine = [tap for tap in range(backbone.spec.depth) if backbone.spec.tap_stride(tap) <= CELL]
        return replace(spec, taps=spec.taps or (fine[-1],), labels=(), depth_range=None)


HEAD = CorrespondencesHead
