"""Views of ground whose shape is a formula: what a camera sees of heights z(x, y), by marching its rays."""

from __future__ import annotations

import numpy as np

from dino_perception.models.label_sets import LABELS
from dino_perception.perception.frame import CameraModel, Depth, Frame, Percept, Segmentation
from dino_perception.perception.geometry import rays
from dino_perception.perception.pose import Pose

CAMERA = CameraModel(160, 120, np.array([[120.0, 0, 79.5], [0, 120.0, 59.5], [0, 0, 1]]))
HEIGHT, PITCH = 1.1, 0.25
SOIL, BIG_ROCK = 0, 3


def pose_of(pitch: float = PITCH, height: float = HEIGHT, x: float = 0.0, yaw: float = 0.0) -> Pose:
    """A camera that looks ahead and down over the ground at zero."""
    optical = np.array([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]])
    c, s, cy, sy = np.cos(pitch), np.sin(pitch), np.cos(yaw), np.sin(yaw)
    down, turn = np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]]), np.array([[cy, -sy, 0], [sy, cy, 0], [0, 0, 1]])
    return Pose(np.array([x, 0.0, height]), turn @ down @ optical)


def view(height, pose: Pose, *, rock=None, stamp_ns: int = 0, posed: bool = True) -> Percept:
    """What the camera sees of `height(x, y)` metres; pixels where `rock(x, y)` holds are of class big_rock."""
    ray = rays(CAMERA).astype(np.float64) @ pose.rotation.T
    reach = np.geomspace(0.7, 14, 160)
    start, end = np.zeros(ray.shape[:2]), np.full(ray.shape[:2], np.nan)
    for near, far in zip(reach, reach[1:]):  # until the ray is below the ground
        at = pose.position + far * ray
        met = np.isnan(end) & (at[..., 2] <= height(at[..., 0], at[..., 1]))
        start[met], end[met] = near, far
    for _ in range(10):
        middle = (start + end) / 2
        at = pose.position + middle[..., None] * ray
        below = at[..., 2] <= height(at[..., 0], at[..., 1])
        start, end = np.where(below, start, middle), np.where(below, middle, end)
    depth = end
    at = pose.position + depth[..., None] * ray
    classes = np.zeros(depth.shape, np.uint8)
    if rock is not None:
        classes[rock(at[..., 0], at[..., 1]) & np.isfinite(depth)] = BIG_ROCK
    frame = Frame("camera", stamp_ns, "optical", np.zeros((CAMERA.height, CAMERA.width, 3), np.uint8), CAMERA)
    said = None if rock is None else Segmentation(classes, np.full(classes.shape, 230, np.uint8), LABELS)
    return Percept(
        frame, CAMERA.height, CAMERA.width, CAMERA, said, Depth(depth.astype(np.float32)), pose=pose if posed else None
    )  # fmt: skip


def box(x0: float, x1: float, y0: float, y1: float, z: float):
    """A block `z` metres high, or a pit where that is below zero, on level ground."""
    return lambda x, y: np.where((x > x0) & (x < x1) & (y > y0) & (y < y1), z, 0.0)


def points_of(percept: Percept) -> np.ndarray:
    """(N, 3) in odom of what is in the way."""
    from dino_perception.perception.obstacles import obstacle_points, obstacles
    from dino_perception.perception.settings import Settings

    cloud = obstacle_points(percept, obstacles(percept, Settings()), 0.3)
    return percept.pose.to_odom(np.stack([cloud[axis] for axis in "xyz"], -1).astype(np.float64)), cloud
