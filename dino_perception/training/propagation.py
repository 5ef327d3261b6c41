"""The mask of one frame carried through a recording by the features: label propagation as in DINOv3's evaluation.

Each patch of a frame takes the mean of what its most similar patches have, among those near its place in the masked frame and
in the frames before it (Jabri et al. 2020; the numbers are those of DINOv3's paper, table 27). What is carried drifts; what the
masked frame itself says of a patch, wherever it is (prototypes.py), does not. A patch's label is believed as far as both agree.
"""

from __future__ import annotations

import collections

import torch
import torch.nn.functional as F
from torch import Tensor

BEFORE, RADIUS, BEST, TEMPERATURE = 7, 12, 5, 0.2
"""Frames kept beside the masked one; patches around its place that a patch is compared with; how many of them count; and the
temperature of the softmax over their cosines."""


class Propagation:
    """Starts with the features (C, h, w) of the masked frame and the share (K, h, w) of each class in its patches."""

    def __init__(self, features: Tensor, shares: Tensor):
        self._first = F.normalize(features.float(), dim=0), shares.float()
        self._before: collections.deque[tuple[Tensor, Tensor]] = collections.deque(maxlen=BEFORE)

    def follow(self, features: Tensor) -> Tensor:
        """The shares (K, h, w) in the next frame, from its features (C, h, w)."""
        x = F.normalize(features.float(), dim=0)
        shares = carried(x, [self._first, *self._before])
        self._before.append((x, shares))
        return shares


def carried(x: Tensor, known: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Shares (K, h, w) of a frame with unit features `x` (C, h, w), from those of other frames (unit features, shares).

    Row by row, each compared with the rows within `RADIUS` alone: a whole map against eight would be 8 (h w)^2 numbers.
    """
    channels, rows, columns = x.shape
    features = torch.stack([f for f, _ in known], dim=1)  # (C, T, h, w)
    shares = torch.stack([s for _, s in known], dim=1)
    across = torch.arange(columns)
    out = []
    for row in range(rows):
        band = slice(max(0, row - RADIUS), min(rows, row + RADIUS + 1))
        near = features[:, :, band].reshape(channels, -1)
        down = torch.arange(band.start, band.stop) - row
        inside = (down[:, None, None] ** 2 + (across[None, :, None] - across) ** 2) <= RADIUS**2  # (band, w, own w)
        inside = inside.expand(len(known), *inside.shape).reshape(-1, columns).T
        cosine = (x[:, row].T @ near).masked_fill(~inside, -2)  # (own w, T band w)
        best, at = cosine.topk(min(BEST, cosine.shape[1]), dim=1)
        weights = (best / TEMPERATURE).masked_fill(best < -1.5, -torch.inf).softmax(dim=1)
        values = shares[:, :, band].reshape(len(shares), -1)[:, at]  # (K, own w, best)
        out.append((values * weights).sum(dim=2))
    return torch.stack(out, dim=1)


def believed(carried_shares: Tensor, shown: Tensor) -> tuple[Tensor, Tensor]:
    """Class ids (h, w) of the carried shares (K, h, w), and the confidence (h, w) 0..1 in them: the carried share of the class
    times its probability by what was `shown` (K, h, w), which does not drift."""
    share, ids = carried_shares.max(dim=0)
    return ids, share * shown.gather(0, ids[None])[0]
