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


NOISE, STANDS = 0.03, 0.5
"""Log depth that the ground's own unevenness makes of a row, and beyond which standing out more counts no more."""


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


def depth_loss(
    metres: Tensor, truth: Tensor, reach: tuple[float, float], *, gradient: float = 0.5, relief: float = 0.0
) -> Tensor:
    """Mean |log d - log t| over pixels with a true depth within `reach` metres, which for small errors is the AbsRel
    that depth is judged by, and `gradient` times the same of its differences to the right and below (Li and Snavely
    2018, sec. 4.2), which keeps edges where they are. An answer for what is infinitely far, such as the sky, need only
    be BEYOND metres or more: a dark shadow taken for sky is bad enough.

    `relief` is the weight of a third part, the same error where something stands out from the ground (`standing`), by how
    far it does: a rock has few pixels, and the first part hardly notices when it sinks into the ground behind it.

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
    if relief:
        weight = standing(truth, known)
        loss = loss + relief * (error.abs() * weight).sum() / weight.sum().clamp_min(1e-6)
    return loss


def standing(truth: Tensor, known: Tensor) -> Tensor:
    """How far each pixel stands out from the ground, (B, H, W), 0 where it does not: the log depth of its row around,
    averaged over a quarter of the width, less its own.

    A camera at height H sees a point that is h over the ground at 1 - h / H of the depth of the ground behind it, on the
    same ray; and on level ground a row of pixels is at one depth. So this is about h / H.
    """
    logs = torch.where(known, truth, torch.ones_like(truth)).clamp_min(1e-3).log()
    side = 2 * (truth.shape[2] // 8) + 1
    total, count = (
        F.avg_pool2d(values[:, None].to(logs), (1, side), 1, (0, side // 2))[:, 0] for values in (logs * known, known)
    )
    out = total / count.clamp_min(1e-6) - logs
    return torch.where(known & (out > NOISE), out.clamp_max(STANDS), torch.zeros_like(out))


def class_weights(counts: Tensor, how: str) -> Tensor | None:
    """(K,) weights of the classes for their pixel counts: "none", or "sqrt": one over the root of the frequency, with
    mean one over the pixels. A class that does not occur weighs nothing."""
    if how == "none":
        return None
    share = counts / counts.sum()
    weights = torch.where(share > 0, share.clamp_min(1e-12).rsqrt(), 0.0)
    return (weights / (weights * share).sum()).float()
