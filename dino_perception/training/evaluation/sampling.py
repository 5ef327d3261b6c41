"""Looking an array up on the grid of another one that shows the same."""

from __future__ import annotations

import numpy as np

from dino_perception.perception.geometry import pixels_under


def nearest(array: np.ndarray, height: int, width: int, scale: tuple[float, float] | None = None) -> np.ndarray:
    """`array` (h, w, ...) at the pixel centres of a `height` x `width` grid: nearest neighbour, so nothing is mixed.

    `scale` (x, y) is grid pixels per pixel of the array, by default what makes both cover the same. Where a centre
    lies between two pixels, the later one counts.
    """
    rows, columns = (
        pixels_under(count, size, *((1, each) if scale else (size, count)))
        for count, size, each in zip((height, width), array.shape, reversed(scale or (0, 0)))
    )
    return array[rows[:, None], columns]
