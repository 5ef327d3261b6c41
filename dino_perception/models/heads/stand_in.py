"""Untrained heads of released layouts, for where the released file is not here: they say nothing, and take as long."""

from __future__ import annotations

from typing import Any

import torch

from dino_perception.models.backbone import Backbone
from dino_perception.models.head_catalog import HeadEntry
from dino_perception.models.heads.base import Head, HeadError, create_head
from dino_perception.models.heads.released import CHMV2, DINOV3_ROS_DETECTOR
from dino_perception.models.label_sets import LABELS
from dino_perception.models.taps import Tap

DEPTH_ANYTHING = {384: ([48, 96, 192, 384], 64), 768: ([96, 192, 384, 768], 128), 1024: ([256, 512, 1024, 1024], 256)}
"""Levels and width of Depth Anything V2's decoder by the width of its backbone."""
MIDDLE = 20.0
"""Metres about which an untrained depth head without bins answers: about 0 half of its pixels would be held at the nearest
depth, where no precision passes for right."""


def stand_in(entry: HeadEntry, backbone: Backbone) -> Head:
    """A head of the entry's architecture, taps and classes or range, with random weights drawn from a fixed seed. Raises
    HeadError for another backbone."""
    spec = backbone.spec
    if entry.backbone != spec.id:
        raise HeadError(f"the head {entry.id} is for {entry.backbone}, not for {spec.id}")
    four = entry.name.endswith(("-ms", "linear4")) or entry.arch == "dpt"
    canopy = entry.name == "chmv2"
    token = entry.arch == "linear-cls" or (entry.arch == "dpt" and not spec.tuned)  # as DINOv2's depth heads read it
    layers = spec.taps if four else (spec.depth - 1,)
    taps = [Tap(layer, norm=canopy or not token, cls=token) for layer in layers]
    options: dict[str, Any] = {}
    if entry.arch == "dpt" and spec.tuned:
        pyramid, width = DEPTH_ANYTHING[spec.dim]
        options = dict(pyramid=pyramid, width=width, readout=False, bias=True, project=False, patch=spec.patch)
        options["weighting"] = "sigmoid"
    if canopy:
        options = dict(CHMV2, bins=256, pyramid=[128, 256, 512, 1024], mix=False, hidden=128)
    if entry.arch == "fcos":  # the one released detector, dinov3_ros
        options = {"width": 192, "convolutions": 4, **DINOV3_ROS_DETECTOR}
    head = create_head(
        entry.task,
        backbone,
        entry.arch,
        taps=taps,
        labels=entry.labels or LABELS,
        depth_range=entry.depth_range,
        **options,
    )
    if head.spec.options.get("weighting") in ("relu", "softplus") and not head.spec.options.get("bins"):
        with torch.no_grad():
            head.net.out.weight.mul_(0.1)
            head.net.out.bias.fill_(min(MIDDLE, head.spec.depth_range[1] / 2))
    return head
