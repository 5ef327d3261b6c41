"""One frame of many cameras matched with their references, in one function of fixed shapes: the rules of tracks.py in torch.

What tracks.py decides by looking (whether to search wide, whether to believe the votes, how many turns of points it takes) is
here computed both ways and chosen by values, so that nothing waits for the host and the whole can be captured or compiled.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dino_perception.perception.device.windows import constant, refine
from dino_perception.perception.matching import NODE

ALIKE, DOUBT, LOST = 0.85, 0.35, 0.3
SLOTS = 512
"""How many found points may vote: of G of them, every (G // 256)-th does."""


@dataclass(frozen=True)
class PatchGrid:
    """What is the same for every frame: patches and their size (x, y) in image pixels."""

    rows: int
    columns: int
    patch: tuple[float, float]


@dataclass(frozen=True)
class ViewBatch:
    """Views of B cameras: pyramid levels (B, H, W), descriptors and codes (B, rows * columns, D)."""

    levels: Sequence[Tensor]
    descriptors: Tensor
    codes: Tensor


def look(
    grid: PatchGrid, turns: int, reference: ViewBatch, previous: ViewBatch, view: ViewBatch, xy: Tensor, last: Tensor, turn: Tensor,
    bend: Tensor, fresh: Tensor, most: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Where points are in `view`.

    `xy` and `last` (B, N, 2) are their pixels in the reference and the frame before, `turn` (B, N) int64 their turns, at most
    `turns` in all, -1 for none; `bend` (B, rows, columns, 2, 2) the shape of the flow from the reference to the frame before;
    `fresh` (B,) says that the two are one; `most` (B,) matches are looked for. Returns (B, N, 5) x, y, correlation, doubt and
    similarity, (B, 2) how many points had their turn and whether there is a flow from the reference, and that flow: displacement
    (B, nodes down, nodes across, 2) and Jacobian.
    """
    patch = constant(grid.patch, xy.device)
    size = constant((view.levels[0].shape[2], view.levels[0].shape[1]), xy.device)
    reach = max(grid.patch)

    def aligned(seed: Tensor, shape: Tensor, wide: float = 1.0):
        return refine(reference.levels, view.levels, xy, seed, shape, wide * reach)

    def inside(seed: Tensor) -> Tensor:
        return ((seed > -patch) & (seed < size + patch)).all(dim=2)

    displacement, jacobian, known = field(grid, *mutual(grid, previous.codes, view.codes))
    displacement, jacobian = torch.where(known[:, None, None, None], displacement, 0.0), _or_upright(known, jacobian)
    seed, shape = follow(grid, displacement, jacobian, last)
    shape = shape @ follow(grid, torch.zeros_like(displacement), bend, xy)[1]
    asked = turn == 0
    found = _Found(seed, torch.full_like(seed[..., 0], -1.0), torch.zeros_like(seed[..., 0]))
    within = asked & inside(seed)
    found.keep_better(within, *aligned(seed, shape))
    share = ((found.alike > ALIKE) & within).sum(dim=1) / within.sum(dim=1).clamp_min(1)
    lost, again = share < LOST, share < 0.85
    wide = last + shift(previous.levels, view.levels)[:, None]
    found.keep_better(lost[:, None] & asked & inside(wide), *aligned(wide, shape, 3.0))
    seed = torch.where(lost[:, None, None], wide, seed)
    # The flow from the reference that they agree on, where that is asked for.
    refit = again | ~fresh
    flow, bent, agreed = field(grid, *_votes(xy, found.position, found.alike > ALIKE, grid))
    agreed = agreed & refit
    there, shape_there = follow(grid, flow, bent, xy)
    seed = torch.where(agreed[:, None, None], there, seed)
    shape = torch.where(agreed[:, None, None, None], shape_there, shape)
    nothing = refit & ~agreed & lost  # chance finds, no motion
    found.drop_strays(asked & agreed[:, None], seed, patch)
    failed = (found.alike <= ALIKE) & agreed[:, None]
    found.position = torch.where(failed[..., None], seed, found.position)
    near, sure = inside(seed), aligned(seed, shape)
    found.keep_better(failed & asked & near & again[:, None], *sure)
    had = asked
    for number in range(1, turns):
        enough = ((found.alike > ALIKE) & (found.doubt < DOUBT)).sum(dim=1) >= most
        now = (turn == number) & ~enough[:, None] & ~nothing[:, None]
        had = had | now
        found.keep_better(now & near, *sure)
        found.drop_strays(now, seed, patch)
    alike = torch.where(nothing[:, None] | (turn < 0), -1.0, found.alike)
    score = similarity(grid, reference.descriptors, xy, view.descriptors, found.position)
    numbers = torch.stack([had.sum(dim=1), agreed.long()], dim=1)
    points = torch.cat([found.position, torch.stack([alike, found.doubt, score], dim=2)], dim=2)
    return points, numbers, flow, _or_upright(agreed, bent)


class _Found:
    """What is known of points so far: position (B, N, 2), correlation and doubt (B, N)."""

    def __init__(self, position: Tensor, alike: Tensor, doubt: Tensor):
        self.position, self.alike, self.doubt = position, alike, doubt

    def keep_better(self, which: Tensor, position: Tensor, alike: Tensor, doubt: Tensor) -> None:
        better = which & (alike > self.alike.clamp_min(ALIKE))
        self.position = torch.where(better[..., None], position, self.position)
        self.alike, self.doubt = torch.where(better, alike, self.alike), torch.where(better, doubt, self.doubt)

    def drop_strays(self, which: Tensor, seed: Tensor, patch: Tensor) -> None:
        stray = which & (self.alike > ALIKE) & (((self.position - seed) / patch).norm(dim=2) > 0.5)
        self.alike = torch.where(stray, -1.0, self.alike)
        self.position = torch.where(stray[..., None], seed, self.position)


def mutual(grid: PatchGrid, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`matching._mutual`: pixels (B, blocks, 2) in the reference and in the view, and whether the block has one (B, blocks)."""
    asked, blocks = _asked(grid.rows, grid.columns, first.device)
    similar = first[:, asked] @ second.transpose(1, 2)
    best, nearest = similar.max(dim=2)
    taken = best >= similar.amax(dim=1).gather(1, nearest)
    padded = torch.cat([torch.where(taken, best, -torch.inf), torch.full_like(best[:, :1], -torch.inf)], dim=1)
    value, place = padded[:, blocks].max(dim=2)
    valid = value > -torch.inf
    chosen = blocks.expand(len(first), -1, -1).gather(2, place[..., None])[..., 0].clamp_max(len(asked) - 1)
    j = nearest.gather(1, chosen)
    row = similar.gather(1, chosen[..., None].expand(-1, -1, similar.shape[2]))
    at = lambda index: row.gather(2, index[..., None])[..., 0]
    peak, offsets = at(j), []
    for place, count, step in ((j % grid.columns, grid.columns, 1), (j // grid.columns, grid.rows, grid.columns)):
        inner = (place > 0) & (place < count - 1)
        before, after = at(torch.where(inner, j - step, j)), at(torch.where(inner, j + step, j))
        bend = before - 2 * peak + after
        bends = inner & (bend < 0)
        offsets.append(
            torch.where(bends, 0.5 * (before - after) / torch.where(bends, bend, -1.0), 0.0).clamp(-0.5, 0.5)
        )
    patch = constant(grid.patch, first.device)
    cells = lambda index: torch.stack([index % grid.columns, index // grid.columns], dim=2)
    start = (cells(asked[chosen]) + 0.5) * patch - 0.5
    return start, (cells(j) + torch.stack(offsets, dim=2) + 0.5) * patch - 0.5, valid


def field(grid: PatchGrid, start: Tensor, end: Tensor, valid: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`matching.field` of votes (B, M, 2) that are `valid` (B, M): displacements (B, nodes down, nodes across, 2), Jacobians
    and whether they agree (B,); zero and NaN-free where they do not."""
    patch = constant(grid.patch, start.device)
    at, moved = (start + 0.5) / patch, (end - start) / patch
    at, moved = (torch.where(valid[..., None], t, 0.0) for t in (at, moved))
    real = valid.float()
    apart = _square_distances(at, at)
    near = _kernel(apart) * real[:, None] * (1 - torch.eye(at.shape[1], device=at.device))
    agree = _square_distances(moved, moved) < (1.0 + 0.25 * apart.sqrt()) ** 2
    support = (near * agree).sum(dim=2)
    weight = (support / near.sum(dim=2).clamp_min(1e-6)) ** 2 * (support / 1.5).clamp_max(1) * real
    trust = weight
    for _ in range(2):
        predicted, _ = _fit(at, near, at, moved, trust)
        trust = weight / (1 + ((predicted - moved) ** 2).sum(dim=2) / 0.5) ** 2
    rows, columns = (-(-n // NODE) for n in (grid.rows, grid.columns))
    y, x = torch.meshgrid(torch.arange(rows, device=at.device), torch.arange(columns, device=at.device), indexing="ij")
    nodes = ((torch.stack([x.flatten(), y.flatten()], dim=1) + 0.5) * NODE).float().expand(len(at), -1, -1)
    displacement, gradient = _fit(nodes, _kernel(_square_distances(nodes, at)), at, moved, trust)
    jacobian = torch.eye(2, device=at.device) + gradient * patch[:, None] / patch
    known = (valid.sum(dim=1) >= 8) & (weight.sum(dim=1) >= 4)
    return (
        (displacement * patch).unflatten(1, (rows, columns)),
        jacobian.unflatten(1, (rows, columns)),
        known,
    )


def follow(grid: PatchGrid, displacement: Tensor, jacobian: Tensor, xy: Tensor) -> tuple[Tensor, Tensor]:
    """`Field.at`: where points (B, N, 2) go and the local shape (B, N, 2, 2)."""
    values = torch.cat([displacement, jacobian.flatten(3)], dim=3)
    rows, columns = values.shape[1:3]
    sampled = _between(values.flatten(1, 2), rows, columns, (xy + 0.5) / (NODE * constant(grid.patch, xy.device)) - 0.5)
    return xy + sampled[..., :2], sampled[..., 2:].unflatten(2, (2, 2))


def similarity(grid: PatchGrid, first: Tensor, xy: Tensor, second: Tensor, to: Tensor) -> Tensor:
    """`matching.similarity`: (B, N)."""
    patch = constant(grid.patch, xy.device)
    a, b = (_between(f, grid.rows, grid.columns, (p + 0.5) / patch - 0.5) for f, p in ((first, xy), (second, to)))
    return torch.nn.functional.cosine_similarity(a, b, dim=2, eps=1e-6).clamp(0, 1)


def shift(reference: Sequence[Tensor], view: Sequence[Tensor]) -> Tensor:
    """`matching.shift`: (B, 2). Phase correlation, its peak the centroid of 5x5 values as cv2.phaseCorrelate has it."""
    level = min(range(len(view)), key=lambda i: abs(view[i].shape[2] - 160))
    a, b = reference[level], view[level]
    height, width = a.shape[1:]
    hann = [torch.hann_window(n, periodic=False, device=a.device) for n in (height, width)]
    window = (hann[0][:, None] * hann[1]).sqrt()
    cross = torch.fft.rfft2(a * window).conj() * torch.fft.rfft2(b * window)
    surface = torch.fft.irfft2(cross / cross.abs().clamp_min(1e-12), s=(height, width))
    peak = surface.flatten(1).argmax(dim=1)
    around = torch.arange(-2, 3, device=a.device)
    y, x = (peak // width)[:, None] + around, (peak % width)[:, None] + around
    index = (y % height)[:, :, None] * width + (x % width)[:, None]
    near = surface.flatten(1).gather(1, index.flatten(1)).unflatten(1, (5, 5))
    whole = near.sum(dim=(1, 2)).clamp_min(1e-12)
    centre = lambda values, size, dim: (
        ((((peak // width) if dim == 1 else (peak % width)) + size // 2) % size - size // 2)
        + (near.sum(dim=3 - dim) * around).sum(dim=1) / whole
    )
    return torch.stack([centre(x, width, 2), centre(y, height, 1)], dim=1) * 2.0**level


def _votes(xy: Tensor, position: Tensor, good: Tensor, grid: PatchGrid) -> tuple[Tensor, Tensor, Tensor]:
    """Of the found points every (count // 256)-th, in SLOTS places of which some are empty."""
    rank = good.cumsum(dim=1) - 1
    every = (good.sum(dim=1, keepdim=True) // 256).clamp_min(1)
    taken = good & (rank % every == 0)
    slot = torch.where(taken, rank // every, SLOTS).clamp_max(SLOTS)
    place = lambda points: points.new_zeros(len(xy), SLOTS + 1, 2).scatter(
        1, slot[..., None].expand(-1, -1, 2), points
    )[:, :SLOTS]
    valid = torch.zeros(len(xy), SLOTS + 1, dtype=torch.bool, device=xy.device).scatter(1, slot, taken)[:, :SLOTS]
    return place(xy), place(position), valid


def _or_upright(known: Tensor, jacobian: Tensor) -> Tensor:
    return torch.where(known[:, None, None, None, None], jacobian, torch.eye(2, device=jacobian.device))


def _between(values: Tensor, rows: int, columns: int, at: Tensor) -> Tensor:
    """Values (B, rows * columns, C) at fractional cells (B, N, 2), constant beyond the outer cells' centres."""
    x, y = at[..., 0].clamp(0, columns - 1), at[..., 1].clamp(0, rows - 1)
    x0, y0 = x.long(), y.long()
    x1, y1 = (x0 + 1).clamp_max(columns - 1), (y0 + 1).clamp_max(rows - 1)
    fx, fy = (x - x0)[..., None], (y - y0)[..., None]
    pick = lambda index: values.gather(1, index[..., None].expand(-1, -1, values.shape[2]))
    above = pick(y0 * columns + x0) * (1 - fx) + pick(y0 * columns + x1) * fx
    return above * (1 - fy) + (pick(y1 * columns + x0) * (1 - fx) + pick(y1 * columns + x1) * fx) * fy


def _square_distances(a: Tensor, b: Tensor) -> Tensor:
    return ((a[:, :, None] - b[:, None]) ** 2).sum(dim=3)


def _kernel(square_distance: Tensor) -> Tensor:
    return torch.exp(square_distance * (-0.5 / 2.2**2)) + 0.02 * torch.exp(square_distance * (-0.5 / 7.0**2)) + 1e-4


def _fit(where: Tensor, near: Tensor, at: Tensor, moved: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """`matching._fit`, (B, Q, 2) and (B, Q, 2, 2) float32."""
    (x, y), (u, v) = at.unbind(dim=2), moved.unbind(dim=2)
    moments = torch.stack([torch.ones_like(x), x, y, u, v, x * x, x * y, y * y, x * u, y * u, x * v, y * v], dim=2)
    total = (near.double() @ (moments * weight[..., None]).double()).unbind(dim=2)
    whole = total[0].clamp_min(1e-12)
    x, y, u, v, xx, xy, yy, xu, yu, xv, yv = (t / whole for t in total[1:])
    xx, xy, yy = xx - x * x + 0.5, xy - x * y, yy - y * y + 0.5
    xu, yu, xv, yv = xu - x * u, yu - y * u, xv - x * v, yv - y * v
    det = xx * yy - xy * xy
    gradient = torch.stack([yy * xu - xy * yu, xx * yu - xy * xu, yy * xv - xy * yv, xx * yv - xy * xv], dim=2)
    gradient = (gradient / det[..., None]).unflatten(2, (2, 2))
    off = where.double() - torch.stack([x, y], dim=2)
    return (torch.stack([u, v], dim=2) + (gradient @ off[..., None])[..., 0]).float(), gradient.float()


@functools.lru_cache(maxsize=16)
def _asked(rows: int, columns: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """`matching._asked` (A,), and which of them each block of 3x3 patches holds: (blocks, 5), A for none."""
    index = torch.arange(rows * columns)
    asked = index[(index // columns + index % columns) % 2 == 0]
    of = asked // columns // 3 * -(-columns // 3) + asked % columns // 3
    count = -(-rows // 3) * -(-columns // 3)
    blocks = torch.full((count, 5), len(asked))
    for block in range(count):
        mine = (of == block).nonzero()[:, 0]
        blocks[block, : len(mine)] = mine
    return asked.to(device), blocks.to(device)
