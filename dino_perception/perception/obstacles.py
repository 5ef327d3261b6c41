"""What stands over or falls under the local ground by more than the robot's step, and slopes that it does not climb."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from dino_perception.perception.frame import IGNORE, Percept
from dino_perception.perception.local_ground import CELL, LocalGround, at, local_ground
from dino_perception.perception.pose import LOST
from dino_perception.perception.settings import RobotSettings, Settings

GROUND, OVER, UNDER, STEEP, SOLID, ABOVE, HIDDEN = range(1, 8)
"""What a pixel shows: ground to drive on; something over it or under it by more than a step; ground too steep; a class
that nobody drives on, however low it looks; something that the robot passes under; the far side of a place that falls so
steeply that it cannot be seen. 0: nothing is known."""
NAMES = ("unknown", "ground", "over", "under", "steep", "solid", "above", "hidden")
IN_THE_WAY = (OVER, UNDER, STEEP, SOLID, HIDDEN)
BESIDE = 0.3
"""Metres around a point within which a lower place makes a step of it: about a wheel."""
GAP, GAP_REACH = 0.3, 7.0
"""Metres of ground that must be out of sight to be a ditch, and metres ahead up to which ditches are looked for so."""
GAPS = 2.5
"""A gap is that many times as long as level ground would leave between two rows of pixels."""


@dataclass(frozen=True)
class Obstacles:
    """`kind` (h, w') uint8 of every pixel of `ground.points`; `sure` (h, w') float32 0..1, how surely it is so; `slope`
    (h, w') float32, degrees of the ground below it."""

    ground: LocalGround
    kind: np.ndarray
    sure: np.ndarray
    slope: np.ndarray

    @property
    def mask(self) -> np.ndarray:
        """(h, w') bool: what is in the way."""
        return _BLOCKS[self.kind]


_BLOCKS = np.isin(np.arange(256), IN_THE_WAY)


def obstacles(percept: Percept, settings: Settings) -> Obstacles | None:
    """What the robot meets in this percept; None where it shows no ground."""
    pose = percept.pose
    up = None if pose is None or pose.health == LOST else pose.rotation[2]
    ground = local_ground(percept, settings.obstacles.max_range, up, settings.robot.width)
    return None if ground is None else on_ground(percept, ground, settings.robot)


def on_ground(percept: Percept, ground: LocalGround, robot: RobotSettings) -> Obstacles:
    """What a robot meets on this ground."""
    over, step = ground.over, np.float32(robot.step)
    x, y = ground.points[..., 0], ground.points[..., 1]
    known = np.isfinite(over)
    beside = over - _lowest_beside(ground, over, known, robot.step)
    with np.errstate(invalid="ignore"):
        height = np.maximum(over, np.where(beside > step, beside, over))
        slope = at(ground.steepness, x, y)
        kind = np.where(known, GROUND, 0).astype(np.uint8)
        kind[known & (slope > robot.max_slope)] = STEEP
        kind[over < -step] = UNDER
        kind[height > step] = OVER
        kind[known & ground.solid] = SOLID
        kind[over > robot.height] = ABOVE
        kind[_behind_gaps(ground, kind, robot.step)] = HIDDEN
        # From half at the very step to one at twice the step: an estimated height is not exact.
        by_height = np.clip(np.maximum(height, -over) / (2 * step), 0.5, 1)
    sure = np.where((kind == OVER) | (kind == UNDER), by_height, np.float32(1)).astype(np.float32)
    if percept.depth.confidence is not None:
        sure *= percept.depth.confidence[:, :: ground.every] * np.float32(1 / 255)
    if percept.segmentation is not None:
        by_class = percept.segmentation.confidence[:, :: ground.every] * np.float32(1 / 255)
        sure = np.where(ground.solid, np.maximum(sure * (kind != SOLID), by_class), sure)
    sure[kind == HIDDEN] *= 0.5  # nobody has seen how deep it is
    return Obstacles(ground, kind, sure, slope)


POINT = np.dtype(
    [(axis, np.float32) for axis in "xyz"]
    + [("label", np.uint32), ("confidence", np.float32), ("height", np.float32)]
)  # fmt: skip
"""A point of `~/obstacles`, 24 bytes: optical frame, metres; class id, 255 where no class is known; 0..1; metres over the
local ground, below zero under it."""


def obstacle_points(percept: Percept, found: Obstacles, least: float) -> np.ndarray:
    """The (N,) points in the way that are as sure as `least`, of type POINT, row by row of the image."""
    ground, rows = found.ground, found.mask & (found.sure >= least)
    cloud = np.empty(int(np.count_nonzero(rows)), POINT)
    level = ground.points[rows] - np.array([0, 0, ground.lift], np.float32)
    optical = level @ ground.rotation.astype(np.float32)
    for i, axis in enumerate("xyz"):
        cloud[axis] = optical[:, i]
    said = percept.segmentation
    cloud["label"] = IGNORE if said is None else said.mask[:, :: ground.every][rows]
    cloud["confidence"] = found.sure[rows]
    cloud["height"] = ground.over[rows]
    return cloud


def _lowest_beside(ground: LocalGround, over: np.ndarray, known: np.ndarray, step: float) -> np.ndarray:
    """(h, w') metres: the lowest low height over the surface within `BESIDE` of each point, a step below at most, so that
    the brink of a ditch is not taken for a wall."""
    low = np.clip(ground.low - ground.surface, -step, step)
    low[~ground.seen] = step  # where nothing was seen, nothing is lower
    side = 2 * round(BESIDE / CELL) + 1
    low = cv2.erode(low, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side)))
    beside = at(low, ground.points[..., 0], ground.points[..., 1])
    return np.where(known, beside, 0)


def _behind_gaps(ground: LocalGround, kind: np.ndarray, step: float) -> np.ndarray:
    """(h, w') bool: pixels that show the far side of a gap in the ground, as a low camera sees a ditch: from one row to
    the next the ground jumps away by more than it could, and goes on lower than it would."""
    points, over = ground.points, ground.over
    away = np.hypot(points[..., 0], points[..., 1])
    near, far = away[1:], away[:-1]  # rows go down, and nearer
    height = np.float32(ground.lift)
    angle = np.float32(1 / ground.focal)
    gap = far - near
    usual = near * near * angle / height
    hidden = np.zeros(kind.shape, bool)
    hidden[:-1] = (
        (gap > np.maximum(np.float32(GAP), np.float32(GAPS) * usual))
        & (near < GAP_REACH)
        & (kind[1:] == GROUND)
        & np.isin(kind[:-1], (GROUND, UNDER))
        # Behind a crest the ground goes on as it was; the far wall of a ditch is seen below it.
        & (over[:-1] < -np.float32(0.5 * step))
    )
    return hidden
