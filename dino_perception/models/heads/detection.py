"""Which objects there are, and where: boxes with a class and a score."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from dino_perception.models.backbone import Backbone
from dino_perception.models.heads.base import Head, HeadError, HeadSpec
from dino_perception.models.heads.boxes import corners, kept, strongest
from dino_perception.models.heads.fcos import Fcos
from dino_perception.models.outputs import Output

FLOOR = 0.05
"""Boxes with a lower score are left out: nobody would look at them."""
DEFAULTS = dict(width=64, convolutions=2, up=1, down=2, groups=8, candidates=200, overlap=0.6, root=True, least=0.3)
"""`candidates` boxes go into the suppression of those that overlap a better one of their class by `overlap` (IoU). The
score is the product of the class's probability and the centreness, and with `root` its square root. `least` is the
score from which a box is told where the user sets none."""
NETWORK = ("width", "convolutions", "up", "down", "groups")


class DetectionHead(Head):
    """Raw map: (B, L, K + 8), see `Fcos`. Final array: boxes (B, N, 6) float32, N the candidates, by falling score: left,
    top, right, bottom in pixels of the network's input, score, class; score 0 where there is no box. The output size does
    not matter."""

    KIND = "detection"
    ARCHES = {"fcos": Fcos}
    OUTPUTS = (Output("boxes", "boxes"),)

    def __init__(self, spec: HeadSpec):
        super().__init__(spec)
        options = dict(spec.options)
        self.candidates, self.overlap = int(options["candidates"]), float(options["overlap"])
        self.root = bool(options["root"])
        network = {name: options[name] for name in (*NETWORK, "stride")}
        self.net = self.ARCHES[spec.arch](spec.channels, len(spec.labels), **network)

    def forward(self, *features: Tensor) -> Tensor:
        return self.net(*features)

    def reduce(self, raw: Tensor, height: int, width: int) -> tuple[Tensor, ...]:
        logits, distances, centre, middle = parts(raw)
        scores = torch.sigmoid(logits) * torch.sigmoid(centre)
        if self.root:
            scores = scores.clamp_min(1e-12).sqrt()
        score, box, number = strongest(scores, corners(middle, distances), self.candidates)
        score = torch.where(score >= FLOOR, score * kept(box, number, self.overlap), 0.0)
        return (torch.cat([box, score[..., None], number[..., None]], dim=2),)

    @torch.no_grad()
    def begin(self) -> None:
        """Set the last layers such that hardly anything is an object and boxes have the sizes of their level: what a
        training begins with (Lin et al. 2017, sec. 4.1)."""
        for layer in (self.net.classes, self.net.boxes, self.net.centre):
            layer.weight.mul_(0.1)
        self.net.classes.bias.fill_(-math.log(99))

    @classmethod
    def complete(cls, spec: HeadSpec, backbone: Backbone) -> HeadSpec:
        ids = [label.id for label in spec.labels]
        if ids != list(range(len(ids))) or not 1 <= len(ids) <= 255:
            raise HeadError(f"the label ids are {ids}; accepted are 0, 1, 2, ... without gaps, 1 to 255 of them")
        taps = spec.taps or (backbone.spec.depth - 1,)
        last = taps[-1] if isinstance(taps[-1], int) else taps[-1].layer
        options = {**DEFAULTS, **spec.options, "stride": backbone.spec.tap_stride(last)}
        if unknown := sorted(set(options) - {*DEFAULTS, "stride"}):
            raise HeadError(f"a detector has no option '{unknown[0]}'; accepted are {', '.join(DEFAULTS)}")
        for name, low, high in (("candidates", 1, 2000), ("overlap", 0.01, 1), ("least", 0, 1), ("groups", 1, 1024)):
            if not low <= options[name] <= high:
                raise HeadError(f"'{name}' of the detector is {options[name]}; accepted is {low} to {high}")
        return replace(spec, taps=taps, options=options, depth_range=None)


HEAD = DetectionHead


def parts(raw: Tensor) -> Sequence[Tensor]:
    """Class logits (B, L, K), distances (B, L, 4), centre logit (B, L, 1) and middles (B, L, 2) of a raw map."""
    classes = raw.shape[2] - 8
    return (
        raw[..., :classes],
        raw[..., classes : classes + 4],
        raw[..., classes + 4 : classes + 5],
        raw[..., classes + 5 : classes + 7],
    )
