"""A pose as nav_msgs/Odometry and as a transform."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from dino_perception.messages.odometry import UNKNOWN, odometry, quaternion, transform
from dino_perception.messages.types import RosbagsTypes
from dino_perception.perception.frame import Frame, Percept
from dino_perception.perception.pose import Pose
from dino_perception.perception.settings import Settings

TYPES = RosbagsTypes()
FRAME = Frame("camera", 1_700_000_000_123_456_789, "camera_optical", np.zeros((2, 2, 3), np.uint8))
COVARIANCE = np.arange(36.0).reshape(6, 6)


def percept(**more) -> Percept:
    turned = Rotation.from_rotvec([0.3, -0.2, 1.1]).as_matrix()
    return Percept(FRAME, 2, 2, pose=Pose(np.array([1.0, 2.0, 3.0]), turned, COVARIANCE, **more))


def test_a_quaternion_is_that_of_scipy_for_every_kind_of_turn():
    for rotation in (*Rotation.random(200, random_state=1), *Rotation.from_rotvec(np.pi * np.eye(3))):
        own, theirs = quaternion(rotation.as_matrix()), rotation.as_quat()
        assert abs(own @ theirs) == pytest.approx(1) and own[3] >= 0


def test_the_message_carries_the_stamp_of_the_image_and_the_frames_of_the_settings():
    message = odometry(TYPES, None, percept(), Settings())
    assert (message.header.frame_id, message.child_frame_id) == ("odom", "camera_optical")
    assert (message.header.stamp.sec, message.header.stamp.nanosec) == (1_700_000_000, 123_456_789)
    assert message.pose.pose.position.y == 2.0
    assert np.array_equal(message.pose.covariance, np.arange(36.0))
    assert message.twist.covariance[0] == UNKNOWN  # nothing is known of its speed


def test_what_the_robot_does_follows_from_what_its_camera_does():
    """A robot that turns on the spot at 0.5 rad/s: its camera, a metre ahead, moves sideways."""
    mount = np.eye(4)
    mount[:3, :3], mount[:3, 3] = [[0, 0, 1], [-1, 0, 0], [0, -1, 0]], (1.0, 0.0, 0.5)
    twist = np.concatenate([mount[:3, :3].T @ [0, 0.5, 0], mount[:3, :3].T @ [0, 0, 0.5]])
    placed = Pose(mount[:3, 3], mount[:3, :3], np.eye(6), twist=twist, twist_covariance=np.eye(6), mount=mount)
    settings = Settings().changed({"odometry.child_frame": "base_link"})
    message = odometry(TYPES, None, Percept(FRAME, 2, 2, pose=placed), settings)
    linear, angular = message.twist.twist.linear, message.twist.twist.angular
    assert np.allclose([linear.x, linear.y, linear.z], 0, atol=1e-12)
    assert np.allclose([angular.x, angular.y, angular.z], [0, 0, 0.5])
    assert (message.pose.pose.position.x, message.pose.pose.orientation.w) == pytest.approx((0, 1))
    covariance = message.pose.covariance.reshape(6, 6)
    assert covariance[1, 1] == pytest.approx(1 + 1 + 0.25) and covariance[5, 5] == pytest.approx(1)  # its lever arm


def test_a_robot_whose_camera_stands_nobody_knows_where_is_not_told():
    settings = Settings().changed({"odometry.child_frame": "base_link"})
    assert odometry(TYPES, None, percept(), settings) is None and transform(TYPES, percept(), settings) is None


def test_the_transform_says_the_same_and_is_silent_while_odometry_is_lost():
    message = transform(TYPES, percept(), Settings()).transforms[0]
    assert (message.header.frame_id, message.child_frame_id) == ("odom", "camera_optical")
    assert message.transform.translation.z == 3.0
    assert transform(TYPES, percept(health="lost"), Settings()) is None
    assert odometry(TYPES, None, percept(health="lost"), Settings()) is not None
