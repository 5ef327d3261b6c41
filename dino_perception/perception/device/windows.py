"""What matching takes from images, and the alignment of windows: refine.py and descriptors.py in torch, for many cameras at once.

Images are (B, H, W) float32. Values never decide shapes: the shapes of a call follow from those of its arguments.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from dino_perception.perception.refine import LEVELS, plan

_BINOMIAL = (1.0, 4.0, 6.0, 4.0, 1.0)


def pyramid(grey: Tensor) -> list[Tensor]:
    """`refine.pyramid` of (B, H, W) uint8: cv2.pyrDown rounds every level to whole grey levels, and so does this."""
    levels = [grey.float()]
    while len(levels) < LEVELS and min(levels[-1].shape[1:]) >= 64:
        sums = _separable(levels[-1], _BINOMIAL, _BINOMIAL)[:, ::2, ::2]
        levels.append(((sums + 128) / 256).floor())
    return levels


def histograms(levels: Sequence[Tensor], rows: int, columns: int, patch: tuple[float, float]) -> Tensor:
    """`descriptors.gradients`: (B, rows * columns, 64)."""
    from dino_perception.perception.descriptors import _OFFSETS

    level = min(range(len(levels)), key=lambda i: abs(patch[0] / 2**i - 4))
    image = levels[level]
    dx, dy = sobel(image)
    strength = torch.stack([dx, -dx, dy, -dy], dim=1).relu()
    halves = [max(2, round(2 * side * 2.0**level / size)) for side, size in zip(image.shape[:0:-1], patch)]
    down, across = (_areas(side, size, image.device) for side, size in zip(image.shape[1:], halves[::-1]))
    cells = down @ strength @ across.T
    cells = _separable(cells.flatten(0, 1), _bell(), _bell()).unflatten(0, cells.shape[:2])
    offsets = constant(tuple(_OFFSETS.tolist()), image.device)
    y = (2 * torch.arange(rows, device=image.device)[:, None] + offsets).clamp(0, halves[1] - 1)
    x = (2 * torch.arange(columns, device=image.device)[:, None] + offsets).clamp(0, halves[0] - 1)
    around = cells[:, :, y[:, None, :, None], x[None, :, None, :]]  # (B, 4, rows, columns, 4, 4)
    around = around.permute(0, 2, 3, 4, 5, 1).reshape(len(image), rows * columns, 64)
    return (around / around.sum(dim=2, keepdim=True).clamp_min(1e-6)).sqrt()


def corners(levels: Sequence[Tensor], cells: int) -> Tensor:
    """`matching.corners` of every square: (B, squares, 3) x, y in pixels and strength, 0 where there is none."""
    level = min(range(len(levels)), key=lambda i: abs(levels[i].shape[2] - 320))
    dx, dy = (d / 12 for d in sobel(levels[level]))
    ones = (1.0, 1.0, 1.0)
    a, b, c = (_separable(product, ones, ones) for product in (dx * dx, dx * dy, dy * dy))
    strength = 0.5 * (a + c) - (0.25 * (a - c) ** 2 + b * b).sqrt()
    height, width = strength.shape[1:]
    margin = 4
    strength = functional.pad(strength[:, margin:-margin, margin:-margin], [margin] * 4)
    cell = max(2, round((height * width / cells) ** 0.5))
    rows, columns = height // cell, width // cell
    squares = strength[:, : rows * cell, : columns * cell].unflatten(1, (rows, cell)).unflatten(3, (columns, cell))
    value, best = squares.transpose(2, 3).reshape(len(a), rows * columns, cell * cell).max(dim=2)
    index = torch.arange(rows * columns, device=value.device)
    x, y = index % columns * cell + best % cell, index // columns * cell + best // cell
    return torch.stack([x * 2.0**level, y * 2.0**level, value.clamp_min(0)], dim=2)


def refine(
    reference: Sequence[Tensor], image: Sequence[Tensor], xy: Tensor, seed: Tensor, shape: Tensor, reach: float
) -> tuple[Tensor, Tensor, Tensor]:
    """`Refiner.refine`, for (B, N, 2) pixels and (B, N, 2, 2) shapes: positions (B, N, 2), scores and doubts (B, N)."""
    position, back = seed, _unshaped(shape).transpose(2, 3)
    for level, half, iterations in [step for step in plan(reach) if step[0] < len(reference)]:
        scale, side = 0.5**level, 2 * half + 1
        wide = _sample(reference[level], xy * scale, _offsets(half + 1, xy) @ back).unflatten(2, (side + 2, side + 2))
        gx = 0.5 * (wide[..., 1:-1, 2:] - wide[..., 1:-1, :-2])
        gy = 0.5 * (wide[..., 2:, 1:-1] - wide[..., :-2, 1:-1])
        template = _centred(wide[..., 1:-1, 1:-1])
        inverse = _inverse(gx, gy)
        energy = _dot(template, template) + 1e-6
        around = _offsets(half, xy)
        start = position
        for iteration in range(iterations):
            window = _centred(_sample(image[level], position * scale, around).unflatten(2, (side, side)))
            own = _dot(window, window) + 1e-6
            if level == 0 and iteration == iterations - 1:
                score = _dot(window, template) / (own * energy).sqrt()
                doubt = _doubt(template, gx, gy, window, half)
            left = window * (energy / own).sqrt()[..., None, None] - template
            step = _solved(inverse, _dot(gx, left), _dot(gy, left))
            position = position - step.clamp(-half, half) / scale
        astray = (position - start).abs().amax(dim=2, keepdim=True) > 1.5 * half / scale
        position = torch.where(astray, start, position)
    height, width = image[0].shape[1:]
    x, y = position.unbind(dim=2)
    inside = (x >= half) & (y >= half) & (x <= width - 1 - half) & (y <= height - 1 - half)
    return position, torch.where(inside, score, -1.0), torch.maximum(doubt, 2 * step.abs().amax(dim=2))


def sobel(image: Tensor) -> tuple[Tensor, Tensor]:
    """Derivatives (B, H, W) to the right and down, as cv2.Sobel of size 3."""
    return _separable(image, (1.0, 2.0, 1.0), (-1.0, 0.0, 1.0)), _separable(image, (-1.0, 0.0, 1.0), (1.0, 2.0, 1.0))


def _separable(image: Tensor, down: Sequence[float], across: Sequence[float]) -> Tensor:
    """Correlation (B, H, W) with a column and a row of odd length, the image mirrored about its outer pixels."""
    ry, rx = len(down) // 2, len(across) // 2
    height, width = image.shape[1:]
    wide = functional.pad(image[:, None], (rx, rx, ry, ry), mode="reflect")[:, 0]
    rows = sum(f * wide[:, i : i + height] for i, f in enumerate(down) if f)
    return sum(f * rows[..., i : i + width] for i, f in enumerate(across) if f)


@functools.lru_cache(maxsize=64)
def constant(values: tuple, device: torch.device) -> Tensor:
    """Numbers as a tensor that is there already when a capture begins: within it nothing may come from the host."""
    return torch.tensor(values).to(device)


@functools.cache
def _bell() -> tuple[float, ...]:
    """cv2.GaussianBlur's row of a standard deviation of 1.2."""
    bell = [math.exp(-0.5 * (i / 1.2) ** 2) for i in range(-5, 6)]
    return tuple(value / sum(bell) for value in bell)


@functools.lru_cache(maxsize=16)
def _areas(side: int, size: int, device: torch.device) -> Tensor:
    """(size, side): what share of each of `size` equal parts a pixel covers, as cv2.INTER_AREA shrinks."""
    edges = torch.arange(size + 1, dtype=torch.float64) * side / size
    pixels = torch.arange(side, dtype=torch.float64)
    cover = torch.minimum(edges[1:, None], pixels + 1) - torch.maximum(edges[:-1, None], pixels)
    return (cover.clamp_min(0) * size / side).float().to(device)


def _offsets(half: int, like: Tensor) -> Tensor:
    """(K, 2) x and y of a window's pixels, row by row."""
    along = torch.arange(-half, half + 1, dtype=torch.float32, device=like.device)
    y, x = torch.meshgrid(along, along, indexing="ij")
    return torch.stack([x.flatten(), y.flatten()], dim=1)


def _sample(image: Tensor, xy: Tensor, offsets: Tensor) -> Tensor:
    """Values (B, N, K) at `xy` (B, N, 2) and offsets (K, 2) or (B, N, K, 2), between pixels linearly, the border repeated."""
    count, height, width = image.shape
    at = xy[:, :, None] + offsets
    low = at.floor()
    fx, fy = (at - low).unbind(dim=3)
    x, y = low.unbind(dim=3)
    x0, x1 = x.clamp(0, width - 1).long(), (x + 1).clamp(0, width - 1).long()
    y0, y1 = y.clamp(0, height - 1).long(), (y + 1).clamp(0, height - 1).long()
    own = torch.arange(count, device=image.device)[:, None, None] * height
    above, below, flat = (own + y0) * width, (own + y1) * width, image.reshape(-1)
    a, b, c, d = (flat.take(index) for index in (above + x0, above + x1, below + x0, below + x1))
    upper, lower = a + (b - a) * fx, c + (d - c) * fx
    return upper + (lower - upper) * fy


def _unshaped(shape: Tensor) -> Tensor:
    """`refine.unshaped`, for (B, N, 2, 2)."""
    a, b, c, d = shape.flatten(2).unbind(dim=2)
    det = a * d - b * c
    det = torch.where(det.abs() < 1e-2, 1e-2, det)
    return torch.stack([d, -b, -c, a], dim=2).div(det[..., None]).unflatten(2, (2, 2))


def _centred(window: Tensor) -> Tensor:
    return window - window.mean(dim=(2, 3), keepdim=True)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(dim=(2, 3))


def _inverse(gx: Tensor, gy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of the damped normal matrices: a window without texture stays where it is."""
    xx, xy, yy = _dot(gx, gx), _dot(gx, gy), _dot(gy, gy)
    damp = 1e-3 * (xx + yy) + 1e-3
    xx, yy = xx + damp, yy + damp
    det = xx * yy - xy * xy
    return yy / det, -xy / det, xx / det


def _solved(inverse: tuple[Tensor, Tensor, Tensor], bx: Tensor, by: Tensor) -> Tensor:
    return torch.stack([inverse[0] * bx + inverse[1] * by, inverse[1] * bx + inverse[2] * by], dim=2)


def _doubt(template: Tensor, gx: Tensor, gy: Tensor, window: Tensor, half: int) -> Tensor:
    middle = slice(half // 2, half // 2 + 2 * (half - half // 2) + 1)
    t, gx, gy, w = (a[..., middle, middle] for a in (template, gx, gy, window))
    t, w = _centred(t), _centred(w)
    left = w * ((_dot(t, t) + 1e-6) / (_dot(w, w) + 1e-6)).sqrt()[..., None, None] - t
    return _solved(_inverse(gx, gy), _dot(gx, left), _dot(gy, left)).norm(dim=2)
