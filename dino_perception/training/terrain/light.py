"""Sun, sky and air: where the shadows fall, how bright the sky is, what distance does to colour."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dino_perception.training.terrain.ground import CELLS, SIZE, Ground
from dino_perception.training.terrain.noise import bilinear, smoothstep, stream, uniform
from dino_perception.training.terrain.rocks import Rocks
from dino_perception.training.terrain.styles import Style


@dataclass(frozen=True)
class Light:
    """One moment's light. `sun` points towards the sun; radiances are relative to a white surface facing it."""

    sun: tuple[float, float, float]
    sun_colour: tuple[float, float, float]
    zenith: tuple[float, float, float]
    horizon: tuple[float, float, float]
    ambient: float
    haze: float
    glow: float
    clouds: float
    cloud_seed: int

    @classmethod
    def draw(cls, seed: int, style: Style) -> Light:
        rng = stream(seed, "light")
        elevation = math.radians(uniform(rng, *style.sun_elevation))
        azimuth = uniform(rng, 0.0, 2 * math.pi)
        low = max(0.0, 1.0 - elevation / 0.6)
        warm = (1.0, 1.0 - 0.12 * low, 1.0 - 0.30 * low) if style.haze[0] < 1e5 else (1.0, 1.0, 1.0)
        haze = math.exp(uniform(rng, math.log(style.haze[0]), math.log(style.haze[1])))
        return cls(
            sun=(math.cos(elevation) * math.cos(azimuth), math.cos(elevation) * math.sin(azimuth), math.sin(elevation)),
            sun_colour=tuple(c * w for c, w in zip(style.sun, warm)),
            zenith=style.sky_zenith,
            horizon=style.sky_horizon,
            ambient=uniform(rng, *style.ambient),
            haze=haze,
            glow=style.glow,
            clouds=style.clouds * uniform(rng, 0.0, 1.0),
            cloud_seed=seed,
        )

    def sky(self, direction: Tensor) -> Tensor:
        """Radiance (N, 3) of the sky in unit directions (N, 3)."""
        device = direction.device
        zenith, horizon = torch.tensor(self.zenith, device=device), torch.tensor(self.horizon, device=device)
        up = direction[:, 2].clamp_min(0.0)
        blend = torch.exp(-up / 0.22)[:, None]
        radiance = zenith + (horizon - zenith) * blend
        if self.clouds > 0.02:
            radiance = torch.lerp(
                radiance,
                torch.full_like(radiance, 1.05 * float(horizon.mean())),
                (self.clouds * self._clouds(direction))[:, None],
            )
        towards = (direction * torch.tensor(self.sun, device=device)).sum(1).clamp(-1, 1)
        angle = torch.acos(towards)
        halo = self.glow * (0.5 * torch.exp(-angle / 0.22) + 1.5 * torch.exp(-angle / 0.05))
        radiance = radiance * (1.0 + 0.35 * self.glow * torch.exp(-angle / 0.8))[:, None]
        disc = 30.0 * smoothstep(0.0070, 0.0050, angle)
        return radiance + (halo + disc)[:, None] * torch.tensor(self.sun_colour, device=device)

    def _clouds(self, direction: Tensor) -> Tensor:
        """Cover 0..1: a few octaves of waves on a plane far above."""
        rng = stream(self.cloud_seed, "clouds")
        scale = 1.0 / (direction[:, 2].clamp_min(0.0) + 0.06)
        x, y = direction[:, 0] * scale, direction[:, 1] * scale
        total = torch.zeros_like(x)
        for octave in range(5):
            for _ in range(3):
                a, phase = uniform(rng, 0, 6.28), uniform(rng, 0, 6.28)
                k = 0.7 * 1.9**octave
                total += 0.6**octave * torch.sin(k * (math.cos(a) * x + 0.6 * math.sin(a) * y) + phase + 0.8 * total)
        return smoothstep(-0.2, 2.2, total) * smoothstep(0.0, 0.08, direction[:, 2])

    def through_air(self, colour: Tensor, direction: Tensor, distance: Tensor) -> Tensor:
        """`colour` (N, 3) seen through `distance` metres of air along unit `direction`."""
        level = torch.nn.functional.normalize(direction * torch.tensor([1.0, 1.0, 0.0], device=direction.device), dim=1)
        kept = torch.exp(-distance / self.haze)[:, None]
        towards = (level * torch.tensor(self.sun, device=direction.device)).sum(1, keepdim=True)
        air = torch.tensor(self.horizon, device=direction.device) * (0.86 + 0.14 * self.glow * towards)
        return colour * kept + air * (1.0 - kept)


class Shade:
    """What the sun and the sky reach: for every place the height below which a point lies in shadow.

    In a grid turned towards the sun a row's shadow height is a running maximum of (height - distance * tan(elevation)),
    so one `cummax` a level gives the shadows of everything standing in it.
    """

    def __init__(self, raised: list[Tensor], sun: tuple[float, float, float]):
        """`raised`: the height grid of each level, rocks included (`raised_grids`)."""
        level = math.hypot(sun[0], sun[1])
        self.toward = (sun[0] / level, sun[1] / level)
        self.drop = sun[2] / level
        self.flat = torch.cat([self._heights(grid, cell).flatten() for grid, cell in zip(raised, CELLS)])

    def _heights(self, grid: Tensor, cell: float) -> Tensor:
        """Rows run across the sun's direction, columns along it, the sun's side last; same cell as the grid."""
        device = grid.device
        axis = torch.arange(SIZE, device=device, dtype=torch.float32) - (SIZE - 1) / 2
        along, across = axis[None, :], axis[:, None]
        c, s = self.toward
        x, y = along * c - across * s, along * s + across * c
        place = torch.stack([x, y], -1) / ((SIZE - 1) / 2)
        turned = F.grid_sample(grid[None, None], place[None], padding_mode="border", align_corners=True)
        fall = axis * (cell * self.drop)
        reach = torch.cummax((turned[0, 0] - fall).flip(1), 1).values.flip(1)
        return reach + fall

    def sunlit(self, point: Tensor) -> Tensor:
        """Share of the sun (N,) that reaches points (N, 3) past the terrain, with a narrow penumbra."""
        x, y, z = point.unbind(1)
        c, s = self.toward
        along, across = x * c + y * s, y * c - x * s
        reach = torch.maximum(along.abs(), across.abs())
        lit = torch.ones_like(x)
        for level, (cell, soft, bias) in enumerate(zip(CELLS, (0.014, 0.10, 0.8), (0.004, 0.05, 0.5))):
            half = (SIZE / 2 - 2) * cell
            u = (along / cell + (SIZE - 1) / 2).clamp(0, SIZE - 1.001)
            v = (across / cell + (SIZE - 1) / 2).clamp(0, SIZE - 1.001)
            column, row = u.to(torch.int32), v.to(torch.int32)
            height = bilinear(self.flat, level * SIZE * SIZE + row * SIZE + column, SIZE, u - column, v - row)
            dark = smoothstep(bias, bias + soft, height - z)
            lit = torch.where(reach < half, torch.minimum(lit, 1.0 - dark), lit)
        return lit


def raised_grids(ground: Ground, rocks: Rocks) -> list[Tensor]:
    return [rocks.raise_grid(ground.grid(level), level) if level < 2 else ground.grid(level) for level in range(3)]


def mean_heights(raised: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """For each level the mean height, rocks included, within about 0.15 m and 0.9 m (in cells on the coarser levels):
    a point far below its surroundings' mean sees less sky."""
    means = []
    for level, grid in enumerate(raised):
        near = _blur(grid, 4 if level == 0 else 2)
        small = F.avg_pool2d(grid[None, None], 4)[0, 0]
        wide = F.interpolate(_blur(small, 6 if level == 0 else 3)[None, None], size=(SIZE, SIZE), mode="bilinear")[0, 0]
        means.append((near, wide))
    return means


def _blur(grid: Tensor, radius: int) -> Tensor:
    side = 2 * radius + 1
    out = grid[None, None]
    for _ in range(2):
        out = F.avg_pool2d(F.pad(out, (radius, radius, 0, 0), mode="replicate"), (1, side), 1)
        out = F.avg_pool2d(F.pad(out, (0, 0, radius, radius), mode="replicate"), (side, 1), 1)
    return out[0, 0]
