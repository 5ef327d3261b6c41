"""The ground before a camera as a surface with slopes, and how high every pixel stands over it.

A plane through the near ground (ground_plane.py) says where up is, unless odometry does. In the level frame (x ahead, y
left, z up, its origin on that plane below the camera) the lower points of every cell of a grid are what the ground can
be. From them the surface is made from coarse to fine: a robust quadratic, then what is left over, averaged over ever
shorter distances with weights that fall off with its size, so that rocks and ditches do not bend it. Sources: IRLS with
Tukey's weights (Beaton and Tukey 1974); normalised convolution for cells without a point (Knutsson and Westin 1993).
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from dino_perception.models.label_sets import group
from dino_perception.perception import geometry
from dino_perception.perception.frame import Percept, Segmentation
from dino_perception.perception.ground_plane import TUKEY, GroundPlane, fit

CELL = 0.2
"""Metres of the grid on which the surface is made."""
ASIDE = 0.75
"""The grid reaches this far to each side, as a share of how far it reaches ahead."""
COLUMNS = 160
"""Pixels of a row that are looked at, about: more say the same."""
LOW = 0.25
"""Of the heights in a cell, the one that is the ground's: lower ones may be noise, higher ones may stand on it."""
SCALES = ((2.4, 0.6), (1.2, 0.4), (0.6, 0.2))
"""(metres over which what is left over is averaged, metres at which its weight has fallen to a third), coarse to fine."""
TRUST = 0.3
"""Weight with which the coarser surface stands where few points lie."""
LEAST = 30
"""Cells with points below which there is no surface."""
NEAR = 4.0
"""Metres within which ground counts as that which the robot stands on."""
ROUGH = 0.25
"""Share of its points that must agree on the plane of rough ground, from which the surface only starts."""
Z_STEP, Z_BITS = 0.004, 13
"""Metres of a step of the heights as they are sorted, and how many bits a height has: 16 m up and down."""
SOLID = ("obstacle", "vehicle", "person", "water")
"""Groups of classes (models/label_sets.py) that nobody drives on, whatever their height."""


@dataclass(frozen=True)
class LocalGround:
    """`rotation` (3, 3) and `lift` (metres) bring points of the optical frame into the level frame: X_level = rotation @
    X_optical + (0, 0, lift). `plane` is the near ground. `surface` (X, Y) float32 holds heights in the level frame at the
    centres of cells of `CELL` metres: cell (i, j) lies (i + 0.5) CELL ahead and (j + 0.5 - Y / 2) CELL to the left;
    `seen` (X, Y) bool, whether points lay there; `low` (X, Y) float32, the height of the lower ones of them; `steepness`
    (X, Y) float32, the slope of the surface in degrees.

    Of every `every`-th pixel of each row from `top` down: `x`, `y`, `z` (h', w') float32, where it lies in the level frame,
    NaN where unknown or beyond the grid; `over` (h', w') float32 metres over the surface; `solid` (h', w') bool, whether
    the class is one that nobody drives on. `focal` is the camera's focal length in rows.
    """

    plane: GroundPlane
    rotation: np.ndarray
    lift: float
    surface: np.ndarray
    seen: np.ndarray
    low: np.ndarray
    steepness: np.ndarray
    x: np.ndarray
    y: np.ndarray
    z: np.ndarray
    over: np.ndarray
    solid: np.ndarray
    top: int
    every: int
    focal: float

    @property
    def slope(self) -> float:
        """Degrees between the near ground and the level."""
        return float(np.degrees(np.arccos(np.clip(self.rotation[2] @ self.plane.normal, -1, 1))))


def local_ground(
    percept: Percept, reach: float, up: np.ndarray | None = None, width: float = 0.7
) -> LocalGround | None:
    """The ground of a percept as far as `reach` metres ahead, with its slopes over `width` metres. `up` (3,) is a unit vector of the optical frame against
    gravity, where that is known; without, slopes are those against the ground near the camera. None when the percept has
    no depth or camera, or when too little of it looks like ground."""
    if percept.depth is None or percept.output_camera is None:
        return None
    every = max(1, round(percept.output_width / COLUMNS))
    top = _first_row(percept.depth.metres, reach)
    ray = geometry.rays(percept.output_camera)[top:, ::every]
    solid = _solid(percept.segmentation, top, every, ray.shape[:2])
    depth = _upright(percept.depth.metres[top:, ::every], solid, percept.output_camera.k[0, 0] / every)
    plane = _near_plane(depth, ray, solid)
    if plane is None:
        return None
    rotation = _levelling(plane.normal if up is None else up)
    # The point of the plane below the camera lies `height` away along the normal, and at zero in the level frame.
    lift = plane.height / max(float(rotation[2] @ plane.normal), 0.5)
    x, y, z = (depth * axis for axis in np.ascontiguousarray((ray @ rotation.T.astype(np.float32)).transpose(2, 0, 1)))
    z += np.float32(lift)
    shape = (round(reach / CELL), 2 * round(ASIDE * reach / CELL))
    cell = _cells(x, y, z, shape)
    outside = cell < 0
    x[outside] = y[outside] = z[outside] = np.nan
    # Every second column is plenty for the surface.
    chosen = (cell[:, ::2] >= 0) & ~solid[:, ::2]
    low, count = _lows(cell[:, ::2][chosen], z[:, ::2][chosen], shape)
    if np.count_nonzero(count) < LEAST:
        return None
    surface = _surface(low, np.minimum(count, 4).astype(np.float32))
    rise = np.hypot(*np.gradient(cv2.GaussianBlur(surface, (0, 0), width / 2 / CELL), CELL))
    steepness = np.degrees(np.arctan(rise)).astype(np.float32)
    over = z - at(surface, x, y)
    return LocalGround(
        plane, rotation, lift, surface, count > 0, low, steepness, x, y, z, over, solid, top, every,
        float(percept.output_camera.k[1, 1]),
    )  # fmt: skip


def at(grid: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Values of a grid (X, Y) float32 of `LocalGround` at places (h, w) of the level frame, linear between the centres of
    its cells; of no meaning where the place is NaN."""
    column = y / np.float32(CELL) + np.float32(grid.shape[1] / 2 - 0.5)
    return cv2.remap(
        grid, column, x / np.float32(CELL) - np.float32(0.5), cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )


def _first_row(metres: np.ndarray, reach: float) -> int:
    """The first row that shows something within reach: above it is sky and what is far."""
    with np.errstate(invalid="ignore"):
        near = (metres[::4, ::8] < reach).any(1)
    return max(0, 4 * int(near.argmax()) - 3) if near.any() else 0


def _solid(said: Segmentation | None, top: int, every: int, shape: tuple[int, int]) -> np.ndarray:
    """Where the class is one that nobody drives on, and more likely than not."""
    if said is None:
        return np.zeros(shape, bool)
    known = np.zeros(256, bool)
    known[[label.id for label in said.labels if group(label.name) in SOLID]] = True
    return known[said.mask[top:, ::every]] & (said.confidence[top:, ::every] >= 128)


def _upright(metres: np.ndarray, solid: np.ndarray, focal: float) -> np.ndarray:
    """Depth (h', w') such that a solid thing is no deeper than it is wide: estimated depth leans its upper edge back to the
    ground behind. `focal` is the focal length in columns."""
    metres = np.array(metres, np.float32)
    if not solid.any():
        return metres
    count, parts, boxes, _ = cv2.connectedComponentsWithStats(solid.astype(np.uint8), connectivity=4)
    for part in range(1, count):
        left, top, width, height, area = boxes[part]
        if area < 6:
            continue
        window = metres[top : top + height, left : left + width]
        inside = parts[top : top + height, left : left + width] == part
        known = window[inside]
        known = known[np.isfinite(known)]
        if not len(known):
            continue
        nearest = np.partition(known, len(known) // 20)[len(known) // 20]
        np.minimum(window, nearest * (1 + width / focal), out=window, where=inside)
    return metres


def _near_plane(depth: np.ndarray, ray: np.ndarray, solid: np.ndarray) -> GroundPlane | None:
    some = (slice(None, None, 3), slice(None, None, 3))  # plenty
    points = depth[some][..., None] * ray[some]
    with np.errstate(invalid="ignore"):
        near = ~solid[some] & (points[..., 2] < NEAR)
    options = dict(most=500, hypotheses=48, least=ROUGH, rounds=4)
    return fit(points, near, **options) or fit(points, ~solid[some], **options)


def _levelling(up: np.ndarray) -> np.ndarray:
    """(3, 3) rotation from the optical frame to the level one: x is the camera's view along the level, z up."""
    ahead = np.array([0.0, 0.0, 1.0]) - up[2] * up
    ahead /= max(np.linalg.norm(ahead), 1e-9)
    return np.stack([ahead, np.cross(up, ahead), up])


def _cells(x: np.ndarray, y: np.ndarray, z: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """The flat cell (h', w') int32 of every point, -1 for what is unknown or beyond the grid."""
    highest = Z_STEP * 2 ** (Z_BITS - 1) - 1
    with np.errstate(invalid="ignore"):
        i = np.floor(x * np.float32(1 / CELL))
        j = np.floor(y * np.float32(1 / CELL)) + np.float32(shape[1] // 2)
        inside = (i >= 0) & (i < shape[0]) & (j >= 0) & (j < shape[1]) & (np.abs(z) < highest)
        return np.where(inside, i * shape[1] + j, -1).astype(np.int32)


def _lows(cell: np.ndarray, z: np.ndarray, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """The low height (X, Y) float32 of the points in each cell, and how many there are."""
    # One sort of whole numbers, cell and height together, puts every cell's heights in a row.
    steps = (z * np.float32(1 / Z_STEP)).astype(np.int32) + (1 << (Z_BITS - 1))
    order = np.sort((cell << Z_BITS) | steps)
    ends = np.searchsorted(order, np.arange(1, shape[0] * shape[1] + 1, dtype=np.int64) << Z_BITS)
    count = np.diff(ends, prepend=0)
    chosen = np.minimum(ends - count + (LOW * count).astype(np.int64), max(len(order) - 1, 0))
    low = np.zeros(len(count), np.float32)
    if len(order):
        low = ((order[chosen] & ((1 << Z_BITS) - 1)) - (1 << (Z_BITS - 1))).astype(np.float32) * np.float32(Z_STEP)
    low[count == 0] = 0
    return low.reshape(shape), count.reshape(shape)


def _surface(low: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """The smooth surface (X, Y) float32 through heights `low` with `weight`, from coarse to fine."""
    surface = _quadratic(low, weight)
    for metres, size in SCALES:
        left = low - surface
        trusted = weight * np.exp(-((left / np.float32(size)) ** 2))
        total, norm = (cv2.GaussianBlur(values, (0, 0), metres / CELL) for values in (trusted * left, trusted))
        surface = surface + total / (norm + np.float32(TRUST) * np.float32(weight.mean()))
    return surface


def _quadratic(low: np.ndarray, weight: np.ndarray) -> np.ndarray:
    known = np.flatnonzero(weight)
    terms = _terms(*low.shape)
    rows, z, base = terms[known], low.ravel()[known], np.sqrt(weight.ravel()[known])
    root = base
    for _ in range(6):
        weighed = rows * root[:, None]
        # A little of everything pulls towards the plane: a quadratic through few cells must not fly off.
        normal = weighed.T @ weighed + np.diag([1e-3, 1e-3, 1e-3, 1.0, 1.0, 1.0]).astype(np.float32)
        answer = np.linalg.solve(normal, weighed.T @ (z * root))
        error = rows @ answer - z
        scale = max(1.4826 * float(np.median(np.abs(error))), 0.03)
        root = base * np.clip(1 - (error / (TUKEY * scale)) ** 2, 0, None)
    return (terms @ answer).reshape(low.shape).astype(np.float32)


def _terms(ahead: int, across: int) -> np.ndarray:
    """(X Y, 6) float32: 1, x, y, x^2, x y, y^2 of the cells' centres, in units of 5 m."""
    x = ((np.arange(ahead, dtype=np.float32) + 0.5) * CELL / 5)[:, None]
    y = ((np.arange(across, dtype=np.float32) + 0.5 - across / 2) * CELL / 5)[None]
    one = np.ones((ahead, across), np.float32)
    return np.stack([one, x * one, y * one, x * x * one, x * y, y * y * one], -1).reshape(-1, 6)
