"""Small data on disk, in the formats users have."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

SIZE = (48, 64)


def picture(path: Path, array: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), array if array.ndim == 2 else array[..., ::-1])
    return path


def striped(seed: int, size: tuple[int, int] = SIZE) -> tuple[np.ndarray, np.ndarray]:
    """A picture (H, W, 3) of two stripes in two colours with noise, and its mask (H, W) of 0 above and 1 below."""
    random = np.random.default_rng(seed)
    edge = size[0] // 2 + int(random.integers(-8, 9))
    mask = (np.arange(size[0])[:, None] >= edge).astype(np.uint8).repeat(size[1], axis=1)
    colours = np.array([[90, 140, 220], [180, 110, 60]])
    image = np.clip(colours[mask] + random.normal(0, 12, (*size, 3)), 0, 255).astype(np.uint8)
    return image, mask
