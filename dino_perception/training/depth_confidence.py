"""What a depth head's own confidence is worth: learnt from frames with true depth.

Training judges the mean of a head's bins, never their spread, so the spread says little of how good the mean is. Here each
level of the head's own confidence is given the relative error that was found there.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from dino_perception.models.heads import Head
from dino_perception.training.datasets import DataError, Dataset
from dino_perception.training.features import FeatureCache
from dino_perception.training.looks import views

FEWEST = 10_000
"""Pixels with true depth below which nothing is learnt."""
SHARE = 0.004
"""Neighbouring levels are taken together until they have this share of the pixels: a level of few pixels says little."""


def worth(levels: np.ndarray, errors: np.ndarray) -> tuple[int, ...]:
    """`levels` (N,) uint8 as the network gives them and `errors` (N,) |d - t| / t -> what each of the 256 levels is worth:
    255 (1 - e), e being the mean error there, at most 1. Raises DataError for too few pixels.

    It need not rise with the level. A network that cannot answer nearer than some bin puts all weight on that bin for
    whatever is nearer: its spread vanishes where its error is greatest, and only a table can say so.
    """
    if len(levels) < FEWEST:
        raise DataError(f"{len(levels)} pixels with true depth are too few; accepted are {FEWEST}")
    count = np.bincount(levels, minlength=256).astype(np.float64)
    good = np.bincount(levels, 1 - np.clip(errors, 0, 1), 256)
    ends = np.searchsorted(np.cumsum(count), np.arange(SHARE, 1 + SHARE / 2, SHARE) * len(levels) - 1e-6)
    starts = np.unique([0, *(np.minimum(ends, 254) + 1)])
    pixels, sums, places = (np.add.reduceat(a, starts) for a in (count, good, count * np.arange(256)))
    seen = pixels > 0
    return tuple(int(v) for v in np.rint(255 * np.interp(np.arange(256), (places / np.maximum(pixels, 1))[seen],
                                                        (sums / np.maximum(pixels, 1))[seen])))  # fmt: skip


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
