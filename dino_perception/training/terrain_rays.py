"""Where camera rays meet the ground: a polar table of the horizon gives the start, a march along the ray the answer."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .terrain_ground import Ground

NEAREST, FARTHEST = 0.3, 620.0
"""Horizontal reach in metres; beyond it is sky."""

RADII = 400


def meet_ground(ground: Ground, origins: Tensor, directions: Tensor, columns: int) -> Tensor:
    """Ray parameter t (B, N) float32 of the first point `origins + t * directions` on the ground, inf for sky.

    `origins` (B, 3), `directions` (B, N, 3). For a height field all rays of one azimuth are ordered by elevation: the
    running maximum of tan(elevation) along a radius says where each of them lands. `columns` azimuths are tabulated;
    every ray starts just before the place its two neighbouring azimuths name, walks its own azimuth until it is below
    the ground, and is then solved to well under a millimetre.
    """
    batch, count = directions.shape[:2]
    device = directions.device
    growth = (FARTHEST / NEAREST) ** (1.0 / (RADII - 1))
    radii = NEAREST * growth ** torch.arange(RADII, device=device, dtype=torch.float32)
    level = torch.linalg.vector_norm(directions[..., :2], dim=-1).clamp_min(1e-6)
    rise = directions[..., 2] / level
    first, last = _table(ground, origins, directions, rise, radii, columns)

    # Flat arrays from here on; one entry a ray.
    frame = torch.arange(batch, device=device).repeat_interleave(count)
    ux, uy = (directions[..., 0] / level).flatten(), (directions[..., 1] / level).flatten()
    rise = rise.flatten()
    start = origins.index_select(0, frame)
    ox, oy, oz = start.unbind(1)

    def clearance(rays: Tensor | None, r: Tensor) -> Tensor:
        if rays is None:
            return oz + r * rise - ground.height_at(ox + r * ux, oy + r * uy)
        x, y, z, dx, dy, dz = (v.index_select(0, rays) for v in (ox, oy, oz, ux, uy, rise))
        return z + r * dz - ground.height_at(x + r * dx, y + r * dy)

    k = first.flatten()
    landed = torch.full_like(rise, math.inf)
    active = (k < RADII).nonzero()[:, 0]
    k = k.index_select(0, active)
    low_r = torch.where(k > 0, radii[(k - 1).clamp_min(0)], torch.zeros_like(radii[:1]))
    low_g = clearance(active, low_r)
    # A start below the ground means that the neighbours' hint was too late: go back to the camera's side of it.
    for _ in range(24):
        late = (low_g <= 0).nonzero()[:, 0]
        if not len(late):
            break
        k[late] = (k[late] - 4).clamp_min(0)
        low_r[late] = torch.where(k[late] > 0, radii[(k[late] - 1).clamp_min(0)], torch.zeros_like(radii[:1]))
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
    if found:
        rays, a, b, ga, gb = (torch.cat(parts) for parts in zip(*found))
        landed[rays] = _solve(lambda r: clearance(rays, r), a, b, ga, gb)
    return landed.view(batch, count) / level


def _solve(clearance, a: Tensor, b: Tensor, ga: Tensor, gb: Tensor) -> Tensor:
    """The crossing between a (above) and b (below): false position, with the stale end's weight halved (Illinois)."""
    for _ in range(5):
        r = a + (b - a) * (ga / (ga - gb).clamp_min(1e-9)).clamp(0.02, 0.98)
        g = clearance(r)
        above = g > 0
        a, b = torch.where(above, r, a), torch.where(above, b, r)
        ga, gb = torch.where(above, g, 0.5 * ga), torch.where(above, 0.5 * gb, g)
    return a + (b - a) * (ga / (ga - gb).clamp_min(1e-9)).clamp(0.0, 1.0)


def _table(ground: Ground, origins: Tensor, directions: Tensor, rise: Tensor, radii: Tensor,
           columns: int) -> tuple[Tensor, Tensor]:
    """For each ray the index of the first radius at which its neighbouring azimuths may be below the ground."""
    batch = len(origins)
    device = directions.device
    middle = directions.sum(1)
    heading = torch.atan2(middle[:, 1], middle[:, 0])[:, None]
    c, s = torch.cos(heading), torch.sin(heading)
    azimuth = torch.atan2(directions[..., 1] * c - directions[..., 0] * s, directions[..., 0] * c + directions[..., 1] * s)
    left, right = azimuth.amin(1, keepdim=True) - 1e-4, azimuth.amax(1, keepdim=True) + 1e-4
    place = (azimuth - left) / (right - left) * (columns - 1)
    angles = heading + left + (right - left) * torch.linspace(0, 1, columns, device=device)
    x = origins[:, 0, None, None] + torch.cos(angles)[..., None] * radii
    y = origins[:, 1, None, None] + torch.sin(angles)[..., None] * radii
    height = ground.height_at(x.flatten(), y.flatten()).view(batch, columns, RADII)
    skyline = torch.cummax((height - origins[:, 2, None, None]) / radii, dim=2).values
    # Tabulated over elevation too, so that a ray's lookup is one read: rows of equal tan(elevation).
    rows = 2 * columns
    lowest, highest = rise.amin(1, keepdim=True).clamp_min(-6.0), rise.amax(1, keepdim=True).clamp_max(3.0)
    grid = lowest + (highest - lowest) * torch.linspace(0, 1, rows, device=device)
    first = torch.searchsorted(skyline, grid[:, None, :].expand(batch, columns, rows).contiguous())
    first = -F.max_pool1d(-first.float().transpose(1, 2), 2, 1).transpose(1, 2)
    row = ((rise - lowest) / (highest - lowest) * (rows - 1)).long().clamp(0, rows - 1)
    column = place.long().clamp(0, columns - 2)
    index = (torch.arange(batch, device=device)[:, None] * (columns - 1) + column) * rows + row
    return first.flatten().index_select(0, index.flatten()).long().view_as(index), skyline
