"""Which rocks a rendered frame shows, and in which box."""

from __future__ import annotations

import numpy as np
import torch

COLUMNS = ("frame", "left", "top", "right", "bottom", "diameter", "depth", "pixels")
"""Of `rock_boxes`: the box encloses the pixels on which the rock is seen, in pixels with centres at integers, edges
included; diameter and depth (the median over these pixels) are in metres."""
SMALLEST, FEWEST = 0.1, 6
"""Rocks of a smaller diameter in metres, or seen on fewer pixels, are left out."""


def rock_boxes(view) -> np.ndarray:
    """(N, 8) float32 `COLUMNS` of the rocks that a `RayBatch` sees, frame after frame."""
    hits, width, pixels = view.scene.rocks, view.width, view.width * view.height
    diameter = view.world.rocks.diameter
    frame, place = hits.ray // pixels, hits.ray % pixels
    depth = view.scene.t[hits.ray]
    key = frame * len(diameter) + hits.rock
    order = torch.argsort(depth, stable=True)
    order = order[torch.argsort(key[order], stable=True)]  # by rock, and there by depth
    found, counts = torch.unique_consecutive(key[order], return_counts=True)
    group = torch.repeat_interleave(torch.arange(len(found), device=key.device), counts)
    first = torch.cumsum(counts, 0) - counts
    x, y = (place % width)[order].float(), (place // width)[order].float()
    sides = []
    for values, how, edge in ((x, "amin", -0.5), (y, "amin", -0.5), (x, "amax", 0.5), (y, "amax", 0.5)):
        sides.append(torch.zeros(len(found), device=x.device).scatter_reduce(0, group, values, how, include_self=False))
        sides[-1] += edge
    rock = found % len(diameter)
    columns = [found // len(diameter), *sides, diameter[rock], depth[order][first + counts // 2], counts]
    rows = torch.stack([column.float() for column in columns], dim=1)
    return rows[(rows[:, 5] >= SMALLEST) & (rows[:, 7] >= FEWEST)].cpu().numpy()
