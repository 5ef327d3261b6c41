"""Fine structure: tileable relief and tone of soil, sand, bedrock and rock at 2.5 mm, filtered for every distance."""

from __future__ import annotations

import functools
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from dino_perception.training.terrain.noise import smoothstep, spectral, stream, uniform
from dino_perception.training.terrain.rocks import expand

TEXELS, TILE = 1024, 2.56
"""A texture is TEXELS x TEXELS and covers TILE x TILE metres."""

SOIL, SAND, BEDROCK, ROCK = range(4)
LEVELS = 10
VARIANTS = 6
TOTAL = (TEXELS * TEXELS - 1) * 4 // 3
"""Texels of one material's pyramid, 1024 x 1024 down to 2 x 2."""

CELL = TILE / TEXELS


class Textures:
    """One material after another; `flat` (4 * TOTAL, 4) float32: tone (mean near 1), slope x, slope y, lit share."""

    def __init__(self, seed: int, sun: tuple[float, float, float], wind: float, device: torch.device | str = "cpu"):
        rng = stream(seed, "textures")
        chosen = torch.randint(0, VARIANTS, (4,), generator=rng).tolist()
        pyramids = []
        for material, variant in enumerate(chosen):
            height, tone = relief(material, variant, wind > 0, str(device))
            pyramids.append(_pyramid(height, tone, sun, material == ROCK))
        self.flat = torch.cat(pyramids)

    def sample(self, material: Tensor | int, u: Tensor, v: Tensor, texels: Tensor) -> Tensor:
        """(N, 4) at `u`, `v` (in tiles), averaged over a footprint of `texels` texels."""
        lod = torch.log2(texels.clamp_min(1.0)).clamp_max(LEVELS - 1.001)
        level = lod.to(torch.int64)
        near = self._bilinear(material, u, v, level)
        return torch.lerp(near, self._bilinear(material, u, v, level + 1), (lod - level)[:, None])

    def _bilinear(self, material: Tensor | int, u: Tensor, v: Tensor, level: Tensor) -> Tensor:
        n = torch.bitwise_right_shift(torch.full_like(level, TEXELS), level)
        base = torch.div((TEXELS * TEXELS - n * n) * 4, 3, rounding_mode="trunc") + material * TOTAL
        x, y = (u - u.floor()) * n - 0.5, (v - v.floor()) * n - 0.5
        x0, y0 = x.floor(), y.floor()
        fx, fy = (x - x0)[:, None], (y - y0)[:, None]
        mask = n - 1
        c0, r0 = x0.long() & mask, y0.long() & mask
        c1 = (c0 + 1) & mask
        r0, r1 = base + r0 * n, base + ((r0 + 1) & mask) * n
        flat = self.flat
        top = torch.lerp(flat.index_select(0, r0 + c0), flat.index_select(0, r0 + c1), fx)
        return torch.lerp(top, torch.lerp(flat.index_select(0, r1 + c0), flat.index_select(0, r1 + c1), fx), fy)


def _pyramid(height: Tensor, tone: Tensor, sun: tuple[float, float, float], any_side: bool) -> Tensor:
    sx = (height.roll(-1, 1) - height.roll(1, 1)) / (2 * CELL)
    sy = (height.roll(-1, 0) - height.roll(1, 0)) / (2 * CELL)
    lit = torch.ones_like(height) if any_side else _lit(height, sun)
    layers = torch.stack([tone, sx, sy, lit])[None]
    flats = []
    for _ in range(LEVELS):
        flats.append(layers[0].permute(1, 2, 0).reshape(-1, 4))
        layers = F.avg_pool2d(layers, 2)
    return torch.cat(flats)


def _lit(height: Tensor, sun: tuple[float, float, float]) -> Tensor:
    """Share of the sunlight that reaches each texel past its neighbours (up to 8 cm away), by doubling steps."""
    level = math.hypot(sun[0], sun[1])
    dx, dy, drop = sun[0] / level, sun[1] / level, sun[2] / level * CELL
    shade = height
    for reach in (1, 2, 4, 8, 16):
        moved = shade.roll((-round(dy * reach), -round(dx * reach)), (0, 1)) - drop * math.hypot(
            round(dx * reach), round(dy * reach)
        )
        shade = torch.maximum(shade, moved)
    return 1.0 - smoothstep(0.0002, 0.002, shade - height)


@functools.lru_cache(maxsize=4 * VARIANTS)
def relief(material: int, variant: int, windy: bool, device: str) -> tuple[Tensor, Tensor]:
    """Height in metres and tone (mean about 1) of one texture, both (TEXELS, TEXELS)."""
    rng = stream(variant, "texture", material)

    def noise(shortest: float, longest: float, slope: float, stretch: float = 1.0) -> Tensor:
        return spectral(rng, TEXELS, CELL, shortest, longest, slope, device, stretch)

    if material == SOIL:
        lumps = noise(0.012, 0.35, 0.55)
        grain = noise(0.005, 0.03, 0.1)
        height = 0.0045 * lumps + 0.0007 * grain
        clods = smoothstep(0.4, 1.8, noise(0.02, 0.12, 0.3))
        height = height + 0.004 * clods
        tone = 1.0 + 0.05 * lumps + 0.05 * grain + 0.05 * noise(0.05, 1.0, 0.4)
        return _pebbles(rng, height, tone, int(uniform(rng, 1500, 5500)), 0.0035, 0.022)
    if material == SAND:
        x = torch.arange(TEXELS, device=device) * CELL
        bend = noise(0.15, 1.2, 0.8)
        waves = int(uniform(rng, 24, 40))
        phase = 2 * math.pi * waves / TILE * x[None, :] + 1.3 * bend
        phase = phase + 0.45 * torch.sin(phase)
        crest = 1.0 - 2.0 * torch.sin(0.5 * phase).abs() ** 1.4
        strong = float(windy) * smoothstep(-0.6, 0.8, noise(0.3, 1.5, 0.6))
        grain = noise(0.005, 0.02, 0.0)
        height = 0.0034 * crest * strong + 0.0015 * noise(0.02, 0.4, 0.7) + 0.00045 * grain
        tone = 1.0 + 0.10 * grain + 0.05 * crest * strong + 0.04 * noise(0.04, 1.0, 0.4)
        return _pebbles(rng, height, tone, int(uniform(rng, 60, 320)), 0.003, 0.010)
    if material == BEDROCK:
        rough = noise(0.006, 0.5, 0.75)
        layered = noise(0.008, 0.4, 0.6, stretch=4.0)
        first, second = noise(0.03, 0.6, 0.8), noise(0.015, 0.25, 0.7)
        crack = torch.exp(-((first.abs() / 0.035) ** 1.3)) * smoothstep(-0.5, 0.6, second)
        hair = torch.exp(-((second.abs() / 0.05) ** 1.3)) * smoothstep(0.0, 1.0, first)
        pits = smoothstep(1.5, 2.4, noise(0.008, 0.04, 0.0))
        height = 0.0042 * rough + 0.0018 * layered - 0.008 * crack - 0.003 * hair - 0.005 * pits
        tone = 1.0 + 0.06 * rough + 0.07 * layered + 0.05 * noise(0.1, 1.5, 0.3)
        tone = tone - 0.35 * crack - 0.18 * hair - 0.2 * pits
        return _pebbles(rng, height, tone, int(uniform(rng, 200, 900)), 0.003, 0.014)
    rough = noise(0.006, 0.3, 0.6)
    ridged = 1.0 - noise(0.015, 0.25, 0.5).abs()
    grain = noise(0.005, 0.02, 0.0)
    pits = smoothstep(1.3, 2.2, noise(0.008, 0.05, 0.0))
    height = 0.006 * rough + 0.004 * ridged + 0.0006 * grain - 0.006 * pits
    tone = 1.0 + 0.10 * rough + 0.07 * ridged + 0.10 * grain - 0.25 * pits
    return height, tone.clamp(0.3, 1.8)


def _pebbles(
    rng: torch.Generator, height: Tensor, tone: Tensor, count: int, small: float, large: float
) -> tuple[Tensor, Tensor]:
    """Strews small stones: flattened, cut by a random plane, in sizes N(>r) ~ r**-2.4."""
    exponent = 2.4
    n = torch.rand((count, 9), generator=rng).to(height.device)
    radius = (small**-exponent + n[:, 0] * (large**-exponent - small**-exponent)) ** (-1 / exponent) / CELL
    reach = radius.ceil().long() + 1
    side = 2 * reach + 1
    stone, inside = expand(side * side)
    ox = inside % side[stone] - reach[stone]
    oy = torch.div(inside, side[stone], rounding_mode="floor") - reach[stone]
    cx, cy = n[:, 1] * TEXELS, n[:, 2] * TEXELS
    dx = ox + cx.floor()[stone] - cx[stone]
    dy = oy + cy.floor()[stone] - cy[stone]
    angle = 6.2832 * n[:, 3]
    c, s, r = torch.cos(angle)[stone], torch.sin(angle)[stone], radius[stone]
    u, v = (dx * c + dy * s) / r, (dy * c - dx * s) / (r * (0.6 + 0.4 * n[stone, 4]))
    rim = u.abs() ** 2.6 + v.abs() ** 2.6
    dome = (1.0 - rim).clamp_min(0.0) ** 0.5
    cut = 0.55 + 0.35 * n[stone, 5] + 0.5 * (n[stone, 6] - 0.5) * u + 0.5 * (n[stone, 7] - 0.5) * v
    top = torch.minimum(dome, cut) * r * CELL * 0.75
    column = (ox + cx.long()[stone]) % TEXELS
    row = (oy + cy.long()[stone]) % TEXELS
    index = row * TEXELS + column
    stones = torch.zeros(TEXELS * TEXELS, device=height.device).scatter_reduce(0, index, top, "amax")
    visible = (top > 0) & (top >= stones[index])
    shade = torch.zeros(TEXELS * TEXELS, device=height.device)
    shade[index[visible]] = (0.62 + 0.6 * n[:, 8])[stone[visible]]
    stones, shade = stones.view(TEXELS, TEXELS), shade.view(TEXELS, TEXELS)
    covered = stones > 0
    return height + stones, torch.where(covered, shade * (0.8 + 0.2 * tone), tone)
