"""Looking an array up on the grid of another one that shows the same."""

from __future__ import annotations

import numpy as np

from dino_perception.perception.geometry import resized


def nearest(array: np.ndarray, height: int, width: int, scale: tuple[float, float] | None = None) -> np.ndarray:
    """`array` (h, w, ...) at the pixel centres of a `height` x `width` grid: nearest neighbour, so nothing is mixed.

    `scale` (x, y) is grid pixels per pixel of the array, by default what makes both cover the same. Where a centre
    lies between two pixels, the later one counts.
    """
    x, y = scale or (width / array.shape[1], height / array.shape[0])
    columns = resized(np.stack([np.arange(width)] * 2, axis=-1), (1 / x, 1 / x))[:, 0]
    rows = resized(np.stack([np.arange(height)] * 2, axis=-1), (1 / y, 1 / y))[:, 0]
    rows, columns = (np.clip(np.floor(v + 0.5).astype(int), 0, n - 1) for v, n in zip((rows, columns), array.shape))
    return array[rows[:, None], columns]
