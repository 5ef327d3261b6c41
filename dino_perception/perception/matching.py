"""Which points of two frames are the same place: patch descriptors say roughly where, window alignment says exactly.

Mutual nearest neighbours among the descriptors vote for a smooth motion field with a local affine shape; that
field seeds the sub-pixel refinement of corners, so a match has the features' reach and a tracker's precision.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import cv2
import numpy as np
import torch

from dino_perception.perception import compiled
from dino_perception.perception.descriptors import codes, gradients, similarities
from dino_perception.perception.frame import Frame
from dino_perception.perception.geometry import Letterbox
from dino_perception.perception.refine import pyramid

NODE = 2
"""Patches between the nodes of a motion field."""


@dataclass(frozen=True)
class Picture:
    """What matching takes from the image alone, before there are features: its grey pyramid, and the gradients around
    the patches that lie on it, (rows * columns, 64) row by row. `patch` (x, y) is a patch's size in image pixels."""

    levels: list[np.ndarray]
    gradients: torch.Tensor
    rows: int
    columns: int
    patch: tuple[float, float]

    @classmethod
    def of(cls, frame: Frame, box: Letterbox, stride: int) -> Picture:
        """The picture of a frame whose network input has patches of `stride` pixels."""
        rows, columns = (max(1, round(side / stride)) for side in (box.content_height, box.content_width))
        x, y = box.input_scale
        patch = stride / x, stride / y
        levels = pyramid(cv2.cvtColor(np.ascontiguousarray(frame.image), cv2.COLOR_RGB2GRAY))
        return cls(levels, gradients(levels, rows, columns, patch), rows, columns, patch)


@dataclass(frozen=True)
class View:
    """What matching keeps of one frame.

    `levels`, `rows`, `columns` and `patch` are the picture's; `descriptors` (rows * columns, D) are unit vectors on the
    engine's device, one a patch, and `codes` what patches are compared by (descriptors.py).
    """

    stamp_ns: int
    frame_id: str
    width: int
    height: int
    levels: list[np.ndarray]
    descriptors: torch.Tensor
    codes: torch.Tensor
    rows: int
    columns: int
    patch: tuple[float, float]

    @classmethod
    def of(
        cls, frame: Frame, box: Letterbox, descriptors: torch.Tensor, stride: int, picture: Picture | None = None
    ) -> View:
        """The view of a frame. `descriptors` (N, D) cover the whole padded input in patches of `stride` pixels."""
        p = picture or Picture.of(frame, box, stride)
        grid = descriptors.view(-1, box.input_width // stride, descriptors.shape[-1])[: p.rows, : p.columns]
        # In one memory layout, whatever the engine's: sums over a descriptor depend on it in the last bit.
        own = grid.reshape(-1, descriptors.shape[-1]).clone(memory_format=torch.contiguous_format)
        height, width = frame.image.shape[:2]
        return cls(frame.stamp_ns, frame.frame_id, width, height, p.levels, own, codes(own, p.gradients), p.rows, p.columns,
                   p.patch)  # fmt: skip

    @functools.cached_property
    def asking(self) -> torch.Tensor:
        """The codes of the patches that are looked for in the next view."""
        return self.codes[torch.from_numpy(_asked(self.rows, self.columns))]

    def centres(self) -> np.ndarray:
        """Image pixels (rows * columns, 2) of the patch centres."""
        return (_cells(self.rows, self.columns) + 0.5) * self.patch - 0.5


@dataclass(frozen=True)
class Field:
    """How image points move from one view to another: on a grid of nodes, the displacement in pixels and the Jacobian
    of the mapping."""

    spacing: np.ndarray
    displacement: np.ndarray
    jacobian: np.ndarray

    @classmethod
    def still(cls, view: View) -> Field:
        """Nothing moves."""
        return cls(NODE * np.array(view.patch), np.zeros((1, 1, 2)), np.eye(2)[None, None])

    def at(self, xy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where points (N, 2) go (N, 2), and the local shape (N, 2, 2)."""
        values = np.concatenate([self.displacement, self.jacobian.reshape(*self.jacobian.shape[:2], 4)], axis=-1)
        sampled = bilinear(values, (xy + 0.5) / self.spacing - 0.5)
        return xy + sampled[:, :2], sampled[:, 2:].reshape(-1, 2, 2)


@functools.lru_cache(maxsize=32)
def _cells(rows: int, columns: int) -> np.ndarray:
    """(x, y) (rows * columns, 2) of a grid's cells, row by row."""
    x, y = np.meshgrid(np.arange(columns), np.arange(rows))
    return np.stack([x, y], axis=-1).reshape(-1, 2)


def bilinear(grid: np.ndarray, xy: np.ndarray) -> np.ndarray:
    """Values (N, C) of a grid (R, C', C) at fractional cells (N, 2) (x, y), constant beyond the outer cells' centres."""
    rows, columns = grid.shape[:2]
    x, y = np.clip(xy[:, 0], 0, columns - 1), np.clip(xy[:, 1], 0, rows - 1)
    x0, y0 = x.astype(np.intp), y.astype(np.intp)
    x1, y1 = np.minimum(x0 + 1, columns - 1), np.minimum(y0 + 1, rows - 1)
    fx, fy = (x - x0)[:, None], (y - y0)[:, None]
    above = grid[y0, x0] * (1 - fx) + grid[y0, x1] * fx
    return above * (1 - fy) + (grid[y1, x0] * (1 - fx) + grid[y1, x1] * fx) * fy


def corners(view: View, cells: int) -> tuple[np.ndarray, np.ndarray]:
    """The best corner of each of about `cells` squares: pixels (N, 2) float64 and strength (N,), the smaller eigenvalue
    of the gradients' covariance (Shi and Tomasi, "Good Features to Track", 1994).

    Found in the pyramid level nearest to 320 pixels wide, which is enough to choose points by: any point can be matched
    to full precision.
    """
    level = min(range(len(view.levels)), key=lambda i: abs(view.levels[i].shape[1] - 320))
    strength = cv2.cornerMinEigenVal(view.levels[level], 3, ksize=3)
    margin = 4  # windows that leave the image say little
    strength[:margin] = strength[-margin:] = 0
    strength[:, :margin] = strength[:, -margin:] = 0
    cell = max(2, round((strength.size / cells) ** 0.5))
    rows, columns = strength.shape[0] // cell, strength.shape[1] // cell
    squares = strength[: rows * cell, : columns * cell].reshape(rows, cell, columns, cell)
    squares = squares.transpose(0, 2, 1, 3).reshape(rows * columns, cell * cell)
    best = squares.argmax(axis=1)
    index = np.arange(rows * columns)
    value = squares[index, best]
    xy = np.stack([index % columns * cell + best % cell, index // columns * cell + best // cell], axis=1)
    keep = value > 0
    return xy[keep] * 2.0**level, value[keep]


def motion(reference: View, view: View) -> Field | None:
    """The motion field from `reference` to `view` by their features alone, None when these agree on none."""
    return field(reference, *_mutual(reference, view))


def field(reference: View, start: np.ndarray, end: np.ndarray) -> Field | None:
    """The smooth field that matches (M, 2) -> (M, 2), in pixels, vote for; None when too few of them agree.

    A vote counts as much as its neighbours move alike (the idea of grid-based motion statistics, Bian et al. 2017);
    then moving least squares, reweighted robustly, fit an affine motion around every node.
    """
    patch = np.array(reference.patch)
    moved = ((end - start) / patch).astype(np.float32)  # in patches, as are all distances below
    at = ((start + 0.5) / patch).astype(np.float32)
    if len(at) < 8:
        return None
    rows, columns = (-(-n // NODE) for n in (reference.rows, reference.columns))
    made = compiled.library()
    if made is not None:
        agreed = compiled.field(made, at, moved, rows, columns, NODE)
    else:
        agreed = _agreed(at, moved, rows, columns)
    if agreed is None:
        return None
    displacement, gradient = agreed
    jacobian = np.eye(2) + gradient * patch[:, None] / patch
    return Field(NODE * patch, (displacement * patch).reshape(rows, columns, 2), jacobian.reshape(rows, columns, 2, 2))


def _agreed(at: np.ndarray, moved: np.ndarray, rows: int, columns: int) -> tuple[np.ndarray, np.ndarray] | None:
    """`field` in patches: displacements (rows * columns, 2) and gradients (rows * columns, 2, 2) at the nodes."""
    apart = _square_distances(at, at)
    near = _kernel(apart)
    np.fill_diagonal(near, 0)
    agree = _square_distances(moved, moved) < (1.0 + 0.25 * np.sqrt(apart)) ** 2
    support = np.einsum("ij,ij->i", near, agree)
    weight = (support / np.maximum(near.sum(axis=1), 1e-6)) ** 2 * np.minimum(support / 1.5, 1)
    if weight.sum() < 4:
        return None
    trust = weight
    for _ in range(2):  # each vote against what its neighbours predict; half weight counts at about 0.5 patches
        predicted, _ = _fit(at, near, at, moved, trust)
        trust = weight / (1 + ((predicted - moved) ** 2).sum(axis=1) / 0.5) ** 2
    nodes = ((_cells(rows, columns) + 0.5) * NODE).astype(np.float32)
    return _fit(nodes, _kernel(_square_distances(nodes, at)), at, moved, trust)


def shift(reference: View, view: View) -> np.ndarray:
    """The one displacement (x, y) in pixels that carries most of `reference` onto `view`, by phase correlation: what is
    left to go by where features fail."""
    level = min(range(len(view.levels)), key=lambda i: abs(view.levels[i].shape[1] - 160))
    a, b = reference.levels[level], view.levels[level]
    moved, _ = cv2.phaseCorrelate(a, b, cv2.createHanningWindow(a.shape[::-1], cv2.CV_32F))
    return np.array(moved) * 2.0**level


def similarity(reference: View, xy: np.ndarray, view: View, to: np.ndarray) -> np.ndarray:
    """Cosine similarity (N,) float32 of the features at points (N, 2) of one view and (N, 2) of another, 0 to 1."""
    made = (
        compiled.library()
        if view.descriptors.device.type == "cpu" and view.descriptors.dtype == torch.float32
        else None
    )
    if made is not None:
        cells = ((points + 0.5) / view.patch - 0.5 for points in (xy, to))
        first, second = (v.descriptors.numpy() for v in (reference, view))
        return compiled.similarity(made, first, next(cells), second, next(cells), view.rows, view.columns)
    a, b = _features(reference, xy), _features(view, to)
    cosine = (a * b).sum(dim=1) * (a.square().sum(dim=1) * b.square().sum(dim=1)).clamp_min(1e-12).rsqrt()
    return cosine.clamp_(0, 1).cpu().numpy()


def _features(view: View, xy: np.ndarray) -> torch.Tensor:
    """Descriptors (N, D) interpolated at pixels (N, 2)."""
    x, y = ((xy + 0.5) / view.patch - 0.5).T
    x, y = np.clip(x, 0, view.columns - 1), np.clip(y, 0, view.rows - 1)
    x0, y0 = x.astype(np.int64), y.astype(np.int64)
    x1, y1 = np.minimum(x0 + 1, view.columns - 1), np.minimum(y0 + 1, view.rows - 1)
    fx, fy = x - x0, y - y0
    patches = np.stack([y0, y0, y1, y1], axis=1) * view.columns + np.stack([x0, x1, x0, x1], axis=1)
    shares = np.stack([(1 - fx) * (1 - fy), fx * (1 - fy), (1 - fx) * fy, fx * fy], axis=1).astype(np.float32)
    device = view.descriptors.device
    return torch.nn.functional.embedding_bag(
        torch.from_numpy(patches).to(device),
        view.descriptors,
        mode="sum",
        per_sample_weights=torch.from_numpy(shares).to(device),
    )


def _kernel(square_distance: np.ndarray) -> np.ndarray:
    """How much a vote counts at a distance in patches: mostly within a few, a little everywhere, so that a region without
    votes follows the rest."""
    return (
        np.exp(square_distance * np.float32(-0.5 / 2.2**2))
        + np.float32(0.02) * np.exp(square_distance * np.float32(-0.5 / 7.0**2))
        + np.float32(1e-4)
    )


def _fit(where: np.ndarray, near: np.ndarray, at: np.ndarray, moved: np.ndarray, weight: np.ndarray):
    """Moving least squares: at each of `where` (Q, 2) the affine displacement that fits votes `at` (M, 2) which `moved`
    (M, 2), weighted by `near` (Q, M) * `weight` (M,). Returns displacements (Q, 2) and gradients (Q, 2, 2)."""
    x, y = at.T
    u, v = moved.T
    moments = np.stack([np.ones_like(x), x, y, u, v, x * x, x * y, y * y, x * u, y * u, x * v, y * v], axis=1)
    total = near @ (moments * weight[:, None]).astype(np.float32)
    total = total.astype(np.float64)
    total /= np.maximum(total[:, :1], 1e-12)
    _, x, y, u, v, xx, xy, yy, xu, yu, xv, yv = total.T
    ridge = 0.5  # square patches: without spread of votes there is no gradient
    xx, xy, yy = xx - x * x + ridge, xy - x * y, yy - y * y + ridge
    xu, yu, xv, yv = xu - x * u, yu - y * u, xv - x * v, yv - y * v
    det = xx * yy - xy * xy
    gradient = np.stack([yy * xu - xy * yu, xx * yu - xy * xu, yy * xv - xy * yv, xx * yv - xy * xv], axis=1)
    gradient = (gradient / det[:, None]).reshape(-1, 2, 2)
    off = where - np.stack([x, y], axis=1)
    return np.stack([u, v], axis=1) + np.einsum("qij,qj->qi", gradient, off), gradient


def _square_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a[:, :1] - b[:, 0]) ** 2 + (a[:, 1:] - b[:, 1]) ** 2


def _mutual(reference: View, view: View) -> tuple[np.ndarray, np.ndarray]:
    """Mutual nearest neighbours, at most one for every 3x3 patches of the reference (its most similar): where they are
    in the reference and in the view, (M, 2) pixels each, the latter between patches where the similarity peaks there."""
    asked = _asked(reference.rows, reference.columns)
    similar = similarities(reference.asking, view.codes)
    made = compiled.library()
    if made is not None:
        chosen, to = compiled.mutual(made, similar, asked, reference.rows, reference.columns)
        cells = np.stack([chosen % reference.columns, chosen // reference.columns], axis=1)
        return (cells + 0.5) * reference.patch - 0.5, (to + 0.5) * view.patch - 0.5
    nearest = similar.argmax(axis=1)
    best = similar[np.arange(len(asked)), nearest]
    mutual = best >= similar.max(axis=0)[nearest]
    # The most similar mutual match of each block of 3x3 patches.
    block = asked // reference.columns // 3 * reference.columns + asked % reference.columns // 3
    order = np.lexsort((-best, block))
    order = order[mutual[order]]
    chosen = np.sort(order[np.r_[True, block[order][1:] != block[order][:-1]]])
    j = nearest[chosen]
    peak = similar[chosen, j]
    offsets = []
    for place, count, step in ((j % view.columns, view.columns, 1), (j // view.columns, view.rows, view.columns)):
        inner = (place > 0) & (place < count - 1)
        before, after = (similar[chosen, np.where(inner, j + s, j)].astype(np.float32) for s in (-step, step))
        bend = before - 2 * peak + after
        offsets.append(np.where(inner & (bend < 0), 0.5 * (before - after) / np.where(bend < 0, bend, -1), 0))
    return reference.centres()[asked[chosen]], view.centres()[j] + np.clip(
        np.stack(offsets, axis=1), -0.5, 0.5
    ) * view.patch


@functools.lru_cache(maxsize=32)
def _asked(rows: int, columns: int) -> np.ndarray:
    """Every other patch, as on a chess board: its neighbours would say the same again."""
    index = np.arange(rows * columns, dtype=np.int32)
    return index[(index // columns + index % columns) % 2 == 0]
