"""Where camera rays meet the ground: a polar table of the horizon gives the start, a march along the ray the answer."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from dino_perception.training.terrain.ground import Ground

NEAREST, FARTHEST = 0.3, 620.0
"""Horizontal reach in metres; beyond it is sky."""

RADII = 400


class Horizon:
    """The skyline of every azimuth in view, one table a frame.

    For a height field all rays of one azimuth are ordered by elevation: the running maximum of tan(elevation) along a
    radius says where each of them lands. Every ray starts just before the place its two neighbouring azimuths name,
    walks its own azimuth until it is below the ground, and is then solved to well under a millimetre.
    """

    def __init__(self, ground: Ground, origins: Tensor, directions: Tensor, columns: int):
        """`origins` (B, 3); `directions` (B, N, 3) span what will be asked for; `columns` azimuths are tabulated."""
        self.ground, self.origins, self.columns, self.rows = ground, origins, columns, 2 * columns
        batch, device = len(origins), origins.device
        growth = (FARTHEST / NEAREST) ** (1.0 / (RADII - 1))
        self.radii = NEAREST * growth ** torch.arange(RADII, device=device, dtype=torch.float32)
        middle = directions.sum(1)
        self.heading = torch.atan2(middle[:, 1], middle[:, 0])
        frame = torch.arange(batch, device=device).repeat_interleave(directions.shape[1])
        azimuth = self._azimuth(directions.reshape(-1, 3), frame).view(batch, -1)
        rise = _rise(directions)
        self.left, self.right = azimuth.amin(1) - 0.01, azimuth.amax(1) + 0.01
        self.lowest, self.highest = rise.amin(1).clamp_min(-6.0) - 0.01, rise.amax(1).clamp_max(3.0) + 0.01
        span = torch.linspace(0, 1, columns, device=device)
        angles = (self.heading + self.left)[:, None] + (self.right - self.left)[:, None] * span
        x = origins[:, 0, None, None] + torch.cos(angles)[..., None] * self.radii
        y = origins[:, 1, None, None] + torch.sin(angles)[..., None] * self.radii
        height = ground.height_at(x.flatten(), y.flatten()).view(batch, columns, RADII)
        skyline = torch.cummax((height - origins[:, 2, None, None]) / self.radii, dim=2).values
        # Tabulated over elevation too, so that a ray's lookup is one read: rows of equal tan(elevation).
        span = torch.linspace(0, 1, self.rows, device=device)
        grid = self.lowest[:, None] + (self.highest - self.lowest)[:, None] * span
        first = torch.searchsorted(skyline, grid[:, None, :].expand(batch, columns, self.rows).contiguous())
        first = -F.max_pool1d(-first.float().transpose(1, 2), 2, 1).transpose(1, 2)
        self.first = first.long().flatten()

    def meet(self, directions: Tensor, frame: Tensor) -> Tensor:
        """Ray parameter t (R,) float32 of the first point `origins[frame] + t * directions` on the ground; inf: sky."""
        level = torch.linalg.vector_norm(directions[:, :2], dim=1).clamp_min(1e-6)
        ux, uy, rise = directions[:, 0] / level, directions[:, 1] / level, directions[:, 2] / level
        ox, oy, oz = self.origins.index_select(0, frame).unbind(1)
        radii, zero = self.radii, torch.zeros_like(self.radii[:1])

        def clearance(rays: Tensor, r: Tensor) -> Tensor:
            x, y, z, dx, dy, dz = (v.index_select(0, rays) for v in (ox, oy, oz, ux, uy, rise))
            return z + r * dz - self.ground.height_at(x + r * dx, y + r * dy)

        k = self._start(directions, rise, frame)
        active = (k < RADII).nonzero()[:, 0]
        k = k.index_select(0, active)
        low_r = torch.where(k > 0, radii[(k - 1).clamp_min(0)], zero)
        low_g = clearance(active, low_r)
        # A start below the ground means that the neighbours' hint was too late: step back towards the camera.
        for _ in range(24):
            late = (low_g <= 0).nonzero()[:, 0]
            if not len(late):
                break
            k[late] = (k[late] - 4).clamp_min(0)
            low_r[late] = torch.where(k[late] > 0, radii[(k[late] - 1).clamp_min(0)], zero)
            low_g[late] = clearance(active[late], low_r[late])
        found: list[tuple[Tensor, ...]] = []
        step = 0
        while len(active):
            high_r = radii[k.clamp_max(RADII - 1)]
            high_g = clearance(active, high_r)
            below = high_g <= 0
            hit = below.nonzero()[:, 0]
            if len(hit):
                found.append((active[hit], low_r[hit], high_r[hit], low_g[hit], high_g[hit]))
            step += 1
            k = k + (1 if step < 12 else 2 if step < 30 else 5)
            on = (~below & (k < RADII)).nonzero()[:, 0]
            active, k, low_r, low_g = active[on], k[on], high_r[on], high_g[on]
        landed = torch.full_like(rise, math.inf)
        if found:
            rays, a, b, ga, gb = (torch.cat(parts) for parts in zip(*found))
            landed[rays] = _solve(lambda r: clearance(rays, r), a, b, ga, gb)
        return landed / level

    def _start(self, directions: Tensor, rise: Tensor, frame: Tensor) -> Tensor:
        """For each ray the index of the first radius at which its neighbouring azimuths may be below the ground."""
        left, right, lowest, highest = (
            v.index_select(0, frame) for v in (self.left, self.right, self.lowest, self.highest)
        )
        column = ((self._azimuth(directions, frame) - left) / (right - left) * (self.columns - 1)).long()
        row = ((rise - lowest) / (highest - lowest) * (self.rows - 1)).long()
        column, row = column.clamp(0, self.columns - 2), row.clamp(0, self.rows - 1)
        return self.first.index_select(0, (frame * (self.columns - 1) + column) * self.rows + row)

    def _azimuth(self, directions: Tensor, frame: Tensor) -> Tensor:
        """Relative to the frame's heading, -pi..pi."""
        c, s = torch.cos(self.heading).index_select(0, frame), torch.sin(self.heading).index_select(0, frame)
        x, y = directions[:, 0], directions[:, 1]
        return torch.atan2(y * c - x * s, x * c + y * s)


def _rise(directions: Tensor) -> Tensor:
    return directions[..., 2] / torch.linalg.vector_norm(directions[..., :2], dim=-1).clamp_min(1e-6)


def _solve(clearance, a: Tensor, b: Tensor, ga: Tensor, gb: Tensor) -> Tensor:
    """The crossing between a (above) and b (below): false position, with the stale end's weight halved (Illinois)."""
    for _ in range(5):
        r = a + (b - a) * (ga / (ga - gb).clamp_min(1e-9)).clamp(0.02, 0.98)
        g = clearance(r)
        above = g > 0
        a, b = torch.where(above, r, a), torch.where(above, b, r)
        ga, gb = torch.where(above, g, 0.5 * ga), torch.where(above, 0.5 * gb, g)
    return a + (b - a) * (ga / (ga - gb).clamp_min(1e-9)).clamp(0.0, 1.0)
