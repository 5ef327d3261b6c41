"""How far each pixel is along the optical axis, in metres."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from dino_perception.models.backbone import Backbone
from dino_perception.models.heads.base import Head, HeadError, HeadSpec
from dino_perception.models.heads.decoders import LightDpt, Linear, LinearWithToken, SubPatch, resize
from dino_perception.models.heads.dpt import Dpt
from dino_perception.models.heads.one_map import Pyramid
from dino_perception.models.outputs import Output
from dino_perception.models.taps import Tap

RANGE = (0.3, 100.0)  # metres: from a rover's bumper to where its camera's pixels stop telling distances apart
SPACINGS = ("log", "linear", "mixlog")
WEIGHTINGS = ("softmax", "relu", "sigmoid", "bare-relu")
DIRECT = ("relu", "sigmoid", "softplus")
LINEAR = dict(bins=256, spacing="linear", weighting="relu")
DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "light": dict(bins=64, spacing="log", weighting="softmax", width=48),
    "fine": dict(bins=64, spacing="log", weighting="softmax", width=64),
    "linear": dict(LINEAR, dropout=0.0),
    "linear-cls": dict(LINEAR, upsample=4),
    "dpt": dict(
        bins=0,
        spacing="linear",
        weighting="relu",
        width=256,
        readout=True,
        bias=False,
        project=True,
        patch=0,
        mix=True,
        hidden=32,
    ),
    "pyramid": dict(bins=0, spacing="linear", weighting="softplus", widths=[32, 64, 96, 128], width=160),
}
"""Every architecture's own numbers. `bins` 0: the network gives depth itself, see `direct`."""


class DepthHead(Head):
    """Raw map: metres (B, 1, h, w). Final arrays: metres (B, H, W) float32 and, where there are bins, confidence (B, H, W)
    uint8, 255 = all weight on one bin.

    The network gives one number a depth bin; depth is the mean of the bins under weights made from these numbers
    (AdaBins, Bhat et al. 2021; the evaluation of DINOv3 uses 256 linear bins with relu weights). Without bins the network
    gives one number, which `direct` makes metres of; it then says nothing of how sure it is, and has no confidence.
    """

    KIND = "depth"
    ARCHES = {
        "light": LightDpt,
        "fine": SubPatch,
        "linear": Linear,
        "linear-cls": LinearWithToken,
        "dpt": Dpt,
        "pyramid": Pyramid,
    }
    OUTPUTS = (Output("metres", "metres"), Output("confidence", "levels"))

    def __init__(self, spec: HeadSpec):
        super().__init__(spec)
        options = dict(spec.options)
        bins, spacing, self.weighting = (options.pop(key) for key in ("bins", "spacing", "weighting"))
        if bins:
            self.register_buffer("bins", depth_bins(*spec.depth_range, bins, spacing), persistent=False)
        else:
            self.bins = None
            self.OUTPUTS = self.OUTPUTS[:1]
        self.net = self.ARCHES[spec.arch](spec.channels, bins or 1, **options)

    def forward(self, *features: Tensor) -> Tensor:
        raw = self.net(*features)
        if self.bins is None:
            return direct(raw, self.weighting, *self.spec.depth_range)
        return bin_mean(raw, self.bins, self.weighting)

    def arrays(self, features: Sequence[Tensor], height: int, width: int) -> tuple[Tensor, ...]:
        if self.bins is None:
            return super().arrays(features, height, width)
        weights = bin_weights(self.net(*features), self.weighting)
        metres = mean_of(weights, self.bins)
        sure = resize(255 * certainty(weights, self.bins, metres), (height, width))[:, 0]
        return *self.reduce(metres, height, width), sure.round().to(torch.uint8)

    def reduce(self, raw: Tensor, height: int, width: int) -> tuple[Tensor, ...]:
        return (resize(raw, (height, width))[:, 0],)

    @torch.no_grad()
    def answer_with(self, metres: Tensor) -> None:
        """Set the last bias such that the head, wherever it looks, answers with the distribution of `metres` (N,): what a
        training begins with (Lin et al. 2017, sec. 4.1, who do so for classes). Without bins it is left as it is."""
        if self.bins is None:
            return
        edges = (self.bins[1:] + self.bins[:-1]) / 2
        share = torch.bucketize(metres, edges).bincount(minlength=len(self.bins)).to(self.bins)
        share = 0.99 * share / share.sum().clamp_min(1) + 0.01 / len(self.bins)
        logits = {"softmax": share.log(), "relu": 4 * len(self.bins) * share, "sigmoid": share.logit()}
        logits = logits.get(self.weighting, logits["relu"])
        self.net.out.bias.copy_(logits)

    @classmethod
    def complete(cls, spec: HeadSpec, backbone: Backbone) -> HeadSpec:
        linear = spec.arch.startswith("linear")
        near, far = spec.depth_range or ((0.001, 100.0) if linear else RANGE)
        if not 0 < near < far or not math.isfinite(far):
            raise HeadError(f"the depth range is {near} to {far} m; accepted is 0 < nearest < farthest")
        options = {**DEFAULTS.get(spec.arch, {}), **spec.options}
        if spec.arch == "dpt":
            options.setdefault("pyramid", [backbone.spec.dim // n for n in (8, 4, 2, 1)])
        weightings = WEIGHTINGS if options.get("bins", 1) else DIRECT
        for name, accepted in (("spacing", SPACINGS), ("weighting", weightings)):
            if options.get(name, accepted[0]) not in accepted:
                raise HeadError(f"'{name}' of the depth bins is {options[name]!r}; accepted are {', '.join(accepted)}")
        return replace(
            spec,
            taps=spec.taps or _default_taps(spec.arch, options, backbone),
            labels=(),
            depth_range=(float(near), float(far)),
            options=options,
        )


HEAD = DepthHead


def _default_taps(arch: str, options: Mapping[str, Any], backbone: Backbone) -> tuple[Tap, ...]:
    """As the architecture was first trained: DINOv2's depth heads read raw layers with their CLS tokens."""
    token = arch == "linear-cls" or (arch == "dpt" and options["readout"])
    layers = backbone.spec.taps if arch in ("light", "fine", "dpt") else (backbone.spec.depth - 1,)
    return tuple(Tap(layer, norm=not token, cls=token) for layer in layers)


def depth_bins(near: float, far: float, count: int, spacing: str) -> Tensor:
    """`count` depths from `near` to `far` metres inclusive, evenly apart ("linear"), in even ratios ("log"), or from these
    to those by and by ("mixlog", CHMv2)."""
    even = torch.linspace(near, far, count)
    if spacing == "linear":
        return even
    ratios = torch.linspace(math.log(near), math.log(far), count).exp()
    return ratios if spacing == "log" else torch.lerp(ratios, even, torch.linspace(0, 1, count))


def bin_mean(logits: Tensor, bins: Tensor, weighting: str) -> Tensor:
    """(B, K, h, w) and (K,) metres -> (B, 1, h, w) metres."""
    return mean_of(bin_weights(logits, weighting), bins)


def bin_weights(logits: Tensor, weighting: str) -> Tensor:
    """(B, K, h, w) -> the bins' weights, same shape, with sum 1 over K.

    "relu": weights relu(logit) + 0.1, normalised (DINOv3's evaluation). "bare-relu": the same with 1e-8 (CHMv2).
    "softmax": softmax. "sigmoid": sigmoid, normalised.
    """
    if weighting == "softmax":
        return torch.softmax(logits, dim=1)
    least = {"relu": 0.1, "bare-relu": 1e-8}
    weights = torch.relu(logits) + least[weighting] if weighting in least else torch.sigmoid(logits)
    return weights / weights.sum(dim=1, keepdim=True)


def mean_of(weights: Tensor, bins: Tensor) -> Tensor:
    """(B, K, h, w) with sum 1 over K and (K,) metres -> (B, 1, h, w) metres."""
    return (weights * bins.view(1, -1, 1, 1)).sum(dim=1, keepdim=True)


def certainty(weights: Tensor, bins: Tensor, metres: Tensor) -> Tensor:
    """1 - s, with s the standard deviation of the bins under their weights over their mean `metres` (B, 1, h, w), 0..1: 1
    where one bin has all the weight, 0.9 at a spread of a tenth of the depth.

    A bin at more than twice the depth counts as one at twice the depth: a hundredth of the weight on the farthest bin, as
    heads put it beside every near pixel, would else outweigh all the rest (measured: docs/day_one.md). The deviations are
    taken before they are squared: a difference of two means of squares would lose a small spread in bfloat16.
    """
    off = (bins.view(1, -1, 1, 1) / metres - 1).clamp(-1, 1)
    return 1 - (weights * off * off).sum(dim=1, keepdim=True).sqrt()


def direct(x: Tensor, way: str, near: float, far: float) -> Tensor:
    """The network's own number as metres, held between `near` and `far`. "relu": relu(x) + near (DINOv2's DPT).
    "sigmoid": sigmoid(x) far (Depth Anything V2). "softplus": softplus(x) + near (dinov3_ros)."""
    metres = {"relu": torch.relu, "sigmoid": torch.sigmoid, "softplus": torch.nn.functional.softplus}[way](x)
    metres = metres * far if way == "sigmoid" else metres + near
    return metres.clamp(near, far)
