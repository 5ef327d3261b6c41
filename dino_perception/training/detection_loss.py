"""The losses of a detector, and which cell of it is to find which object: FCOS (Tian et al. 2019) as torchvision has it."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dino_perception.models.heads.boxes import corners
from dino_perception.models.heads.detection import parts

RADIUS = 1.5
"""How far from an object's middle a cell may be that is to find it, in strides."""
SIZES = (4.0, 8.0)
"""A level finds objects whose farthest side is so many strides away, at least and at most; the finest also smaller ones,
the coarsest also larger ones."""
ALPHA, GAMMA = 0.25, 2.0
"""Of the focal loss (Lin et al. 2017)."""


class DetectionLosses(NamedTuple):
    """Each over the number of cells that are to find something."""

    classes: Tensor
    boxes: Tensor
    centre: Tensor


def detection_losses(raw: Tensor, truth: Tensor) -> DetectionLosses:
    """Focal loss of the classes, 1 - GIoU of the boxes, and cross entropy of the centreness sqrt(min(l, r) / max(l, r)
    min(t, b) / max(t, b)), the last two where an object is to be found.

    `raw` (B, L, K + 8) of a `DetectionHead`, `truth` (B, M, 5 or more): left, top, right, bottom in pixels of the
    network's input and class, -1 in rows that hold no object.
    """
    logits, distances, centre, middles = parts(raw)
    found = assigned(middles[0], raw[0, :, -1], truth)
    positive = found >= 0
    count = positive.sum().clamp_min(1)
    wanted = torch.zeros_like(logits)
    if not positive.any():
        return DetectionLosses(_focal(logits, wanted).sum() / count, distances.sum() * 0, centre.sum() * 0)
    own = torch.gather(truth, 1, found.clamp_min(0)[..., None].expand(-1, -1, truth.shape[2]))
    number = own[..., 4].long().clamp_min(0)
    wanted.scatter_(2, number[..., None], positive[..., None].to(raw.dtype))
    box, middle = own[..., :4][positive], middles[positive]
    given = corners(middle, distances[positive])
    left, top, right, bottom = (middle - box[:, :2]).unbind(1) + (box[:, 2:] - middle).unbind(1)
    across = torch.minimum(left, right) / torch.maximum(left, right)
    along = torch.minimum(top, bottom) / torch.maximum(top, bottom)
    central = (across * along).clamp_min(0).sqrt()
    return DetectionLosses(
        _focal(logits, wanted).sum() / count,
        (1 - giou(given, box)).sum() / count,
        F.binary_cross_entropy_with_logits(centre[..., 0][positive], central, reduction="sum") / count,
    )


def assigned(middles: Tensor, strides: Tensor, truth: Tensor) -> Tensor:
    """Which row of `truth` (B, M, 5 or more) each of the cells (L) is to find: (B, L) int64, -1 for none.

    One within RADIUS strides of the object's middle, inside its box, and of the level of its size (SIZES); of several
    objects the smallest. `middles` (L, 2) and `strides` (L,).
    """
    count, most = len(middles), truth.shape[1]
    if not most:
        return truth.new_full((len(truth), count), -1, dtype=torch.int64)
    boxes = truth[:, None, :, :4]
    centre = (boxes[..., :2] + boxes[..., 2:]) / 2
    off = (middles[None, :, None] - centre).abs().amax(dim=-1)
    sides = torch.cat([middles[None, :, None] - boxes[..., :2], boxes[..., 2:] - middles[None, :, None]], dim=-1)
    farthest = sides.amax(dim=-1)
    low = torch.where(strides == strides.min(), 0.0, strides * SIZES[0])[None, :, None]
    high = torch.where(strides == strides.max(), float("inf"), strides * SIZES[1])[None, :, None]
    fits = (off < RADIUS * strides[None, :, None]) & (sides.amin(dim=-1) > 0) & (farthest > low) & (farthest < high)
    fits &= (truth[..., 4] >= 0)[:, None]
    area = (truth[..., 2] - truth[..., 0]) * (truth[..., 3] - truth[..., 1])
    smallest, row = torch.where(fits, area[:, None].expand_as(fits), float("inf")).min(dim=2)
    return torch.where(smallest.isfinite(), row, -1)


def giou(boxes: Tensor, others: Tensor) -> Tensor:
    """Generalised IoU (Rezatofighi et al. 2019) of boxes (N, 4) with others (N, 4), pair by pair: (N,)"""
    common = (torch.minimum(boxes[:, 2:], others[:, 2:]) - torch.maximum(boxes[:, :2], others[:, :2])).clamp_min(0)
    hull = torch.maximum(boxes[:, 2:], others[:, 2:]) - torch.minimum(boxes[:, :2], others[:, :2])
    common, hull = common.prod(dim=1), hull.prod(dim=1)
    union = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1) + (others[:, 2:] - others[:, :2]).prod(dim=1) - common
    return common / (union + 1e-7) - (hull - union) / (hull + 1e-7)


def _focal(logits: Tensor, wanted: Tensor) -> Tensor:
    probability = torch.sigmoid(logits)
    plain = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    right = probability * wanted + (1 - probability) * (1 - wanted)
    return (ALPHA * wanted + (1 - ALPHA) * (1 - wanted)) * (1 - right) ** GAMMA * plain
