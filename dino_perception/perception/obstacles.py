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
GAP, GAP_REACH = 0.4, 6.0
"""Metres of ground that must be out of sight to be a ditch, and metres ahead up to which ditches are looked for so."""
FILL, MOST_FILLED = 0.1, 20
"""Metres from one place in a gap to the next, and how many there are at most."""
GAPS = 2.5
"""A gap is that many times as long as level ground would leave between two rows of pixels."""


@dataclass(frozen=True)
class Obstacles:
    """`kind` (h', w') uint8 of every pixel of `ground.over`; `sure` (h', w') float32 0..1, how surely it is so; `slope`
    (h', w') float32, degrees of the ground below it.

    What lies between the brink of a ditch and the far wall that is seen is out of sight, and no less in the way: `gap`
    (3, M) float32, places there in the level frame; `behind` (M,) the flat number of the pixel that shows the wall.
    """

    ground: LocalGround
    kind: np.ndarray
    sure: np.ndarray
    slope: np.ndarray
    gap: np.ndarray
    behind: np.ndarray

    @property
    def mask(self) -> np.ndarray:
        """(h', w') bool: what is in the way."""
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
    known = np.isfinite(over)
    beside = over - _lowest_beside(ground, over, known, robot.step)
    with np.errstate(invalid="ignore"):
        height = np.maximum(over, np.where(beside > step, beside, over))
        slope = at(ground.steepness, ground.x, ground.y)
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
        sure *= percept.depth.confidence[ground.top :, :: ground.every] * np.float32(1 / 255)
    if percept.segmentation is not None:
        by_class = percept.segmentation.confidence[ground.top :, :: ground.every] * np.float32(1 / 255)
        sure = np.where(ground.solid, np.maximum(sure * (kind != SOLID), by_class), sure)
    sure[kind == HIDDEN] *= 0.5  # nobody has seen how deep it is
    return Obstacles(ground, kind, sure, slope, *_in_gaps(ground, kind))


POINT = np.dtype(
    [(axis, np.float32) for axis in "xyz"]
    + [("label", np.uint32), ("confidence", np.float32), ("height", np.float32)]
)  # fmt: skip
"""A point of `~/obstacles`, 24 bytes: optical frame, metres; class id, 255 where no class is known; 0..1; metres over the
local ground, below zero under it."""


def obstacle_points(percept: Percept, found: Obstacles, least: float) -> np.ndarray:
    """The (N,) points in the way that are as sure as `least`, of type POINT: the pixels row by row of the image, then what
    lies in the gaps before them."""
    ground, said = found.ground, percept.segmentation
    pixels = np.flatnonzero(found.mask & (found.sure >= least))
    gaps = np.flatnonzero(found.sure.ravel()[found.behind] >= least)
    shown = np.concatenate([pixels, found.behind[gaps]])
    cloud = np.empty(len(shown), POINT)
    level = np.stack([axis.ravel()[pixels] for axis in (ground.x, ground.y, ground.z)])
    level = np.concatenate([level, found.gap[:, gaps]], 1)
    level[2] -= np.float32(ground.lift)
    for axis, values in zip("xyz", ground.rotation.T.astype(np.float32) @ level):
        cloud[axis] = values
    cloud["label"] = IGNORE if said is None else said.mask[ground.top :, :: ground.every].ravel()[shown]
    cloud["confidence"] = found.sure.ravel()[shown]
    cloud["height"] = ground.over.ravel()[shown]
    return cloud


def _lowest_beside(ground: LocalGround, over: np.ndarray, known: np.ndarray, step: float) -> np.ndarray:
    """(h', w') metres: the lowest low height over the surface within `BESIDE` of each point, a step below at most, so that
    the brink of a ditch is not taken for a wall."""
    low = np.clip(ground.low - ground.surface, -step, step)
    low[~ground.seen] = step  # where nothing was seen, nothing is lower
    side = 2 * round(BESIDE / CELL) + 1
    low = cv2.erode(low, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side)))
    beside = at(low, ground.x, ground.y)
    return np.where(known, beside, 0)


def _behind_gaps(ground: LocalGround, kind: np.ndarray, step: float) -> np.ndarray:
    """(h', w') bool: pixels that show the far side of a gap in the ground, as a low camera sees a ditch: from one row to
    the next the ground jumps away by more than it could, and goes on lower than it would."""
    over, away = ground.over, np.hypot(ground.x, ground.y)
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


def _in_gaps(ground: LocalGround, kind: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`gap` and `behind` of Obstacles: a place at every `FILL` metres from the ground before a ditch to its far wall."""
    wall = np.zeros(kind.shape, bool)
    wall[:-1] = ((kind[:-1] == HIDDEN) | (kind[:-1] == UNDER)) & (kind[1:] == GROUND)
    behind = np.flatnonzero(wall)
    before = behind + kind.shape[1]
    far, near = (np.stack([axis.ravel()[pixels] for axis in (ground.x, ground.y)]) for pixels in (behind, before))
    count = np.minimum(np.hypot(*(far - near)) / FILL, MOST_FILLED).astype(np.int64)
    which = np.repeat(np.arange(len(behind)), count)
    step = np.arange(len(which)) - np.repeat(np.cumsum(count) - count, count)
    share = ((step + 0.5) / count[which]).astype(np.float32)
    gap = np.empty((3, len(which)), np.float32)
    gap[:2] = near[:, which] + share * (far - near)[:, which]
    gap[2] = ground.z.ravel()[before[which]]
    return gap, behind[which]
