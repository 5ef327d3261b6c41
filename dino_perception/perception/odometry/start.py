"""Where odom begins: level, looking where the camera looks first."""

from __future__ import annotations

import numpy as np

from dino_perception.perception import geometry
from dino_perception.perception.frame import Percept
from dino_perception.perception.ground_plane import GroundPlane, fit, ground_plane

LEVEL_CAMERA = "taking the camera to look level"


def start(percept: Percept, camera_height: float = 0.0, mount: np.ndarray | None = None) -> tuple[np.ndarray, str]:
    """(4, 4): odom from the optical frame of the first percept, and in a few words what it was levelled by.

    z is against the fall of the ground that is seen, x is ahead, and the origin lies on that ground below the camera, which
    stands `camera_height` metres over it, where that is given, else as high as its depth says. Where no ground is seen, the
    camera is taken to look level, and the origin lies in it, or that height below it. With a `mount` (4, 4), the optical
    frame in the robot's own, odom begins where that frame stands and looks along its x, level as the ground is.
    """
    pose, by = _of_camera(percept, camera_height)
    if mount is None:
        return pose, by
    if by == LEVEL_CAMERA:
        return mount.copy(), "taking the robot to stand level"
    base = pose @ np.linalg.inv(mount)
    away = np.eye(4)
    heading = np.arctan2(base[1, 0], base[0, 0])
    c, s = np.cos(heading), np.sin(heading)
    away[:2, :2] = [[c, -s], [s, c]]
    away[:2, 3] = base[:2, 3]
    return np.linalg.inv(away) @ pose, by


def _of_camera(percept: Percept, camera_height: float) -> tuple[np.ndarray, str]:
    plane = ground_plane(percept) or _lower_half(percept)
    if plane is None:
        pose = np.eye(4)
        pose[:3, :3] = [[0, 0, 1], [-1, 0, 0], [0, -1, 0]]
        pose[2, 3] = camera_height
        return pose, LEVEL_CAMERA
    up = plane.normal
    ahead = np.array([0.0, 0.0, 1.0]) - up[2] * up
    if np.linalg.norm(ahead) < 0.05:  # it looks straight down: ahead is where the top of the image is
        ahead = np.array([0.0, -1.0, 0.0]) + up[1] * up
    ahead /= np.linalg.norm(ahead)
    pose = np.eye(4)
    pose[:3, :3] = [ahead, np.cross(up, ahead), up]
    pose[2, 3] = camera_height or plane.height
    return pose, "by the ground that was seen"


def _lower_half(percept: Percept) -> GroundPlane | None:
    """The plane of what is seen in the lower half of the image, where classes do not say what is ground."""
    if percept.depth is None or percept.output_camera is None:
        return None
    points = geometry.points(percept.depth.metres, geometry.rays(percept.output_camera))
    lower = np.zeros(points.shape[:2], bool)
    lower[points.shape[0] // 2 :] = True
    return fit(points, lower)
