"""Where exactly: matched points refined to a fraction of a pixel by aligning the windows around them.

Inverse compositional Gauss-Newton (Baker and Matthews, "Lucas-Kanade 20 years on", 2004) on a pyramid, all points at
once, with a given local affine shape (what comes nearer grows) and with brightness and contrast taken out of each
window (the exposure changes). The template is cut in the shape that it will have in the image, once a level, so that the
windows of all iterations are upright. Where it is built the compiled part does it (compiled.py), point by point; the arrays here
are what it is tested against.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import cv2
import numpy as np

from dino_perception.perception import compiled

LEVELS = 6
"""Most levels of a pyramid."""


def plan(reach: float) -> list[tuple[int, int, int]]:
    """How to refine seeds that may be up to about `reach` pixels off: (level, half window in pixels of that level,
    iterations), coarse to fine. Measured on rendered terrain: a half window of 6 pixels is precise and sees few depth
    edges, and two iterations on the finest level are enough after those above it."""
    top = max(1, math.ceil(math.log2(max(reach, 1) / 4)))
    return [(level, {0: 6, 1: 5}.get(level, 4), 3 if level >= 2 or level == top else 2) for level in range(top, -1, -1)]


def pyramid(grey: np.ndarray) -> list[np.ndarray]:
    """Float32 images, each half the size of the one before, of (H, W) uint8. Pixel x of one is pixel x / 2 of the
    next: cv2.pyrDown keeps the first pixel's centre in place."""
    levels = [grey]
    while len(levels) < LEVELS and min(levels[-1].shape) >= 64:
        levels.append(cv2.pyrDown(levels[-1]))
    return [level.astype(np.float32) for level in levels]


def unshaped(shape: np.ndarray) -> np.ndarray:
    """The inverses (N, 2, 2) of local shapes (N, 2, 2); of one that has none something large, which matches nothing."""
    (a, b), (c, d) = shape.transpose(1, 2, 0)
    det = a * d - b * c
    det = np.where(np.abs(det) < 1e-2, np.float32(1e-2), det)
    return (np.stack([d, -b, -c, a], axis=1) / det[:, None]).reshape(-1, 2, 2)


class Refiner:
    """`refine`, with the memory it needs kept from call to call: fresh pages cost more than the arithmetic."""

    def __init__(self) -> None:
        self._memory: dict[str, np.ndarray] = {}

    def refine(
        self,
        reference: Sequence[np.ndarray],
        image: Sequence[np.ndarray],
        xy: np.ndarray,
        seed: np.ndarray,
        shape: np.ndarray,
        reach: float = 16.0,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Moves each `seed` to where the window around `xy` in the reference pyramid reappears in the image's pyramid.

        `xy` and `seed` (N, 2) are pixels of level 0, `shape` (N, 2, 2) is how a window is deformed on its way from the
        reference to the image, `reach` how far off in pixels a seed may be. Returns positions (N, 2) float64 and the windows' zero-mean normalised correlation (N,)
        float32 at the last level, -1 where a window leaves the image, and doubts (N,) in pixels of that level: how far
        the middle of a window alone would move on, or twice the last step where that is more.
        """
        position = np.array(seed, np.float64)
        if len(position) == 0:
            return position, np.zeros(0, np.float32), np.zeros(0, np.float32)
        steps = [step for step in plan(reach) if step[0] < len(reference)]
        made = compiled.library()
        if made is not None:
            return compiled.refine(made, reference, image, steps, xy, seed, shape)
        back = unshaped(shape.astype(np.float32))
        for level, half, iterations in steps:
            scale = 0.5**level
            template, gx, gy, inverse, energy = self._template(reference[level], xy * scale, back, half)
            around = _offsets(half)
            start = position.copy()
            for iteration in range(iterations):
                window, own = self._window(image[level], position * scale, around)
                if level == 0 and iteration == iterations - 1:  # judged before the last step, which is tiny
                    score = _dot(window, template) / np.sqrt(own * energy)
                    doubt = _doubt(template, gx, gy, window, half)
                window *= np.sqrt(energy / own)
                window -= template
                bx, by = _dot(gx, window), _dot(gy, window)
                step = np.stack([inverse[0] * bx + inverse[1] * by, inverse[1] * bx + inverse[2] * by], axis=1)
                position -= np.clip(step, -half, half) / scale
            last = np.abs(step).max(axis=1)
            astray = np.abs(position - start).max(axis=1) > 1.5 * half / scale  # beyond what a window can see
            position[astray] = start[astray]
        margin = half / scale  # a window that is partly outside is aligned with the border's repetition, too
        inside = ((position >= margin) & (position <= np.array(image[0].shape[::-1]) - 1 - margin)).all(axis=1)
        return position, np.where(inside, score, -1).astype(np.float32), np.maximum(doubt, 2 * last)

    # Windows are (K, N), a row for each pixel of the window, a column for each point: every operation runs along memory.

    def _template(self, image: np.ndarray, xy: np.ndarray, shape: np.ndarray, half: int):
        """Zero-mean windows deformed by `shape` (N, 2, 2), their gradients in x and y, all (K, N), the inverse of the normal
        matrices [[xx, xy], [xy, yy]] as three (N,), and the windows' energy (N,)."""
        side, n = 2 * half + 1, len(xy)
        wide = self._sample(image, xy, self._around(shape, half + 1)).reshape(side + 2, side + 2, n)
        template, gx, gy = (self._array(name, side * side, n).reshape(side, side, n) for name in ("t", "gx", "gy"))
        np.subtract(wide[1:-1, 2:], wide[1:-1, :-2], out=gx)
        np.subtract(wide[2:, 1:-1], wide[:-2, 1:-1], out=gy)
        np.subtract(wide[1:-1, 1:-1], wide[1:-1, 1:-1].mean(axis=(0, 1)), out=template)
        template, gx, gy = (array.reshape(-1, n) for array in (template, gx, gy))
        gx *= 0.5
        gy *= 0.5
        xx, xy_, yy = _dot(gx, gx), _dot(gx, gy), _dot(gy, gy)
        damp = 1e-3 * (xx + yy) + 1e-3  # a window without texture stays where it is
        xx, yy = xx + damp, yy + damp
        det = xx * yy - xy_ * xy_
        return template, gx, gy, (yy / det, -xy_ / det, xx / det), _dot(template, template) + 1e-6

    def _window(self, image: np.ndarray, xy: np.ndarray, around) -> tuple[np.ndarray, np.ndarray]:
        """Zero-mean windows (K, N) of an image around `xy` and their energy (N,)."""
        window = self._sample(image, xy, around)
        window -= window.mean(axis=0)
        return window, _dot(window, window) + 1e-6

    def _sample(self, image: np.ndarray, xy: np.ndarray, around) -> np.ndarray:
        x, y = xy.T.astype(np.float32, order="C")
        map_x, map_y, out = (self._array(name, len(around[0]), len(xy)) for name in ("mx", "my", "window"))
        np.add(x, around[0], out=map_x)
        np.add(y, around[1], out=map_y)
        return cv2.remap(image, map_x, map_y, cv2.INTER_LINEAR, dst=out, borderMode=cv2.BORDER_REPLICATE)

    def _around(self, a: np.ndarray, half: int):
        """The window's pixel offsets, deformed for each point: x and y (K, N), or (K, 1) where no deformation matters."""
        dx, dy = _offsets(half)
        if np.abs(a - np.eye(2, dtype=np.float32)).max(initial=0) * half < 0.1:
            return dx, dy
        out = []
        for row, name in ((0, "ax"), (1, "ay")):
            array = np.multiply(a[:, row, 0], dx, out=self._array(name, len(dx), len(a)))
            array += a[:, row, 1] * dy
            out.append(array)
        return out

    def _array(self, name: str, rows: int, columns: int) -> np.ndarray:
        if name not in self._memory or self._memory[name].size < rows * columns:
            self._memory[name] = np.empty(2 * rows * columns, np.float32)
        return self._memory[name][: rows * columns].reshape(rows, columns)


def _doubt(template: np.ndarray, gx: np.ndarray, gy: np.ndarray, window: np.ndarray, half: int) -> np.ndarray:
    """How many pixels the middle of each window alone would still move: far, where a window straddles things that move
    differently."""
    side, middle = 2 * half + 1, slice(half // 2, half // 2 + 2 * (half - half // 2) + 1)
    t, gx, gy, w = (
        a.reshape(side, side, -1)[middle, middle].reshape(-1, a.shape[1]) for a in (template, gx, gy, window)
    )
    t = t - t.mean(axis=0)
    w = w - w.mean(axis=0)
    w *= np.sqrt((_dot(t, t) + 1e-6) / (_dot(w, w) + 1e-6))
    w -= t
    xx, xy, yy, bx, by = _dot(gx, gx), _dot(gx, gy), _dot(gy, gy), _dot(gx, w), _dot(gy, w)
    damp = 1e-3 * (xx + yy) + 1e-3
    xx, yy = xx + damp, yy + damp
    det = xx * yy - xy * xy
    return np.hypot((yy * bx - xy * by) / det, (xx * by - xy * bx) / det)


def _dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.einsum("kn,kn->n", a, b)


@functools.cache
def _offsets(half: int) -> tuple[np.ndarray, np.ndarray]:
    """x and y (K, 1) of a window's pixels, row by row."""
    along = np.arange(-half, half + 1, dtype=np.float32)
    return np.tile(along, len(along))[:, None], np.repeat(along, len(along))[:, None]
