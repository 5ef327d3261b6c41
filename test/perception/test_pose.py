"""A pose brings points of the camera into odom."""

from __future__ import annotations

import numpy as np
import pytest

from dino_perception.perception.pose import Pose


def test_a_point_before_the_camera_lies_ahead_of_it_in_odom():
    optical = np.array([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]])  # optical to x forward, y left, z up
    pose = Pose(np.array([2.0, 1.0, 0.5]), optical)
    points = np.array([[0.0, 0, 4], [1, 0, 4], [0, 0.5, 4]], np.float32)
    assert np.allclose(pose.to_odom(points), [[6, 1, 0.5], [6, 0, 0.5], [6, 1, 0]])
    assert np.allclose((pose.matrix @ [0, 0, 4, 1])[:3], [6, 1, 0.5])
    assert pose.to_odom(points).dtype == np.float32


def test_a_health_or_a_source_that_nobody_knows_is_refused():
    with pytest.raises(ValueError, match="of health 'fine' from 'visual'"):
        Pose(np.zeros(3), np.eye(3), health="fine")
