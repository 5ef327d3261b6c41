"""The rover that is driven: its size, what it climbs, how it moves (no dynamics), and how it follows a path.

It is the rover of the sample drive: wheels 0.9 m and 0.8 m apart, the camera 1.1 m over the ground. It steers as a tank
does, so that it can turn on the spot.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from dino_perception.training.terrain.drive import TRACK, WHEELBASE, camera_mount

LENGTH, WIDTH = WHEELBASE + 0.25, TRACK + 0.10
"""Metres: the wheels' outer edges."""
STEP = 0.15
"""Metres that a wheel climbs."""
SLOPE = math.radians(20.0)
"""The steepest ground that it may stand on."""
SPEED, TURN = 0.5, 0.6
"""Metres and radians a second at most."""
CAMERA = camera_mount(height=1.1, pitch=0.26)
"""(4, 4) camera optical frame to base_link."""
PARAMETERS = {"robot.step": STEP, "robot.max_slope": math.degrees(SLOPE), "robot.width": WIDTH, "robot.height": 1.3}
"""The same for the node."""
LOOKAHEAD = 0.75
"""Metres along the path to the point that it steers to."""
ON_THE_SPOT = 0.6
"""Radians between heading and path from which it turns without driving."""


@dataclass(frozen=True)
class Pose:
    """The middle between the wheels in the world, metres, and the heading in radians from x to y."""

    x: float
    y: float
    yaw: float

    def moved(self, speed: float, turn: float, seconds: float) -> Pose:
        """After `seconds` at a steady speed (m/s) and turn (rad/s): an arc of a circle (Siegwart and others, Introduction
        to Autonomous Mobile Robots, section 3.2; exact, not summed up in small steps)."""
        angle = turn * seconds
        chord = speed * seconds * float(np.sinc(angle / 2 / math.pi))
        along = self.yaw + angle / 2
        yaw = math.remainder(self.yaw + angle, 2 * math.pi)
        return Pose(self.x + chord * math.cos(along), self.y + chord * math.sin(along), yaw)

    def footprint(self, spacing: float = 0.03) -> np.ndarray:
        """(N, 2) points of the world, `spacing` metres apart or less, all over the rectangle that the rover covers."""
        sides = [np.linspace(-s / 2, s / 2, math.ceil(s / spacing) + 1) for s in (LENGTH, WIDTH)]
        forward, left = (v.ravel() for v in np.meshgrid(*sides))
        c, s = math.cos(self.yaw), math.sin(self.yaw)
        return np.stack([self.x + c * forward - s * left, self.y + s * forward + c * left], axis=1)

    def bearing(self, target: np.ndarray) -> float:
        """Radians from the heading to a point (2,), counter-clockwise, -pi to pi."""
        return math.remainder(math.atan2(target[1] - self.y, target[0] - self.x) - self.yaw, 2 * math.pi)


def pursue(pose: Pose, path: np.ndarray) -> tuple[float, float]:
    """Speed (m/s) and turn (rad/s) along `path` (N, 2), which begins near the pose: pure pursuit (Coulter 1992), the arc
    through the point LOOKAHEAD metres along it; on the spot where that lies to the side or behind."""
    target = ahead(np.array([pose.x, pose.y]), path)
    angle = pose.bearing(target)
    if abs(angle) > ON_THE_SPOT:
        return 0.0, math.copysign(TURN, angle)
    distance = max(math.dist(target, (pose.x, pose.y)), 1e-6)
    curvature = 2 * math.sin(angle) / distance
    speed = min(SPEED, TURN / max(abs(curvature), 1e-9))
    return speed, speed * curvature


def ahead(place: np.ndarray, path: np.ndarray, distance: float = LOOKAHEAD) -> np.ndarray:
    """The point (2,) of the path `distance` metres along it from the path's point nearest to `place`; its end, where it
    is shorter."""
    start, way = path[:-1], np.diff(path, axis=0)
    length = np.linalg.norm(way, axis=1)
    if not length.sum():
        return path[-1]
    share = np.clip(((place - start) * way).sum(1) / np.maximum(length, 1e-12) ** 2, 0, 1)
    nearest = np.linalg.norm(start + share[:, None] * way - place, axis=1).argmin()
    passed = np.concatenate([[0], np.cumsum(length)])
    wanted = passed[nearest] + share[nearest] * length[nearest] + distance
    return np.array([np.interp(wanted, passed, path[:, axis]) for axis in (0, 1)])
