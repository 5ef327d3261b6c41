"""The ground: three nested height grids around the origin, and what lies at each place (soil, sand, bedrock)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dino_perception.training.terrain.hazards import dug, long_hills, trench_lines
from dino_perception.training.terrain.noise import bilinear, resample, rotation, smoothstep, spectral, stream, uniform
from dino_perception.training.terrain.styles import Style

SIZE = 1280
CELLS = (0.03, 0.12, 0.7)
"""Metres between nodes of each level; each is SIZE x SIZE nodes, centred on the world's origin."""

GRADIENT_X, GRADIENT_Y, SAND_OVER, BEDROCK_OVER, TONE, NEAR_MEAN, WIDE_MEAN, SLAB_TONE = range(8)
"""Columns of `Ground.surface`. SAND_OVER and BEDROCK_OVER: metres by which that material lies above all others."""


class Ground:
    """`height` (3 * SIZE * SIZE,) float32 metres and `surface` (3 * SIZE * SIZE, 8) float32, level after level.

    The surface is the bilinear interpolation of the finest level that covers a place; depth is exact with respect to
    it.
    """

    def __init__(
        self, seed: int, style: Style, device: torch.device | str = "cpu", *, slope: float = 0.0, ditches: int = 0
    ):
        """`slope`: long hills whose flanks are that steep (degrees) lie over everything. `ditches`: so many trenches
        cross the middle of the world. The rest of the world is the same with and without."""
        self.device = torch.device(device)
        self.seed, self.style, self.slope = seed, style, slope
        draw = stream(seed, "ground")
        self.roughness = uniform(draw, *style.roughness)
        axis = [(torch.arange(SIZE, device=self.device) - (SIZE - 1) / 2) * cell for cell in CELLS]
        self._axis = axis
        self._fade = [self._window(a) for a in axis[:2]] + [torch.ones((), device=self.device)]
        base, smooth, middle = self._base(draw)
        craters = self._craters(draw)
        # Steep ground sheds sand and shows its rock.
        steep = (torch.hypot(*torch.gradient(smooth[2], spacing=CELLS[2])) - 0.12).clamp_min(0.0)
        steep1 = resample(steep, CELLS[2], SIZE, CELLS[1])
        steeps = [resample(steep1, CELLS[1], SIZE, CELLS[0]), steep1, steep]
        sand = self._field("sand", (6.0, 150.0), 0.4, 0.35, 0.10, [-0.5 * m - 5.0 * p for m, p in zip(middle, steeps)])
        outcrop = [0.5 * m + 3.0 * p for m, p in zip(middle, steeps)]
        rock = self._field("bedrock", (5.0, 120.0), 0.35, 0.30, 0.12, outcrop)
        steps = self._field("bedrock", (5.0, 120.0), 0.35, 0.10, 0.0, outcrop)
        tone = self._field("tone", (3.0, 200.0), 0.2, 0.6, 0.5)
        sand = self._above(sand, uniform(draw, *style.sand_cover))
        cover = uniform(draw, *style.bedrock_cover)
        rock, steps = self._above(rock, cover), self._above(steps, cover)
        heights, surfaces = [], []
        step = uniform(draw, 0.08, 0.28)
        ripples = self._ripples(draw)
        beds = uniform(draw, 3.0, 9.0)
        slabs = Slabs(stream(seed, "slabs"), uniform(draw, *style.slab), self.device)
        trenches = trench_lines(seed, ditches)
        for level in range(3):
            ground = base[level] + craters[level] + step * _terrace(steps[level].clamp(-0.5, 4.0) / 0.55)
            slab, slab_tone = slabs.grid(level, axis[level], rock[level], self._fade[level])
            # Strata: beds of different tone follow height.
            bed = ground / beds + 0.3 * tone[level]
            slab_tone = slab_tone + 0.9 * torch.sin(6.28 * bed) * torch.sin(2.31 * bed + 1.0) * (level == 2)
            # Sand lies in hollows and smooths what it covers: its own surface knows no decimetre relief.
            drift = smooth[level] + craters[level] + (0.13 * sand[level] - 0.015).clamp(-0.3, 0.12) - ground
            drift = drift + ripples[level] * smoothstep(0.0, 0.10, drift)
            height = ground + torch.maximum(drift, slab).clamp_min(0.0)
            if trenches and level < 2:
                height = height - dug(trenches, axis[level]) * self._fade[level]
            sand_over, bedrock_over = drift - slab.clamp_min(0.0), slab - drift.clamp_min(0.0)
            gy, gx = torch.gradient(height, spacing=CELLS[level])
            heights.append(height)
            surfaces.append(torch.stack([gx, gy, sand_over, bedrock_over, tone[level], height, height, slab_tone], -1))
        self.height = torch.cat([h.flatten() for h in heights])
        self.surface = torch.cat([s.reshape(-1, 8) for s in surfaces])
        del self._fade

    def grid(self, level: int) -> Tensor:
        """The heights of one level, (SIZE, SIZE), rows along y."""
        return self.height[level * SIZE * SIZE : (level + 1) * SIZE * SIZE].view(SIZE, SIZE)

    def locate(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Flat index of the node below-left of each place and the fractions towards the next ones."""
        reach = torch.maximum(x.abs(), y.abs())
        half = [(SIZE / 2 - 2) * cell for cell in CELLS]
        inner, outer = reach < half[0], reach >= half[1]
        scale = torch.where(inner, 1 / CELLS[0], torch.where(outer, 1 / CELLS[2], 1 / CELLS[1]))
        start = torch.where(inner, 0, torch.where(outer, 2 * SIZE * SIZE, SIZE * SIZE))
        u = (x * scale + (SIZE - 1) / 2).clamp(0.0, SIZE - 1.001)
        v = (y * scale + (SIZE - 1) / 2).clamp(0.0, SIZE - 1.001)
        column, row = u.to(torch.int32), v.to(torch.int32)
        return row * SIZE + column + start, u - column, v - row

    def height_at(self, x: Tensor, y: Tensor) -> Tensor:
        index, fx, fy = self.locate(x, y)
        return bilinear(self.height, index, SIZE, fx, fy)

    def surface_at(self, x: Tensor, y: Tensor) -> Tensor:
        """(N, 8): see the column constants of this file."""
        index, fx, fy = self.locate(x, y)
        return bilinear(self.surface, index, SIZE, fx, fy)

    def _window(self, axis: Tensor) -> Tensor:
        edge = smoothstep(0.97 * float(axis[-1]), 0.75 * float(axis[-1]), axis.abs())
        return edge[:, None] * edge[None, :]

    def _noise(self, name: str, level: int, shortest: float, longest: float, slope: float, tile: int = SIZE) -> Tensor:
        noise = spectral(stream(self.seed, name, level), tile, CELLS[level], shortest, longest, slope, self.device)
        return noise if tile == SIZE else noise.repeat(SIZE // tile, SIZE // tile)

    def _base(self, draw: torch.Generator) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Hills far away, gentle slopes around the origin, and relief down to decimetres; the same smoothed, as sand
        would fill it; and the ten-metre part alone (unit variance), which decides where sand gathers and rock stands
        out."""
        style, rough = self.style, self.roughness
        x, y = self._axis[2][None, :], self._axis[2][:, None]
        radius = torch.sqrt(x * x + y * y)
        middle = self._noise("middle", 2, 4.0, 60.0, 0.75)
        hills = self._noise("hills", 2, 60.0, 900.0, 1.0)
        # Ridges and gullies where the land is high, plateaus where the style has mesas.
        ridges = 1.0 - (self._noise("ridges", 2, 8.0, 260.0, 0.9) + 0.1 * middle).abs()
        hills = torch.lerp(hills, 1.5 * torch.tanh(2.0 * hills) + 0.25 * hills, style.mesas)
        relief = uniform(draw, *style.relief)
        hills = relief * (hills + 0.32 * ridges * smoothstep(-0.6, 1.0, hills))
        # Cliffs of uneven beds: the stairs' height itself varies with height.
        bed = uniform(draw, 7.0, 15.0)
        course = (hills + 1.2 * middle) / bed
        course = course + 0.25 * torch.sin(2.9 * course) + 0.12 * torch.sin(7.3 * course + 1.0)
        hills = torch.lerp(hills, bed * _terrace(course, 0.55), 0.55 * style.mesas)
        near = 0.008 + 0.992 * smoothstep(40.0, 330.0, radius)
        h2 = hills * near + rough * 3.0 * middle
        if self.slope:
            h2 = h2 + long_hills(self.seed, self.slope, x, y)
        centre = h2[SIZE // 2 - 8 : SIZE // 2 + 8, SIZE // 2 - 8 : SIZE // 2 + 8].mean()
        h2 = h2 - centre
        s1 = resample(h2, CELLS[2], SIZE, CELLS[1])
        bumps = 0.45 * rough * self._fade[1] * self._noise("base", 1, 0.5, 5.0, 0.8)
        s1, h1 = s1 + 0.25 * bumps, s1 + bumps
        s0, h0 = (resample(h, CELLS[1], SIZE, CELLS[0]) for h in (s1, h1))
        h0 = h0 + 0.09 * rough * self._fade[0] * self._noise("base", 0, 0.09, 0.6, 0.6)
        m1 = resample(middle, CELLS[2], SIZE, CELLS[1])
        return [h0, h1, h2], [s0, s1, h2], [resample(m1, CELLS[1], SIZE, CELLS[0]), m1, middle]

    def _field(
        self,
        name: str,
        band: tuple[float, float],
        slope: float,
        middle: float,
        fine: float,
        bias: list[Tensor] | None = None,
    ) -> list[Tensor]:
        """Unit-variance noise on the coarsest level with finer octaves added on the finer ones."""
        f2 = self._noise(name, 2, *band, slope)
        f1 = resample(f2, CELLS[2], SIZE, CELLS[1]) + middle * self._fade[1] * self._noise(name, 1, 0.5, 6.0, 0.5, 640)
        f0 = resample(f1, CELLS[1], SIZE, CELLS[0]) + fine * self._fade[0] * self._noise(name, 0, 0.08, 0.7, 0.5, 640)
        fields = [f0, f1, f2]
        return fields if bias is None else [f + b for f, b in zip(fields, bias)]

    def _above(self, field: list[Tensor], cover: float) -> list[Tensor]:
        """Shifts a field so that it is positive on the share `cover` of the land within some 40 m."""
        quarter = SIZE // 4
        threshold = torch.quantile(field[1][quarter:-quarter:5, quarter:-quarter:5].flatten(), 1.0 - cover)
        return [f - threshold for f in field]

    def _craters(self, draw: torch.Generator) -> list[Tensor]:
        """Bowls with raised rims; sizes follow N(>R) ~ R**-2."""
        count = int(uniform(draw, *self.style.craters) * 36)
        extent = 300.0
        layers = [torch.zeros((SIZE, SIZE), device=self.device) for _ in CELLS]
        numbers = torch.rand((count, 5), generator=draw).tolist()
        for px, py, size, fresh, phase in numbers:
            radius = 0.5 * max(size, 1e-4) ** -0.5
            cx, cy = (2 * px - 1) * extent * abs(2 * px - 1), (2 * py - 1) * extent * abs(2 * py - 1)
            if radius > 45.0 or (radius > 3.0 and math.hypot(cx, cy) < 1.6 * radius + 4.0):
                continue
            depth = radius * (0.12 + 0.26 * fresh)
            for level, cell in enumerate(CELLS):
                if radius < 2.5 * cell:
                    continue
                represented = level == 2 or radius >= 2.5 * CELLS[level + 1]
                self._stamp(layers[level], level, cx, cy, radius, depth, phase, 1.0 if represented else None)
        return layers

    def _stamp(
        self,
        layer: Tensor,
        level: int,
        cx: float,
        cy: float,
        radius: float,
        depth: float,
        phase: float,
        gain: float | None,
    ) -> None:
        cell, reach = CELLS[level], 2.2 * radius
        low = [max(0, int((c - reach) / cell + (SIZE - 1) / 2)) for c in (cx, cy)]
        high = [min(SIZE, int((c + reach) / cell + (SIZE - 1) / 2) + 2) for c in (cx, cy)]
        if low[0] >= high[0] or low[1] >= high[1]:
            return
        dx = self._axis[level][low[0] : high[0]][None, :] - cx
        dy = self._axis[level][low[1] : high[1]][:, None] - cy
        angle = torch.atan2(dy, dx)
        wobble = 1.0 + 0.05 * torch.sin(3 * angle + 6.28 * phase) + 0.04 * torch.sin(5 * angle + 40 * phase)
        s = torch.sqrt(dx * dx + dy * dy) / (radius * wobble)
        bowl = torch.where(s < 1.0, (s * s - 1.0) * (1.0 + 0.2 * s), torch.zeros_like(s)) * depth
        rim = 0.24 * depth * torch.exp(-(((s - 1.02) / torch.where(s < 1.0, 0.16, 0.36)) ** 2))
        shape = (bowl + rim) * smoothstep(2.2, 1.7, s)
        if gain is None:
            shape = shape * self._fade[level][low[1] : high[1], low[0] : high[0]]
        layer[low[1] : high[1], low[0] : high[0]] += shape

    def _ripples(self, draw: torch.Generator) -> list[Tensor]:
        """Wind ripples and, where sand is deep, metre-long bedforms: sharp crests, broad troughs, forked by a warp."""
        short, long = uniform(draw, *self.style.ripple), uniform(draw, 2.2, 5.0)
        c, s = rotation(uniform(draw, 0.0, 6.283))
        warp1 = self._noise("warp", 1, 0.7, 9.0, 0.6)
        warps = [resample(warp1, CELLS[1], SIZE, CELLS[0]), warp1]
        layers = []
        for level in (0, 1):
            along = self._axis[level][None, :] * c + self._axis[level][:, None] * s
            total = torch.zeros((SIZE, SIZE), device=self.device)
            for length, height, bend in ((short, 0.045 * short, 2.2), (long, 0.025 * long, 1.4)):
                if length < 5 * CELLS[level]:
                    continue
                phase = along * (2 * math.pi / length) + bend * warps[level]
                phase = phase + 0.5 * torch.sin(phase)
                crest = 1.0 - 2.0 * torch.sin(0.5 * phase).abs() ** 0.9
                patchy = 0.65 + 0.35 * torch.tanh(1.5 * warps[level].roll(97, 0))
                lasting = self._fade[level] if length < 5 * CELLS[level + 1] else 1.0
                total += self.style.wind * height * crest * patchy * lasting
            layers.append(total)
        return [*layers, torch.zeros((SIZE, SIZE), device=self.device)]


def _terrace(x: Tensor, tread: float = 0.82) -> Tensor:
    """Stairs with worn edges: rises by 1 for every 1, most of it beyond the fraction `tread`."""
    base = x.floor()
    return base + smoothstep(tread, 1.0, x - base) * 0.85 + 0.15 * (x - base)


class Slabs:
    """Bedrock broken into polygonal plates: a warped Voronoi diagram whose cells are plates or gaps as a whole."""

    TABLE = 64

    def __init__(self, rng: torch.Generator, size: float, device: torch.device):
        self.size = size
        table = torch.rand((self.TABLE * self.TABLE, 6), generator=rng)
        self.table = table.to(device)
        self.gap = uniform(rng, 0.03, 0.09)
        self.lift = uniform(rng, 0.02, 0.07)
        self.warp_phase = torch.rand((4,), generator=rng).mul(6.28).tolist()
        self.turn = rotation(uniform(rng, 0.0, 3.14))

    def grid(self, level: int, axis: Tensor, field: Tensor, fade: Tensor) -> tuple[Tensor, Tensor]:
        """Height of the plates over the ground (negative where there is none) and their tone, on one level's grid."""
        over = torch.full((SIZE * SIZE,), -0.2, device=field.device)
        tone = torch.zeros((SIZE * SIZE,), device=field.device)
        if level == 2:
            return (0.06 * field).clamp(-0.2, 0.05), tone.view(SIZE, SIZE)
        flat = field.flatten()
        wanted = (flat > -0.55).nonzero()[:, 0]
        for part in wanted.split(200_000):
            x, y = axis[part % SIZE], axis[part // SIZE]
            height, shade, present = self._cells(x, y, axis, field, level)
            over[part] = torch.where(present, height, torch.full_like(height, -0.2))
            tone[part] = shade
        over = over.view(SIZE, SIZE)
        if level == 1:
            return over, tone.view(SIZE, SIZE)
        return torch.lerp(torch.where(over > -0.19, over.clamp_min(-0.05), over), over, fade), tone.view(SIZE, SIZE)

    def _cells(self, x: Tensor, y: Tensor, axis: Tensor, field: Tensor, level: int) -> tuple[Tensor, Tensor, Tensor]:
        a, b, c, d = self.warp_phase
        k = 6.28 / self.size
        wx = x + self.size * (0.09 * torch.sin(1.3 * k * y + a) + 0.05 * torch.sin(3.1 * k * x + b + 1.7 * k * y))
        wy = y + self.size * (0.09 * torch.sin(1.1 * k * x + c) + 0.05 * torch.sin(2.7 * k * y + d - 2.1 * k * x))
        u = (wx * self.turn[0] + wy * self.turn[1]) / self.size
        v = (-wx * self.turn[1] + wy * self.turn[0]) / (0.7 * self.size)
        iu, iv = u.floor(), v.floor()
        best = torch.full_like(u, 1e9)
        distances, centres = [], []
        chosen = torch.zeros_like(iu, dtype=torch.int64)
        bu, bv = torch.zeros_like(u), torch.zeros_like(u)
        for dv in (-1, 0, 1):
            for du in (-1, 0, 1):
                cell = ((iv + dv).long() % self.TABLE) * self.TABLE + (iu + du).long() % self.TABLE
                jitter = self.table.index_select(0, cell)
                cu, cv = iu + du + 0.1 + 0.8 * jitter[:, 0], iv + dv + 0.1 + 0.8 * jitter[:, 1]
                # One unit of v is shorter than one of u; distances are measured in metres.
                distance = ((cu - u) * self.size) ** 2 + ((cv - v) * 0.7 * self.size) ** 2
                closer = distance < best
                best = torch.where(closer, distance, best)
                chosen = torch.where(closer, cell, chosen)
                bu, bv = torch.where(closer, cu, bu), torch.where(closer, cv, bv)
                distances.append(distance)
                centres.append((cu, cv))
        edge = torch.full_like(u, 1e9)
        for distance, (cu, cv) in zip(distances, centres):
            apart = torch.sqrt(((cu - bu) * self.size) ** 2 + ((cv - bv) * 0.7 * self.size) ** 2)
            border = (distance - best) / (2.0 * apart.clamp_min(1e-4))
            edge = torch.where(apart > 1e-3, torch.minimum(edge, border), edge)
        plate = self.table.index_select(0, chosen)
        # A plate is there when the bedrock field at its centre says so: borders follow plates, not noise.
        px = self.turn[0] * bu * self.size - self.turn[1] * bv * 0.7 * self.size
        py = self.turn[1] * bu * self.size + self.turn[0] * bv * 0.7 * self.size
        cell = float(axis[1] - axis[0])
        column = ((px / cell) + (SIZE - 1) / 2).round().clamp(0, SIZE - 1).long()
        row = ((py / cell) + (SIZE - 1) / 2).round().clamp(0, SIZE - 1).long()
        present = field.flatten().index_select(0, row * SIZE + column) + 0.9 * (plate[:, 2] - 0.5) > 0.0
        tilt = (plate[:, 3] - 0.5) * (u - bu) + (plate[:, 4] - 0.5) * (v - bv)
        lift = self.lift * (0.5 + plate[:, 5]) + 0.12 * self.size * tilt
        gap = 0.5 * self.gap * (0.4 + 1.2 * plate[:, 4])
        # Chipped and rounded over a few grid cells: a sharper edge would show the grid.
        chips = torch.sin(19.0 * x + 5.0 * torch.sin(13.0 * y)) * torch.sin(23.0 * y + 4.0 * torch.sin(11.0 * x))
        worn = smoothstep(0.2 * gap, gap + 0.05, edge + 0.008 * chips)
        return torch.lerp(torch.full_like(lift, -0.03), lift, worn), plate[:, 2] - 0.5, present
