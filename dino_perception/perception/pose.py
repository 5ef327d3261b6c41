"""Where a camera stands in the odom frame when it takes a picture."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

GOOD, WEAK, LOST = "good", "weak", "lost"
"""How far a pose can be believed: it was measured; it was measured from little, or its metres are guessed; it was not
measured and only carried on."""
HEALTHS = (GOOD, WEAK, LOST)
SOURCES = ("visual", "topic", "static")
"""Where a pose comes from: the camera's own odometry, an odometry topic of the robot, or a camera that does not move."""


@dataclass(frozen=True, eq=False)
class Pose:
    """The pose of a camera at the stamp of its frame, float64.

    `position` (3,) metres and `rotation` (3, 3) bring points from the camera's optical frame (x right, y down, z forward,
    REP 103) into odom: X_odom = rotation @ X_camera + position. odom (REP 105) is fixed to the world while `era` stays
    the same, moves smoothly and may drift: x points to where the camera looked first, y left, z up, and its origin lies on
    the ground below the first pose of the camera, or in the camera itself where no ground was seen. `era` grows each
    time odometry starts anew; poses of different eras have nothing to do with each other.

    `covariance` (6, 6) is that of nav_msgs/Odometry: of x, y, z (square metres) and of small rotations about the axes of
    odom (square radians), of the whole way since the era began; None where nothing is known of it. `twist` (6,) is the
    velocity of the camera in its own optical frame, metres and radians a second, with `twist_covariance` (6, 6); None
    where it was not measured. `reason` is one sentence where the health is not "good".
    """

    position: np.ndarray
    rotation: np.ndarray
    covariance: np.ndarray | None = None
    health: str = GOOD
    source: str = "visual"
    era: int = 0
    twist: np.ndarray | None = None
    twist_covariance: np.ndarray | None = None
    reason: str = ""
    mount: np.ndarray | None = None
    """(4, 4): the optical frame in `odometry.child_frame`; None where that is not set, or not known."""

    def __post_init__(self) -> None:
        if self.health not in HEALTHS or self.source not in SOURCES:
            raise ValueError(
                f"a pose of health '{self.health}' from '{self.source}'; accepted are {', '.join(HEALTHS)} from "
                f"{', '.join(SOURCES)}"
            )

    @property
    def matrix(self) -> np.ndarray:
        """(4, 4): odom from the camera's optical frame."""
        whole = np.eye(4)
        whole[:3, :3], whole[:3, 3] = self.rotation, self.position
        return whole

    def of_child(self) -> Pose | None:
        """The pose of the frame that the camera is mounted on, its twist in that frame's axes; None without a mount."""
        if self.mount is None:
            return None
        child = self.matrix @ np.linalg.inv(self.mount)
        move = np.eye(6)
        move[:3, 3:] = -cross_matrix(child[:3, 3] - self.position)  # a small turn moves what is off the camera
        covariance = None if self.covariance is None else move @ self.covariance @ move.T
        twist, twist_covariance = self.twist, self.twist_covariance
        if twist is not None:
            turned = self.mount[:3, :3]
            whole = np.zeros((6, 6))
            whole[:3, :3] = whole[3:, 3:] = turned
            whole[:3, 3:] = cross_matrix(self.mount[:3, 3]) @ turned
            twist, twist_covariance = whole @ twist, whole @ twist_covariance @ whole.T
        return dataclasses.replace(
            self, position=child[:3, 3], rotation=child[:3, :3], covariance=covariance, twist=twist,
            twist_covariance=twist_covariance, mount=np.eye(4),
        )  # fmt: skip

    def to_odom(self, points: np.ndarray) -> np.ndarray:
        """Points (..., 3) of the camera's optical frame in odom, in their own dtype."""
        return points @ self.rotation.T.astype(points.dtype) + self.position.astype(points.dtype)


def cross_matrix(v: np.ndarray) -> np.ndarray:
    """(3, 3): its product with w is v x w."""
    return np.array([[0.0, -v[2], v[1]], [v[2], 0.0, -v[0]], [-v[1], v[0], 0.0]])
