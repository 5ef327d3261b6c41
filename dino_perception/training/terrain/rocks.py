"""Rocks: thousands of angular blocks, half buried, each an exact solid that rays are intersected with."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dino_perception.training.terrain.ground import CELLS, SIZE, Ground
from dino_perception.training.terrain.noise import stream, uniform
from dino_perception.training.terrain.styles import BIG_ROCK_DIAMETER, Style

FACES = 26
BALL = 1.12
"""A rock is the part of a polytope of FACES faces inside a ball of this radius, in its own stretched coordinates."""

BUMPS = 0.05
"""Amplitude of the smooth bumps added to that, in the same coordinates."""


@dataclass
class Hits:
    """Nearest rock hits, one row a hit pixel: ray index, ray parameter, rock index, local point, world normal."""

    ray: Tensor
    t: Tensor
    rock: Tensor
    local: Tensor
    normal: Tensor


class Rocks:
    """`centre` (M, 3) metres, `to_local` (M, 3, 3) (local = to_local @ (p - centre), the rock inside the ball BALL),
    `offset` (M, FACES), `diameter` (M,) metres, `tint` (M,), `phase` (M, 3)."""

    def __init__(self, seed: int, style: Style, ground: Ground):
        self.device = ground.device
        rng = stream(seed, "rocks")
        density = uniform(rng, *style.rocks)
        self.normals = _directions(FACES, rng).to(self.device)
        diameter, x, y = self._scatter(rng, density, ground)
        count = len(diameter)

        def rand(*shape: int) -> Tensor:
            return torch.rand(shape, generator=rng).to(self.device)

        flat = style.flatness[0] + (style.flatness[1] - style.flatness[0]) * rand(count)
        axes = torch.stack([torch.ones_like(flat), 0.62 + 0.38 * rand(count), flat], 1) * (0.58 * diameter)[:, None]
        turn = _turns(rand(count) * 6.2832, 0.22 * (rand(count, 2) - 0.5) * (1 + 4 * (rand(count, 1) > 0.8)))
        self.centre = torch.stack([x, y, ground.height_at(x, y) + axes[:, 2] * (0.65 * rand(count) - 0.3)], 1)
        self.axes, self.turn = axes, turn
        self.to_local = turn.transpose(1, 2) / axes[:, :, None]
        # Few faces cut deep and many hardly: a block, not a ball.
        self.offset = 1.04 - 0.5 * rand(count, FACES) ** (0.7 + 1.3 * rand(count, 1))
        self.diameter = diameter
        self.tint = (rand(count) + rand(count) - 1.0) * style.rock_tint
        self.phase = rand(count, 3) * 6.2832
        self.kind = rand(count)

    def _scatter(self, rng: torch.Generator, density: float, ground: Ground) -> tuple[Tensor, Tensor, Tensor]:
        """Diameters and places: N(>D) ~ D**-2.1, down to 1.5 cm near the origin and to a metre far away, in clumps."""
        sizes, xs, ys = [], [], []
        # (smallest, largest, half extent): a rock is only made where it can be seen.
        for low, high, half in ((0.015, 0.05, 9.0), (0.05, 0.18, 19.0), (0.18, 0.6, 75.0), (0.6, 2.6, 240.0)):
            exponent = 2.1
            share = (low / 0.05) ** -exponent - (high / 0.05) ** -exponent
            number = min(int(density * share * (2 * half) ** 2), 60_000)
            u = torch.rand((number,), generator=rng)
            sizes.append((low**-exponent + u * (high**-exponent - low**-exponent)) ** (-1 / exponent))
            xs.append((2 * torch.rand((number,), generator=rng) - 1) * half)
            ys.append((2 * torch.rand((number,), generator=rng) - 1) * half)
        d, x, y = (torch.cat(v).to(self.device) for v in (sizes, xs, ys))
        surface = ground.surface_at(x, y)
        clump = torch.sigmoid(2.2 * surface[:, 4]) + 0.5 * (surface[:, 3] > -0.12)
        # Sand buries small rocks.
        clump = clump * torch.where(surface[:, 2] > 0.01, 0.18, 1.0)
        keep = torch.rand((len(d),), generator=rng).to(self.device) < clump
        return d[keep], x[keep], y[keep]

    def remove(self, mask: Tensor) -> None:
        for name in ("centre", "axes", "turn", "to_local", "offset", "diameter", "tint", "phase", "kind"):
            setattr(self, name, getattr(self, name)[~mask])

    @property
    def big(self) -> Tensor:
        return self.diameter >= BIG_ROCK_DIAMETER

    def nearest(
        self, rays: Tensor, frames: Tensor, rocks: Tensor, origins: Tensor, directions: Tensor, limit: Tensor
    ) -> Hits:
        """Of the candidate pairs (ray, rock) the nearest hit of each ray that is closer than `limit` (N,).

        `rays`, `rocks`, `frames` (P,) index `directions` (N, 3), the rocks and `origins` (B, 3)."""
        t, local, ok = self._pierce(frames, rocks, origins, directions.index_select(0, rays))
        keep = (ok & (t < limit.index_select(0, rays))).nonzero()[:, 0]
        rays, rocks, t, local = rays[keep], rocks[keep], t[keep], local[keep]
        number = len(limit)
        best = torch.full((number,), math.inf, device=t.device).scatter_reduce(0, rays, t, "amin")
        first = (t <= best.index_select(0, rays)).nonzero()[:, 0]
        # Two rocks at exactly one depth: the first of them, on every machine.
        order = torch.full((number,), len(t), device=t.device).scatter_reduce(0, rays[first], first, "amin")
        winner = order[order < len(t)]
        rays, rocks, t, local = rays[winner], rocks[winner], t[winner], local[winner]
        return Hits(rays, t, rocks, local, self._normal(local, rocks))

    def _pierce(self, frames: Tensor, rocks: Tensor, origins: Tensor, d: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Ray parameter, local hit point and whether there is one, for each pair."""
        m = self.to_local.index_select(0, rocks)
        o = (m @ (origins.index_select(0, frames) - self.centre.index_select(0, rocks))[:, :, None])[:, :, 0]
        d = (m @ d[:, :, None])[:, :, 0]
        speed, away = d @ self.normals.T, o @ self.normals.T
        reach = (self.offset.index_select(0, rocks) + BUMPS - away) / torch.where(speed.abs() < 1e-9, 1e-9, speed)
        enter = torch.where(speed < 0, reach, -math.inf).amax(1)
        leave = torch.where(speed < 0, math.inf, reach).amin(1)
        a, b = (d * d).sum(1), (o * d).sum(1)
        root = b * b - a * ((o * o).sum(1) - BALL * BALL)
        spread = root.clamp_min(0).sqrt()
        enter = torch.maximum(enter, (-b - spread) / a)
        leave = torch.minimum(leave, (-b + spread) / a)
        inside = ((root > 0) & (enter < leave) & (enter > 0)).nonzero()[:, 0]
        t = torch.full_like(a, math.inf)
        local = torch.zeros_like(o)
        ok = torch.zeros_like(a, dtype=torch.bool)
        ti, oi, di, ri = enter[inside], o[inside], d[inside], rocks[inside]
        offset, length, end = self.offset[ri], a[inside].sqrt(), leave[inside]
        gap = self._depth_of(oi + ti[:, None] * di, offset, ri)
        step = 0.85 * gap / length
        for _ in range(7):
            ti = ti + step
            before, gap = gap, self._depth_of(oi + ti[:, None] * di, offset, ri)
            # Secant, but never a long leap: at an edge of two faces the slope changes.
            slope = (before - gap) / torch.where(step.abs() < 1e-9, 1e-9, step)
            step = torch.minimum(torch.maximum(gap / torch.maximum(slope, 0.2 * length), -0.1 / length), 0.3 / length)
        t[inside], local[inside] = ti, oi + ti[:, None] * di
        ok[inside] = (gap.abs() < 0.004) & (ti < end + 0.02 / length)
        return t, local, ok

    def _depth_of(self, p: Tensor, offset: Tensor, rocks: Tensor) -> Tensor:
        """Signed distance (about) from the rock's surface at local points, positive outside."""
        hull = torch.maximum((p @ self.normals.T - offset).amax(1), torch.linalg.vector_norm(p, dim=1) - BALL)
        return hull - self._bumps(p, rocks)

    def _bumps(self, p: Tensor, rocks: Tensor) -> Tensor:
        a, b, c = self.phase.index_select(0, rocks).unbind(1)
        x, y, z = p.unbind(1)
        wave = torch.sin(3.1 * x + 2.3 * y + a) * torch.sin(2.7 * z - 1.9 * x + b)
        wave = wave + 0.6 * torch.sin(6.3 * y - 4.1 * z + c + 1.5 * wave) * torch.sin(5.2 * x + 4.4 * z + a)
        wave = wave + 0.35 * torch.sin(11.7 * x - 9.1 * y + b) * torch.sin(12.9 * z + 8.3 * y + c)
        return (0.5 * BUMPS) * wave

    def _normal(self, p: Tensor, rocks: Tensor) -> Tensor:
        """World normals: the faces near the point, blended, so that edges are worn; bumps included."""
        inside = p @ self.normals.T - self.offset.index_select(0, rocks)
        weight = torch.softmax(40.0 * inside, 1)
        normal = weight @ self.normals
        bump = self._bumps(p, rocks)
        tilt = [(self._bumps(p + step, rocks) - bump) / 0.02 for step in 0.02 * torch.eye(3, device=p.device)]
        normal = normal - torch.stack(tilt, 1)
        world = (self.to_local.index_select(0, rocks).transpose(1, 2) @ normal[:, :, None])[:, :, 0]
        return torch.nn.functional.normalize(world, dim=1)

    def in_view(
        self, rotations: Tensor, origins: Tensor, k: tuple[float, float, float, float], width: int, height: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Candidate pairs: (pixel index in the batch, frame, rock) for every pixel of each rock's bounding rectangle.

        `rotations` (B, 3, 3) take world to camera. The outline of an ellipsoid with camera-frame matrix A and centre c
        has the dual conic K (c c' - A) K', whose extent is a closed form (Hartley & Zisserman, section 8.3).
        """
        fx, fy, cx, cy = k
        c = (self.centre[None] - origins[:, None]) @ rotations.transpose(1, 2)
        frame, rock = ((c[..., 2] > 0.15) & (1.2 * self.diameter * fx > 0.9 * c[..., 2])).nonzero().unbind(1)
        c = c[frame, rock]
        front = (rotations[frame] @ self.turn[rock]) * ((BALL + BUMPS) * self.axes[rock])[:, None, :]
        q = c[:, :, None] * c[:, None, :] - front @ front.transpose(1, 2)
        q33 = q[:, 2, 2].clamp_min(1e-9)
        u, v = q[:, 0, 2] / q33, q[:, 1, 2] / q33
        du = (u * u - q[:, 0, 0] / q33).clamp_min(0).sqrt() * fx
        dv = (v * v - q[:, 1, 1] / q33).clamp_min(0).sqrt() * fy
        u, v = u * fx + cx, v * fy + cy
        ahead = (q[:, 2, 2] > 1e-4) & (du + dv > 0.9)
        # Rays pass up to 0.4 pixel beside the centres where outlines are sampled finer.
        x0, x1 = (u - du - 0.4).ceil().clamp(0, width), (u + du + 0.4).floor().clamp(-1, width - 1)
        y0, y1 = (v - dv - 0.4).ceil().clamp(0, height), (v + dv + 0.4).floor().clamp(-1, height - 1)
        seen = ahead & (x1 >= x0) & (y1 >= y0)
        frame, rock = frame[seen], rock[seen]
        x0, y0 = x0[seen].long(), y0[seen].long()
        wide, high = x1[seen].long() - x0 + 1, y1[seen].long() - y0 + 1
        rect, inside = expand(wide * high)
        px = x0[rect] + inside % wide[rect]
        py = y0[rect] + torch.div(inside, wide[rect], rounding_mode="floor")
        return (frame[rect] * height + py) * width + px, frame[rect], rock[rect]

    def raise_grid(self, grid: Tensor, level: int) -> Tensor:
        """The height grid of a level with the rocks standing on it (for shadows and occlusion)."""
        cell = CELLS[level]
        rocks = ((self.diameter > 1.2 * cell) & (self.centre[:, :2].abs().amax(1) < cell * SIZE / 2)).nonzero()[:, 0]
        reach = BALL * torch.linalg.vector_norm(self.axes[rocks], dim=1)
        at = self.centre[rocks, :2] / cell + (SIZE - 1) / 2
        low = (at - reach[:, None] / cell).ceil().clamp(0, SIZE - 1).long()
        high = (at + reach[:, None] / cell).floor().clamp(0, SIZE - 1).long()
        extent = (high - low + 1).clamp_min(0)
        flat = grid.flatten().clone()
        rect, inside = expand(extent[:, 0] * extent[:, 1])
        column = low[rect, 0] + inside % extent[rect, 0]
        row = low[rect, 1] + torch.div(inside, extent[rect, 0], rounding_mode="floor")
        above = torch.stack(
            [(column - (SIZE - 1) / 2) * cell, (row - (SIZE - 1) / 2) * cell, self.centre[rocks[rect], 2] + 10.0], 1
        )
        index = torch.arange(len(rect), device=self.device)
        down = torch.tensor([0.0, 0.0, -1.0], device=self.device).expand(len(rect), 3)
        for part in index.split(300_000):
            t, _, ok = self._pierce(part, rocks[rect[part]], above, down[part])
            top = torch.where(ok, above[part, 2] - t, -math.inf)
            flat.scatter_reduce_(0, row[part] * SIZE + column[part], top, "amax")
        return flat.view(SIZE, SIZE)


def expand(counts: Tensor) -> tuple[Tensor, Tensor]:
    """For counts (n0, n1, ...): group index 0 0 0 1 1 ... and index inside the group 0 1 2 0 1 ..."""
    group = torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)
    start = torch.cumsum(counts, 0) - counts
    return group, torch.arange(len(group), device=counts.device) - start[group]


def _directions(count: int, rng: torch.Generator) -> Tensor:
    """Nearly even directions (Fibonacci sphere), jittered and turned at random."""
    i = torch.arange(count, dtype=torch.float32) + 0.5
    z = 1 - 2 * i / count
    angle = i * math.pi * (3 - 5**0.5)
    ring = torch.sqrt(1 - z * z)
    points = torch.stack([ring * torch.cos(angle), ring * torch.sin(angle), z], 1)
    points = points + 0.18 * torch.randn(points.shape, generator=rng)
    return torch.nn.functional.normalize(points, dim=1)


def _turns(yaw: Tensor, tilt: Tensor) -> Tensor:
    """Rotation matrices (M, 3, 3): yaw about the vertical after small tilts about x and y."""
    zero, one = torch.zeros_like(yaw), torch.ones_like(yaw)
    cy, sy = torch.cos(yaw), torch.sin(yaw)
    ca, sa = torch.cos(tilt[:, 0]), torch.sin(tilt[:, 0])
    cb, sb = torch.cos(tilt[:, 1]), torch.sin(tilt[:, 1])
    z = torch.stack([cy, -sy, zero, sy, cy, zero, zero, zero, one], 1).view(-1, 3, 3)
    x = torch.stack([one, zero, zero, zero, ca, -sa, zero, sa, ca], 1).view(-1, 3, 3)
    y = torch.stack([cb, zero, sb, zero, one, zero, -sb, zero, cb], 1).view(-1, 3, 3)
    return z @ x @ y
