"""From points with distances to boxes, and from many boxes to few: fixed shapes and plain operations, so that any engine
runs it on its device."""

from __future__ import annotations

import functools

import numpy as np
import torch
from torch import Tensor

ROUNDS = 16
"""How often `kept` looks anew. Exact unless more than so many boxes hang on one another, each on the one before."""


@functools.lru_cache(maxsize=64)
def points(rows: int, columns: int, stride: int) -> np.ndarray:
    """(rows * columns, 3) float32, row by row: x and y of the middle of every cell of a level, in pixels of the network's
    input with pixel centres at integers, and the level's stride."""
    y, x = np.mgrid[:rows, :columns].reshape(2, -1)
    xy = (np.stack([x, y], axis=1) + 0.5) * stride - 0.5
    return np.concatenate([xy, np.full_like(xy[:, :1], stride)], axis=1).astype(np.float32)


def corners(middle: Tensor, distances: Tensor) -> Tensor:
    """Points (..., 2) and distances (..., 4) to the left, top, right and bottom, in pixels -> boxes (..., 4)."""
    x, y = middle[..., :1], middle[..., 1:2]
    left, top, right, bottom = (distances[..., i : i + 1] for i in range(4))
    return torch.cat([x - left, y - top, x + right, y + bottom], dim=-1)


def strongest(scores: Tensor, boxes: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """The `count` highest of the scores (B, L, K) of K classes at L places: scores (B, N), falling, boxes (B, N, 4) and
    classes (B, N) float32.

    In two steps, as the best classes are at the best places: first the places by their best class, then among those the
    pairs of place and class. A list of all pairs would be K times as long.
    """
    classes = scores.shape[2]
    best = scores[..., 0] if classes == 1 else scores.amax(dim=2)
    best, place = best.topk(min(count, scores.shape[1]), dim=1)
    boxes = _at(boxes, place)
    if classes == 1:
        return best, boxes, torch.zeros_like(best)
    pairs = _at(scores, place).flatten(1)
    best, pair = pairs.topk(min(count, pairs.shape[1]), dim=1)
    place = ((pair.float() + 0.5) / classes).floor()  # exact: there are far fewer than 2**23 pairs
    return best, _at(boxes, place.long()), pair.float() - place * classes


def kept(boxes: Tensor, classes: Tensor, limit: float, rounds: int = ROUNDS) -> Tensor:
    """Non-maximum suppression of boxes (B, N, 4) with classes (B, N) in the order of falling scores: (B, N) float32, 1
    for a box that no kept box of its class before it overlaps by more than `limit` (IoU), else 0.

    All boxes are kept at first, and then, round after round, those that none of the kept ones suppresses. After n rounds
    the answer is right wherever no more than n boxes suppress one another in a row; from then on nothing changes. Products
    and maxima, no matrix product: what comes before one is rounded by engines of less precision.
    """
    low, high = boxes[..., :2], boxes[..., 2:]
    common = torch.minimum(high[:, :, None], high[:, None]) - torch.maximum(low[:, :, None], low[:, None])
    common = common.clamp_min(0)
    common = common[..., 0] * common[..., 1]
    side = (high - low).clamp_min(0)
    area = side[..., 0] * side[..., 1]
    union = area[:, :, None] + area[:, None] - common
    number = torch.arange(boxes.shape[1], dtype=torch.float32, device=boxes.device)
    earlier = (number[:, None] < number[None]).float()
    over = (common > limit * union).float() * (classes[:, :, None] == classes[:, None]).float() * earlier
    keep = 1 - over.amax(dim=1)
    for _ in range(rounds - 1):
        keep = 1 - (over * keep[:, :, None]).amax(dim=1)
    return keep


def iou(boxes: Tensor, others: Tensor) -> Tensor:
    """Intersection over union of boxes (N, 4) and others (M, 4): (N, M)."""
    common = torch.minimum(boxes[:, None, 2:4], others[None, :, 2:4])
    common = (common - torch.maximum(boxes[:, None, :2], others[None, :, :2])).clamp_min(0).prod(dim=-1)
    areas = [(b[:, 2:4] - b[:, :2]).clamp_min(0).prod(dim=-1) for b in (boxes, others)]
    return common / (areas[0][:, None] + areas[1][None] - common).clamp_min(1e-9)


def _at(values: Tensor, place: Tensor) -> Tensor:
    """(B, L, D) at places (B, N) -> (B, N, D)"""
    return values.gather(1, place[..., None].expand(-1, -1, values.shape[2]))
