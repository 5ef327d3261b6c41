"""How far each pixel is along the optical axis, in metres."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from dino_perception.models.backbone import Backbone
from dino_perception.models.heads.base import Head, HeadError, HeadSpec
from dino_perception.models.heads.decoders import LightDpt, Linear, SubPatch, resize
from dino_perception.models.outputs import Output

RANGE = (0.3, 100.0)  # metres: from a rover's bumper to where its camera's pixels stop telling distances apart
SPACINGS = ("log", "linear")
WEIGHTINGS = ("softmax", "relu", "sigmoid")


class Depth(Head):
    """Raw map: metres (B, 1, h, w). Final array: metres (B, H, W) float32.

    The network gives one number a depth bin; depth is the mean of the bins under weights made from these numbers
    (AdaBins, Bhat et al. 2021; the evaluation of DINOv3 uses 256 linear bins with relu weights).
    """

    KIND = "depth"
    OUTPUTS = (Output("metres", "metres"),)
    ARCHES = {"light": LightDpt, "fine": SubPatch, "linear": Linear}

    def __init__(self, spec: HeadSpec):
        super().__init__(spec)
        options = dict(spec.options)
        bins, spacing, self.weighting = (options.pop(key) for key in ("bins", "spacing", "weighting"))
        self.register_buffer("bins", depth_bins(*spec.depth_range, bins, spacing), persistent=False)
        self.net = self.ARCHES[spec.arch](spec.channels, bins, **options)

    def forward(self, *features: Tensor) -> Tensor:
        return bin_mean(self.net(*features), self.bins, self.weighting)

    def reduce(self, raw: Tensor, height: int, width: int) -> tuple[Tensor, ...]:
        return (resize(raw, (height, width))[:, 0],)

    @torch.no_grad()
    def answer_with(self, metres: Tensor) -> None:
        """Set the last bias such that the head, wherever it looks, answers with the distribution of `metres` (N,): what a
        training begins with (Lin et al. 2017, sec. 4.1, who do so for classes)."""
        edges = (self.bins[1:] + self.bins[:-1]) / 2
        share = torch.bucketize(metres, edges).bincount(minlength=len(self.bins)).to(self.bins)
        share = 0.99 * share / share.sum().clamp_min(1) + 0.01 / len(self.bins)
        logits = {"softmax": share.log(), "relu": 4 * len(self.bins) * share, "sigmoid": share.logit()}[self.weighting]
        self.net.out.bias.copy_(logits)

    @classmethod
    def complete(cls, spec: HeadSpec, backbone: Backbone) -> HeadSpec:
        linear = spec.arch == "linear"
        near, far = spec.depth_range or ((0.001, 100.0) if linear else RANGE)
        if not 0 < near < far or not math.isfinite(far):
            raise HeadError(f"the depth range is {near} to {far} m; accepted is 0 < nearest < farthest")
        default = (
            dict(bins=256, spacing="linear", weighting="relu", dropout=0.0)
            if linear
            else dict(bins=64, spacing="log", weighting="softmax", width=64 if spec.arch == "fine" else 48)
        )
        options = {**default, **spec.options}
        for name, accepted in (("spacing", SPACINGS), ("weighting", WEIGHTINGS)):
            if options[name] not in accepted:
                raise HeadError(f"'{name}' of the depth bins is {options[name]!r}; accepted are {', '.join(accepted)}")
        taps = spec.taps or ((backbone.spec.depth - 1,) if linear else backbone.spec.taps)
        return replace(spec, taps=taps, labels=(), depth_range=(float(near), float(far)), options=options)


HEAD = Depth


def depth_bins(near: float, far: float, count: int, spacing: str) -> Tensor:
    """`count` depths from `near` to `far` metres inclusive, evenly apart ("linear") or in even ratios ("log")."""
    if spacing == "linear":
        return torch.linspace(near, far, count)
    return torch.linspace(math.log(near), math.log(far), count).exp()


def bin_mean(logits: Tensor, bins: Tensor, weighting: str) -> Tensor:
    """(B, K, h, w) and (K,) metres -> (B, 1, h, w) metres.

    "relu": weights relu(logit) + 0.1, normalised (DINOv3's evaluation). "softmax": softmax. "sigmoid": sigmoid,
    normalised.
    """
    if weighting == "softmax":
        weights = torch.softmax(logits, dim=1)
    else:
        weights = torch.relu(logits) + 0.1 if weighting == "relu" else torch.sigmoid(logits)
        weights = weights / weights.sum(dim=1, keepdim=True)
    return (weights * bins.view(1, -1, 1, 1)).sum(dim=1, keepdim=True)
