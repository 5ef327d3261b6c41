"""The truth that matches are held against: closed forms, and OpenCV's projection through a lens."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from dino_perception.perception.frame import CameraModel
from dino_perception.training.evaluation.reprojection import end_point_errors, reproject

CAMERA = CameraModel(64, 48, np.array([[50.0, 0, 31.5], [0, 50.0, 23.5], [0, 0, 1]]))


def moved(x=0.0, y=0.0, z=0.0, turn=0.0) -> np.ndarray:
    pose = np.eye(4)
    pose[:3, :3] = cv2.Rodrigues(np.array([0.0, turn, 0.0]))[0]
    pose[:3, 3] = x, y, z
    return pose


def test_a_step_to_the_right_moves_points_left_by_focal_length_over_depth():
    xy = np.array([[31.5, 23.5], [10.0, 40.0]])
    found = reproject(xy, np.array([5.0, 10.0]), CAMERA, np.eye(4), CAMERA, moved(x=0.5))
    np.testing.assert_allclose(found, xy - [[5.0, 0], [2.5, 0]])


def test_reprojection_through_a_lens_agrees_with_opencv():
    lens = CameraModel(64, 48, CAMERA.k, np.array([-0.2, 0.05, 0.001, -0.002, 0.01]))
    xy = np.stack(np.meshgrid(np.arange(5.0, 60, 9), np.arange(5.0, 45, 9)), -1).reshape(-1, 2)
    metres = np.linspace(2, 9, len(xy))
    pose, other = moved(0.1, -0.2, 0.3, 0.1), moved(0.4, 0.1, 0.2, -0.05)
    invert = getattr(cv2, "undistortPointsIter", cv2.undistortPoints)  # the criteria moved with OpenCV 4.7
    rays = invert(xy[:, None], lens.k, lens.d, None, None, criteria=(cv2.TERM_CRITERIA_EPS, 100, 1e-12))[:, 0]
    points = np.hstack([rays, np.ones((len(rays), 1))]) * metres[:, None]
    to_other = np.linalg.inv(other) @ pose
    wanted = cv2.projectPoints(points, cv2.Rodrigues(to_other[:3, :3])[0], to_other[:3, 3], lens.k, lens.d)[0][:, 0]
    np.testing.assert_allclose(reproject(xy, metres, lens, pose, lens, other), wanted, atol=1e-4)


def test_no_depth_is_no_truth_and_a_point_behind_the_camera_is_never_right():
    depth = np.full((48, 64), 2.0)
    depth[:, 32:] = np.nan
    xy = np.array([[10.0, 10.0], [50.0, 10.0]])
    errors = end_point_errors(xy, xy, depth, CAMERA, np.eye(4), CAMERA, moved(z=3.0))
    assert errors[0] == np.inf and np.isnan(errors[1])


def slanted(height, width):
    """Depth of one plane for a camera of CAMERA's view with height x width pixels: 1 / z is linear in the pixel."""
    v, u = np.mgrid[:height, :width]
    return 1 / (0.3 + 0.2 * (v + 0.5) / height + 0.05 * (u + 0.5) / width)


@pytest.mark.parametrize("factor", [1, 4])
def test_true_matches_between_pixels_of_a_slanted_plane_have_no_error_at_any_size_of_the_truth(factor):
    random = np.random.default_rng(1)
    xy = random.uniform([6, 6], [57, 41], (300, 2))
    metres = 1 / (0.3 + 0.2 * (xy[:, 1] + 0.5) / 48 + 0.05 * (xy[:, 0] + 0.5) / 64)
    other = moved(0.3, 0.1, 0.4, 0.03)
    true_xy = reproject(xy, metres, CAMERA, np.eye(4), CAMERA, other)
    depth = slanted(48 // factor, 64 // factor)
    errors = end_point_errors(xy, true_xy, depth, CAMERA, np.eye(4), CAMERA, other)
    assert errors.max() < 1e-6
    off = end_point_errors(xy, true_xy + [3.0, 4.0], depth, CAMERA, np.eye(4), CAMERA, other)
    np.testing.assert_allclose(off, 5.0, atol=1e-6)


def test_on_a_depth_edge_either_side_is_right_and_what_is_between_is_not():
    depth = np.full((48, 64), 10.0)
    depth[:, 32:] = 2.0
    xy, step = np.array([[31.5, 20.0]]), moved(x=1.0)
    far, near = xy - [[5.0, 0]], xy - [[25.0, 0]]
    errors = [
        end_point_errors(xy, end, depth, CAMERA, np.eye(4), CAMERA, step)[0] for end in (far, near, (far + near) / 2)
    ]
    assert errors == pytest.approx([0, 0, 10])
