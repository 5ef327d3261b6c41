"""Where a pixel of one frame lies in another, from its depth and both poses: the truth for matches."""

from __future__ import annotations

import numpy as np

from dino_perception.perception.frame import CameraModel
from dino_perception.perception.geometry import project, resized
from dino_perception.perception.lens import undistort


def reproject(
    xy: np.ndarray,
    metres: np.ndarray,
    camera: CameraModel,
    pose: np.ndarray,
    other_camera: CameraModel,
    other_pose: np.ndarray,
) -> np.ndarray:
    """Pixels (N, 2) float64 of the other frame at which the points behind pixels `xy` (N, 2) are seen.

    `metres` (N,) is their depth along the optical axis. Poses (4, 4) bring points of the optical frame into the world.
    NaN where there is no depth or the point is behind the other camera.
    """
    k = camera.k
    x, y = undistort(camera, (xy[:, 0] - k[0, 2]) / k[0, 0], (xy[:, 1] - k[1, 2]) / k[1, 1])
    points = np.stack([x, y, np.ones_like(x)], axis=-1) * np.asarray(metres, np.float64)[:, None]
    world = points @ pose[:3, :3].T + pose[:3, 3]
    return project(other_camera, (world - other_pose[:3, 3]) @ other_pose[:3, :3])


def end_point_errors(
    reference_xy: np.ndarray,
    xy: np.ndarray,
    reference_depth: np.ndarray,
    reference_camera: CameraModel,
    reference_pose: np.ndarray,
    camera: CameraModel,
    pose: np.ndarray,
) -> np.ndarray:
    """How far each match is off, (N,) float64 pixels of the image; NaN where there is no depth (as for sky).

    `reference_xy` and `xy` (N, 2) are the two ends of each match in image pixels, `reference_depth` (h, w) metres of
    the reference frame, of the image's size or of another one that shows the same. Between pixels of one surface, depth
    is interpolated in its inverse, which is exact on a plane. A point between the pixels of a depth edge (their depths
    differ by more than a tenth) has two depths: of the up to four around it, the one that is kindest to the match
    counts, for every matcher alike. A match whose point would be behind the camera is infinitely far off.
    """
    height, width = reference_depth.shape
    reference_xy = np.asarray(reference_xy, np.float64)
    at = resized(reference_xy, (width / reference_camera.width, height / reference_camera.height))
    low = np.clip(np.floor(at), 0, [max(width - 2, 0), max(height - 2, 0)]).astype(int)
    share = np.clip(at - low, 0, 1)
    near = np.stack(
        [
            reference_depth[np.minimum(low[:, 1] + dv, height - 1), np.minimum(low[:, 0] + du, width - 1)]
            for dv in (0, 1)
            for du in (0, 1)
        ]
    ).astype(np.float64)
    weights = np.stack([v * u for v in (1 - share[:, 1], share[:, 1]) for u in (1 - share[:, 0], share[:, 0])])
    with np.errstate(invalid="ignore", divide="ignore"):
        smooth = near.max(axis=0) <= 1.1 * near.min(axis=0)
        candidates = np.where(smooth, 1 / (weights / near).sum(axis=0), near)
    best = np.full(len(at), np.nan)
    for metres in candidates:
        true_xy = reproject(reference_xy, metres, reference_camera, reference_pose, camera, pose)
        error = np.linalg.norm(true_xy - xy, axis=1)
        best = np.fmin(best, np.where(np.isfinite(metres) & np.isnan(error), np.inf, error))
    return best
