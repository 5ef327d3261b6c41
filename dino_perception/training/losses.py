"""The losses that training makes small, one function each."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from dino_perception.models.heads.decoders import resize
from dino_perception.perception.frame import IGNORE

BEYOND = 30.0
"""Metres: the least answer for what is infinitely far, such as the sky. Whatever is nearer counts in navigation."""


def segmentation_loss(
    logits: Tensor, truth: Tensor, *, weights: Tensor | None = None, smoothing: float = 0.0
) -> Tensor:
    """Cross entropy a labelled pixel, at the size of the truth.

    `logits` (B, K, h, w), `truth` (B, H, W) uint8 with IGNORE. `weights` (K,) counts classes differently. Zero, with a
    gradient, when nothing is labelled.
    """
    logits, truth = resize(logits, truth.shape[1:]), truth.long()
    known = truth != IGNORE
    if not known.any():
        return logits.sum() * 0
    return F.cross_entropy(logits, truth, weights, ignore_index=IGNORE, label_smoothing=smoothing)


def overlap_loss(logits: Tensor, truth: Tensor) -> Tensor:
    """One minus the mean soft IoU of the classes that occur (Rahman and Wang 2016), over all labelled pixels of the batch
    together: what mIoU measures, and what cross entropy says too little about for a class of few pixels.

    `logits` (B, K, h, w), `truth` (B, H, W) integers with IGNORE. Zero, with a gradient, when nothing is labelled.
    """
    logits, truth = resize(logits, truth.shape[1:]), truth.long()
    given = logits.softmax(dim=1) * (truth != IGNORE)[:, None]
    true = truth[:, None] == torch.arange(logits.shape[1], device=truth.device).view(-1, 1, 1)
    both, of_given, of_truth = (x.sum((0, 2, 3)) for x in (given * true, given, true))
    iou = both / (of_given + of_truth - both).clamp_min(1e-6)
    occurs = of_truth > 0
    return ((1 - iou) * occurs).sum() / occurs.sum().clamp_min(1)


def depth_loss(metres: Tensor, truth: Tensor, reach: tuple[float, float], *, gradient: float = 0.5) -> Tensor:
    """Mean |log d - log t| over pixels with a true depth within `reach` metres, which for small errors is the AbsRel
    that depth is judged by, and `gradient` times the same of its differences to the right and below (Li and Snavely
    2018, sec. 4.2), which keeps edges where they are. An answer for what is infinitely far, such as the sky, need only
    be BEYOND metres or more: a dark shadow taken for sky is bad enough.

    `metres` (B, 1, h, w), `truth` (B, H, W) float32 with NaN. Zero, with a gradient, when nothing is known.
    """
    metres = resize(metres, truth.shape[1:])[:, 0]
    beyond = torch.isposinf(truth)
    known = (truth >= reach[0]) & (truth <= reach[1])
    if not (known | beyond).any():
        return metres.sum() * 0
    error = torch.where(
        known, metres.clamp_min(1e-3).log() - torch.where(known, truth, torch.ones_like(truth)).log(), 0.0
    )
    least = math.log(min(BEYOND, reach[1]))
    short = torch.where(beyond, (least - metres.clamp_min(1e-3).log()).clamp_min(0), 0.0)
    loss = (error.abs().sum() + short.sum()) / (known | beyond).sum()
    for dim in (1, 2):
        both = known.narrow(dim, 1, known.shape[dim] - 1) & known.narrow(dim, 0, known.shape[dim] - 1)
        step = error.diff(dim=dim).abs()
        loss = loss + gradient * (step * both).sum() / both.sum().clamp_min(1)
    return loss


def class_weights(counts: Tensor, how: str) -> Tensor | None:
    """(K,) weights of the classes for their pixel counts: "none", or "sqrt": one over the root of the frequency, with
    mean one over the pixels. A class that does not occur weighs nothing."""
    if how == "none":
        return None
    share = counts / counts.sum()
    weights = torch.where(share > 0, share.clamp_min(1e-12).rsqrt(), 0.0)
    return (weights / (weights * share).sum()).float()
