"""Which place a frame shows, as one unit vector: frames of one place have vectors that point alike, whatever the light.

Without a file it is the generalised mean of the patches' features (Radenovic et al. 2018, here with signs). With one, which
`dino-perception places fit` makes of the user's own drives, it is VLAD (AnyLoc, Keetha et al. 2023): a vocabulary of directions,
and for each the sum of what the patches nearest to it differ from it, reduced by principal components.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from dino_perception.models.backbone import Backbone
from dino_perception.models.heads.base import Head, HeadSpec
from dino_perception.models.outputs import Output

POWER = 3
WORDS, SIZE = 32, 256
"""Directions of a vocabulary (AnyLoc, sec. 4), and numbers of the vector."""


def unit(x: Tensor, dim: int = -1) -> Tensor:
    """At unit length along an axis; zero stays zero."""
    return x * (x * x).sum(dim=dim, keepdim=True).clamp_min(1e-12).rsqrt()


class GeneralisedMean(nn.Module):
    """(B, C, h, w), and the share (B, h, w) of each patch that is image -> (B, C): the cubic mean, with its sign."""

    def __init__(self, channels: Sequence[int]):
        super().__init__()

    def forward(self, features: Tensor, share: Tensor) -> Tensor:
        mean = (features**POWER * share[:, None]).sum(dim=(2, 3)) / share.sum(dim=(1, 2))[:, None].clamp_min(1e-6)
        return mean.sign() * mean.abs().clamp_min(1e-12) ** (1 / POWER)


class Vlad(nn.Module):
    """(B, C, h, w), and the share (B, h, w) of each patch that is image -> (B, size).

    `words` (words, C) are unit vectors; `mean` (words * C,) and `components` (size, words * C) reduce what they give.
    """

    def __init__(self, channels: Sequence[int], words: int, size: int):
        super().__init__()
        self.register_buffer("words", torch.zeros(words, channels[0]))
        self.register_buffer("mean", torch.zeros(words * channels[0]))
        self.register_buffer("components", torch.zeros(size, words * channels[0]))

    def forward(self, features: Tensor, share: Tensor) -> Tensor:
        return torch.matmul(self.whole(features, share) - self.mean, self.components.T)

    def whole(self, features: Tensor, share: Tensor) -> Tensor:
        """(B, words * C) of unit length: before it is reduced."""
        x = unit(features.flatten(2), dim=1)
        cosine = torch.matmul(self.words[None], x)
        own = (cosine >= cosine.amax(dim=1, keepdim=True)).to(x.dtype) * share.flatten(1)[:, None]
        sums = torch.matmul(own, x.transpose(1, 2)) - own.sum(dim=2, keepdim=True) * self.words
        return unit(unit(sums).flatten(1))


class PlaceHead(Head):
    """Raw map: the vector (B, D) before it has unit length. Final array: at unit length, float32; the output size does not
    matter. Padding has no part in it, but for what the backbone's attention takes from there."""

    KIND = "place"
    OUTPUTS = (Output("vector", "vector"),)
    ARCHES = {"gem": GeneralisedMean, "vlad": Vlad}
    shares = True

    def __init__(self, spec: HeadSpec):
        super().__init__(spec)
        self.net = self.ARCHES[spec.arch](spec.channels, **spec.options)
        self.trained = spec.arch == "gem"  # there is nothing to train

    def forward(self, features: Tensor, share: Tensor | None = None) -> Tensor:
        return self.net(features, features.new_ones(len(features), *features.shape[2:]) if share is None else share)

    def reduce(self, raw: Tensor, height: int, width: int) -> tuple[Tensor, ...]:
        return (unit(raw),)

    @classmethod
    def complete(cls, spec: HeadSpec, backbone: Backbone) -> HeadSpec:
        options = {**(dict(words=WORDS, size=SIZE) if spec.arch == "vlad" else {}), **spec.options}
        return replace(spec, taps=spec.taps or (backbone.spec.depth - 1,), options=options, labels=(), depth_range=None)


HEAD = PlaceHead
