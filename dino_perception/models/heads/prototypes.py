"""Classes shown by example: a patch is of the class whose centres its features point to. Nothing is trained.

A class has several centres, found by cosine k-means among the patches that were shown of it, the background among them
(FSSDINO, arXiv 2602.07550, without its Gram map, which gains little; docs/teach.md). The centres may change while a graph
runs: they are inputs of it, so that a class that is shown to the running node holds from the next frame on.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EACH = 10
"""Centres a class."""
SCALES = (5.0, 10.0, 20.0, 40.0, 80.0)
"""By what cosines are multiplied to be logits: that which makes held-out patches most likely is taken."""
UNUSED = -1e4
"""The logit of a slot without a class."""


class Prototypes(nn.Module):
    """(B, C, h, w), and the state that `state` gives where it is not to be the module's own -> logits (B, slots, h, w).

    `outputs` is the number of classes; there are slots for more.
    """

    def __init__(self, channels: Sequence[int], outputs: int, each: int, slots: int, scale: float):
        super().__init__()
        if len(channels) != 1 or each < 1 or not outputs <= slots <= 255:
            raise ValueError(f"it reads one tap and has centres and slots for its {outputs} classes, not {slots}")
        self.scale = float(scale)  # the centres are that long, so that a graph does not depend on it
        self.register_buffer("centres", torch.zeros(slots, each, channels[0]))
        self.register_buffer("offset", torch.where(torch.arange(slots) < outputs, 0.0, UNUSED))

    @property
    def state(self) -> tuple[Tensor, Tensor]:
        """`centres` (slots, each, C), `scale` long or zero, and the `offset` (slots,) of each logit."""
        return self.centres, self.offset

    def forward(self, features: Tensor, *state: Tensor) -> Tensor:
        centres, offset = state or self.state
        slots, each, channels = centres.shape
        rows, columns = features.shape[2:]
        x = features.flatten(2)
        x = x * (x * x).sum(dim=1, keepdim=True).clamp_min(1e-12).rsqrt()
        cosine = torch.matmul(centres.reshape(1, slots * each, channels), x)
        best = cosine.reshape(-1, slots, each, rows * columns).amax(dim=2)
        return (best + offset.reshape(1, slots, 1)).reshape(-1, slots, rows, columns)


def slots_for(classes: int) -> int:
    """Room for that many classes and at least three more to be shown later, a multiple of 8."""
    return min(255, (classes + 3 + 7) // 8 * 8)


def centres_of(vectors: Tensor, count: int = EACH, weights: Tensor | None = None, rounds: int = 20) -> Tensor:
    """(count, C) unit vectors that the directions of `vectors` (N, C) gather around: k-means by cosine from k-means++
    seeds of a fixed draw. Fewer vectors than centres: they repeat. `weights` (N,) say how many each stands for."""
    x = F.normalize(vectors.float(), dim=1)
    weights = torch.ones(len(x)) if weights is None else weights.float()
    if len(x) <= count:
        return x[torch.arange(count) % len(x)]
    generator = torch.Generator().manual_seed(0)
    chosen = [int(torch.multinomial(weights, 1, generator=generator))]
    nearest = x @ x[chosen[0]]
    for _ in range(count - 1):
        far = (1 - nearest).clamp_min(0) ** 2 * weights
        index = int(torch.multinomial(far, 1, generator=generator)) if float(far.sum()) > 0 else chosen[0]
        chosen.append(index)
        nearest = torch.maximum(nearest, x @ x[index])
    centres = x[chosen]
    for _ in range(rounds):
        own = (x @ centres.T).argmax(dim=1)
        sums = torch.zeros_like(centres).index_add_(0, own, x * weights[:, None])
        moved = torch.where(sums.norm(dim=1, keepdim=True) > 0, F.normalize(sums, dim=1), centres)
        if torch.equal(moved, centres):
            break
        centres = moved
    return centres


def best_scale(centres: Sequence[Tensor], held_out: Sequence[Tensor]) -> float:
    """Of `SCALES` the one by which patches (N, C) that a class's `centres` (M, C) were not made of are most likely, every
    class counting alike."""
    losses = dict.fromkeys(SCALES, 0.0)
    for index, vectors in enumerate(held_out):
        if len(vectors):
            x = F.normalize(vectors.float(), dim=1)
            cosine = torch.stack([(x @ c.T).amax(dim=1) for c in centres], dim=1)
            for scale in SCALES:
                losses[scale] += float(F.cross_entropy(cosine * scale, torch.full((len(x),), index)))
    return min(losses, key=losses.get)


def alike(features: Tensor, shown: Tensor) -> Tensor:
    """(h, w) bool: the patches of a map (C, h, w) that look like those `shown` (h, w) bool, by Otsu's threshold on the
    largest cosine with any of them (Otsu 1979, of 64 levels)."""
    x = F.normalize(features.flatten(1).float(), dim=0)
    cosine = (x[:, shown.flatten()].T @ x).amax(dim=0)
    levels = torch.linspace(float(cosine.min()), float(cosine.max()), 66)[1:-1]
    above = cosine[None] > levels[:, None]
    share = above.float().mean(dim=1)
    high = (above * cosine).sum(dim=1) / above.sum(dim=1).clamp_min(1)
    low = (~above * cosine).sum(dim=1) / (~above).sum(dim=1).clamp_min(1)
    threshold = levels[int((share * (1 - share) * (high - low) ** 2).argmax())]
    return (cosine > threshold).reshape(shown.shape) | shown
