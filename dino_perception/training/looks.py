"""The looks at a frame that a head is trained on: as it is, mirrored, and in other light.

Features are computed before training, so augmentation happens here, on the pictures, a fixed number of looks a frame.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Look:
    """One look: number 0 is the frame itself, odd ones are mirrored, and from 2 on each has another exposure, contrast
    and white balance, drawn from the number and the picture itself."""

    number: int = 0

    @property
    def mirrored(self) -> bool:
        return self.number % 2 == 1

    def image(self, image: np.ndarray) -> np.ndarray:
        """The look at an image (H, W, 3) uint8."""
        if self.number >= 2:
            image = relit(image, np.random.default_rng([self.number, zlib.crc32(np.ascontiguousarray(image))]))
        return np.ascontiguousarray(image[:, ::-1]) if self.mirrored else image

    def truth(self, truth: np.ndarray) -> np.ndarray:
        """The truth (h, w) that belongs to that look."""
        return truth[:, ::-1] if self.mirrored else truth


def views(count: int) -> tuple[Look, ...]:
    """The first `count` looks."""
    return tuple(Look(number) for number in range(count))


def relit(image: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """The picture (H, W, 3) uint8 at another exposure, contrast, gamma and white balance, one table a channel."""
    level = np.arange(256) / 255
    gamma, exposure, contrast = np.exp(random.normal(0, (0.15, 0.25, 0.15)))
    balance = np.exp(random.normal(0, 0.06, 3))
    table = ((level[:, None] ** gamma) * exposure * balance - 0.45) * contrast + 0.45
    table = (np.clip(table, 0, 1) * 255 + 0.5).astype(np.uint8)
    return np.stack([table[:, c][image[..., c]] for c in range(3)], axis=-1)
