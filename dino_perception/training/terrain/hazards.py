"""What makes ground hard to drive on, on demand: long steep hills, and trenches."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dino_perception.training.terrain.noise import rotation, smoothstep, stream, uniform

WAVE = 24.0
"""Metres from one hill to the next."""
WIDTH, DEPTH = (0.5, 0.9), (0.35, 0.6)
"""Metres across and down a trench, from and to."""
WALL = 0.12
"""Metres across which a trench falls to its bottom."""
NEAREST, REACH = 2.0, 9.0
"""Metres from the origin at which trenches pass."""

Trench = tuple[float, float, float, float, float]
"""Normal (x, y), distance from the origin, half the width, depth; metres."""


def long_hills(seed: int, slope: float, x: Tensor, y: Tensor) -> Tensor:
    """Heights in metres at x (1, W), y (H, 1): waves across one direction whose steepest places are `slope` degrees."""
    draw = stream(seed, "long hills")
    c, s = rotation(uniform(draw, 0.0, 2 * math.pi))
    along = (c * x + s * y) * (2 * math.pi / WAVE) + uniform(draw, 0.0, 2 * math.pi)
    return math.tan(math.radians(slope)) * WAVE / (2 * math.pi) * torch.sin(along)


def trench_lines(seed: int, count: int) -> list[Trench]:
    """Straight trenches that pass the origin at NEAREST to REACH metres, in any direction."""
    draw = stream(seed, "trenches")
    lines = []
    for _ in range(count):
        c, s = rotation(uniform(draw, 0.0, 2 * math.pi))
        lines.append((c, s, uniform(draw, NEAREST, REACH), uniform(draw, *WIDTH) / 2, uniform(draw, *DEPTH)))
    return lines


def dug(trenches: list[Trench], axis: Tensor) -> Tensor:
    """Metres (N, N) by which trenches lower the ground at the places of a level's axis (N,), rows along y."""
    deepest = torch.zeros((len(axis), len(axis)), device=axis.device)
    for c, s, distance, half, depth in trenches:
        away = (c * axis[None, :] + s * axis[:, None] - distance).abs()
        deepest = torch.maximum(deepest, depth * smoothstep(half, half - WALL, away))
    return deepest
