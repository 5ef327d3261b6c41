"""Which class each pixel is, and how sure that is."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from dino_perception.models.backbone import Backbone
from dino_perception.models.heads.base import Head, HeadError, HeadSpec
from dino_perception.models.heads.decoders import Linear, MultiTap, SubPatch, resize
from dino_perception.models.heads.one_map import Branches
from dino_perception.models.heads.prototypes import EACH, Prototypes, slots_for
from dino_perception.models.outputs import Output

NO_CLASS = 255
"""The id of a pixel whose logits are NaN: no class reaches the largest. The mask's consumers ignore it."""


DEFAULTS = {
    "light": dict(width=64),
    "fine": dict(width=64),
    "linear": dict(dropout=0.1),
    "branches": dict(width=576, branch=288),
    "prototypes": dict(each=EACH, scale=20.0),
}


class SegmentationHead(Head):
    """Raw map: class logits (B, K, h, w). Final arrays: mask (B, H, W) uint8 of label ids, confidence (B, H, W) uint8,
    the largest softmax probability times 255, rounded."""

    KIND = "segmentation"
    ARCHES = {"light": MultiTap, "fine": SubPatch, "linear": Linear, "branches": Branches, "prototypes": Prototypes}
    OUTPUTS = (Output("mask", "labels"), Output("confidence", "levels"))

    def __init__(self, spec: HeadSpec):
        super().__init__(spec)
        self.net = self.ARCHES[spec.arch](spec.channels, len(spec.labels), **spec.options)
        ids = torch.arange(spec.options.get("slots", len(spec.labels)), dtype=torch.float32).view(1, -1, 1, 1)
        self.register_buffer("ids", ids, persistent=False)

    def forward(self, *features: Tensor) -> Tensor:
        return self.net(*features)

    def reduce(self, raw: Tensor, height: int, width: int) -> tuple[Tensor, ...]:
        logits = resize(raw, (height, width))
        # The largest probability is 1 / sum(exp(logit - largest logit)). The class comes from the logits: in a narrow
        # float type probabilities near one are equal, logits are not. It is the first that reaches the largest: TensorRT
        # has no converter for max with indices, and torch's argmax over channels takes a CPU ten times as long.
        largest = logits.amax(dim=1, keepdim=True)
        mask = torch.where(logits >= largest, self.ids, float(NO_CLASS)).amin(dim=1)
        confidence = 255 / (logits - largest).exp().sum(dim=1)
        return mask.to(torch.uint8), confidence.round().to(torch.uint8)

    @property
    def state(self) -> tuple[Tensor, ...]:
        return self.net.state if self.spec.arch == "prototypes" else ()

    @classmethod
    def complete(cls, spec: HeadSpec, backbone: Backbone) -> HeadSpec:
        ids = [label.id for label in spec.labels]
        least = 1 if spec.arch == "prototypes" else 2
        if ids != list(range(len(ids))) or not least <= len(ids) <= 255:
            raise HeadError(f"the label ids are {ids}; accepted are 0, 1, 2, ... without gaps, {least} to 255 of them")
        taps = spec.taps or (backbone.spec.taps if spec.arch in ("light", "fine") else (backbone.spec.depth - 1,))
        options = {**DEFAULTS.get(spec.arch, {}), **spec.options}
        if spec.arch == "prototypes":
            options.setdefault("slots", slots_for(len(ids)))
        return replace(spec, taps=taps, options=options, depth_range=None)


HEAD = SegmentationHead
