"""What a depth head's own confidence is worth: learnt from frames with true depth.

Training judges the mean of a head's bins, never their spread, so the spread says which of two pixels is the better one, but
not how good either is. Here each level of the head's confidence is given the relative error that was found there.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from dino_perception.models.heads import Head
from dino_perception.training.datasets import DataError, Dataset
from dino_perception.training.features import FeatureCache
from dino_perception.training.looks import views

KNOTS = 33
"""Levels 0, 8, ..., 255 whose worth is learnt; between them it is interpolated."""
FEWEST = 10_000
"""Pixels with true depth below which nothing is learnt."""


def worth(levels: np.ndarray, errors: np.ndarray) -> tuple[int, ...]:
    """`levels` (N,) 0..255 as the network gives them and `errors` (N,) |d - t| / t -> what `KNOTS` evenly spaced levels are
    worth: 255 (1 - e), e being the mean error about there, held such that it never falls from one level to the next
    (isotonic regression by pooling adjacent violators, Barlow et al. 1972). Raises DataError for too few pixels."""
    if len(levels) < FEWEST:
        raise DataError(f"{len(levels)} pixels with true depth are too few; accepted are {FEWEST}")
    place = np.rint(levels.astype(np.float64) * (KNOTS - 1) / 255).astype(int)
    count = np.bincount(place, minlength=KNOTS).astype(np.float64)
    good = np.bincount(place, 1 - np.clip(errors, 0, 1), KNOTS)
    seen = np.flatnonzero(count)
    pools: list[list[float]] = []  # summed worth, weight, how many of `seen`
    for i in seen:
        pools.append([good[i], count[i], 1])
        while len(pools) > 1 and pools[-2][0] / pools[-2][1] >= pools[-1][0] / pools[-1][1]:
            last = pools.pop()
            pools[-1] = [a + b for a, b in zip(pools[-1], last)]
    values = np.repeat([total / weight for total, weight, _ in pools], [n for *_, n in pools])
    return tuple(int(v) for v in np.rint(255 * np.interp(np.arange(KNOTS), seen, values)))


def seen(
    cache: FeatureCache, head: Head, data: Dataset, farthest: float, progress: Callable[[str, int, int], None]
) -> tuple[np.ndarray, np.ndarray]:
    """Levels and errors of all pixels of the data's frames whose true depth is known and at most `farthest` metres, for
    `worth`. `cache` has the taps of `head`. Raises DataError for a head that does not say how sure it is."""
    graph = head.at(cache.height // 2, cache.width // 2)
    if "levels" not in graph.meanings:
        raise DataError(f"a {head.spec.arch} depth head does not say how sure it is, so there is nothing to learn")
    known = [i for i, sample in enumerate(data.samples) if sample.read_depth]
    if not known:
        raise DataError(f"{data.source} has no true depth, by which confidence could be judged")
    items = cache.items(data.chosen(known), "depth", views(1), progress)
    levels, errors = [], []
    for done, item in enumerate(items):
        progress("comparing depth", done, len(items))
        arrays, truth = item.load()
        with torch.inference_mode():
            metres, sure = graph(*(torch.from_numpy(a.astype(np.float32))[None] for a in arrays))
        known = np.isfinite(truth) & (truth > 0.1) & (truth <= farthest)
        levels.append(sure[0].numpy()[known])
        errors.append(np.abs(metres[0].numpy()[known] / truth[known] - 1))
    return np.concatenate(levels), np.concatenate(errors)
