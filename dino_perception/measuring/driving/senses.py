"""What the rover steers by: nothing, the truth as far as its camera sees, or what is perceived.

A sense is a callable: a View in, (X, Y) bool out, the cells of GRID that are closed as far as is known by now.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import cv2
import numpy as np

from dino_perception.measuring.driving.course import GRID, Course
from dino_perception.measuring.driving.memory import Memory, counted
from dino_perception.measuring.driving.obstacles import Finder
from dino_perception.perception import geometry
from dino_perception.perception.frame import CameraModel
from dino_perception.training.terrain.sample_bag import FIELD_OF_VIEW_DEG, HEIGHT, WIDTH, scaled
from dino_perception.training.terrain.world import PinholeCamera

REACH = 8.0
"""Metres from the camera within which anything is believed, the truth as well."""
LEAST = 2
"""Points that must lie in a cell before it counts."""
CAMERA = PinholeCamera.of(WIDTH, HEIGHT, FIELD_OF_VIEW_DEG)
"""The sample drive's."""


@dataclass(frozen=True)
class View:
    """Where the rover is when frame `number` is taken, `stamp_ns` on the clock of the drive: `base` (4, 4) base_link to
    odom, which is the world, and `camera` (4, 4) the optical frame to odom."""

    number: int
    stamp_ns: int
    base: np.ndarray
    camera: np.ndarray


class Sense(Protocol):
    def __call__(self, view: View) -> np.ndarray: ...


class Blind:
    """Knows of nothing: it drives straight to the goal."""

    def __call__(self, view: View) -> np.ndarray:
        return np.zeros(GRID.shape, bool)


class Perfect:
    """Knows the truth of every place that the camera has seen from at most REACH metres, and of what stands there."""

    def __init__(self, course: Course):
        self._course, self._memory = course, Memory()
        camera = scaled(CAMERA, 4)
        self._camera = CameraModel(camera.width, camera.height, camera.k)

    def __call__(self, view: View) -> np.ndarray:
        depth = self._course.world.render(view.camera[None], self._camera, colour=False).depth[0]
        points = in_odom(geometry.points(depth, geometry.rays(self._camera)), view.camera)
        seen = counted(points[_near(points, view)], 1)
        # A rock hides the cells behind the side that it shows, which are of the rock as well.
        closed = cv2.dilate(seen.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool) & self._course.closed
        self._memory.observe(seen, closed, view.base[:2, 3])
        return self._memory.closed


class Perceived:
    """Steers by what the node says, live or not: `ask` is given a view and its picture (H, W, 3) uint8 RGB and returns
    the node's messages by relative topic name; `finder` tells from these what is in the way. `last` is the last picture,
    and the points (M, 3) of the optical frame that are in the way in it."""

    def __init__(self, course: Course, ask: Callable[[View, np.ndarray], Mapping[str, Any]], finder: Finder):
        self._course, self._ask, self._finder, self.memory = course, ask, finder, Memory()
        self.last: tuple[np.ndarray, np.ndarray] | None = None

    def __call__(self, view: View) -> np.ndarray:
        picture = self._course.world.render(view.camera[None], CAMERA, first_frame=view.number).rgb[0]
        found = self._finder.find(self._ask(view, picture))
        self.last = picture, found[1]
        seen, closed = (
            counted(points[_near(points, view)], LEAST) for points in (in_odom(p, view.camera) for p in found)
        )
        self.memory.observe(seen, closed, view.base[:2, 3])
        return self.memory.closed


def in_odom(points: np.ndarray, camera: np.ndarray) -> np.ndarray:
    """(..., 3) points of the optical frame as (N, 3) of odom, float64."""
    return points.reshape(-1, 3).astype(np.float64) @ camera[:3, :3].T + camera[:3, 3]


def _near(points: np.ndarray, view: View) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        return np.linalg.norm(points - view.camera[:3, 3], axis=1) <= REACH
