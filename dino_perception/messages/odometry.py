"""Poses as ROS messages: nav_msgs/Odometry, and the same as a transform for whoever wants it on /tf."""

from __future__ import annotations

from typing import Any

import numpy as np

from dino_perception.perception.frame import Percept
from dino_perception.perception.pose import Pose
from dino_perception.perception.settings import Settings

TF = "/tf"
"""Where transforms go, whatever the node's name."""
UNKNOWN = 1e6
"""Variance of what is not known; robot_localization and Nav2 want a number."""


def odometry(types: Any, header: Any, percept: Percept, settings: Settings) -> Any:
    """The Odometry of the camera, or of `odometry.child_frame`; None where the percept has no pose with a covariance, or
    where the way from that frame to the camera is not known. The twist is that of the child frame, in its own axes."""
    if percept.pose is None or percept.pose.covariance is None:
        return None
    placed = _of_child(percept.pose, settings)
    if placed is None:
        return None
    names = _frames(percept, settings)
    twist, twist_covariance = placed.twist, placed.twist_covariance
    if twist is None:
        twist, twist_covariance = np.zeros(6), np.eye(6) * UNKNOWN
    return types.make(
        "nav_msgs/msg/Odometry",
        header=types.header(percept.frame.stamp_ns, names[0]),
        child_frame_id=names[1],
        pose=types.make(
            "geometry_msgs/msg/PoseWithCovariance",
            pose=types.make(
                "geometry_msgs/msg/Pose",
                position=_vector(types, "Point", placed.position),
                orientation=_quaternion(types, placed.rotation),
            ),
            covariance=np.ascontiguousarray(placed.covariance, np.float64).reshape(-1),
        ),
        twist=types.make(
            "geometry_msgs/msg/TwistWithCovariance",
            twist=types.make(
                "geometry_msgs/msg/Twist",
                linear=_vector(types, "Vector3", twist[:3]),
                angular=_vector(types, "Vector3", twist[3:]),
            ),
            covariance=np.ascontiguousarray(twist_covariance, np.float64).reshape(-1),
        ),
    )


def transform(types: Any, percept: Percept, settings: Settings) -> Any:
    """The tf2_msgs/TFMessage that says the same; None where `odometry` gives none, and while odometry is lost: TF knows no
    covariance, so that nobody could tell."""
    pose = percept.pose
    placed = None if pose is None or pose.covariance is None or pose.health == "lost" else _of_child(pose, settings)
    if placed is None:
        return None
    parent, child = _frames(percept, settings)
    one = types.make(
        "geometry_msgs/msg/TransformStamped",
        header=types.header(percept.frame.stamp_ns, parent),
        child_frame_id=child,
        transform=types.make(
            "geometry_msgs/msg/Transform",
            translation=_vector(types, "Vector3", placed.position),
            rotation=_quaternion(types, placed.rotation),
        ),
    )
    return types.make("tf2_msgs/msg/TFMessage", transforms=[one])


def _frames(percept: Percept, settings: Settings) -> tuple[str, str]:
    return settings.odometry.frame, settings.odometry.child_frame or percept.frame.frame_id


def _of_child(pose: Pose, settings: Settings) -> Pose | None:
    return pose.of_child() if settings.odometry.child_frame else pose


def _vector(types: Any, kind: str, xyz: np.ndarray) -> Any:
    x, y, z = map(float, xyz)
    return types.make(f"geometry_msgs/msg/{kind}", x=x, y=y, z=z)


def _quaternion(types: Any, rotation: np.ndarray) -> Any:
    x, y, z, w = map(float, quaternion(rotation))
    return types.make("geometry_msgs/msg/Quaternion", x=x, y=y, z=z, w=w)


def quaternion(rotation: np.ndarray) -> np.ndarray:
    """The unit quaternion (x, y, z, w), w >= 0, of a rotation (3, 3) (Shepperd 1978)."""
    trace = np.trace(rotation)
    squares = np.array([*(1 + 2 * np.diag(rotation) - trace), 1 + trace])  # four times x^2, y^2, z^2, w^2
    largest = int(np.argmax(squares))
    off = rotation - rotation.T
    both = rotation + rotation.T
    if largest == 3:
        q = np.array([off[2, 1], off[0, 2], off[1, 0], squares[3]])
    else:
        i, j, k = largest, (largest + 1) % 3, (largest + 2) % 3
        q = np.empty(4)
        q[[i, j, k, 3]] = squares[i], both[i, j], both[i, k], off[k, j]
    q = q / np.linalg.norm(q)
    return -q if q[3] < 0 else q
