"""Covariances of poses: of x, y, z and small rotations about the axes of the parent frame, in this order."""

from __future__ import annotations

import numpy as np

from dino_perception.perception.odometry.motion import Motion, turned_by
from dino_perception.perception.pose import cross_matrix

ALIKE = 4.0
"""By how much more the errors of a motion weigh than if each point erred for itself: neighbours are matched, and their depth
is guessed, by much the same pixels."""


def composed(reference: np.ndarray, covariance: np.ndarray, motion: Motion) -> np.ndarray:
    """(6, 6) of the pose of a view, from the reference's pose (4, 4) with its covariance and the motion between.

    To first order in P = P_ref M^-1 with M = (exp(w) R, t + s): the view turns by a_ref - Q w, Q its rotation in the parent,
    and moves by d_ref + v x (a_ref - Q w) - Q s, v = Q t.
    """
    turned = reference[:3, :3] @ motion.rotation.T
    arm = cross_matrix(turned @ motion.translation)
    of_reference = np.eye(6)
    of_reference[:3, 3:] = arm
    of_motion = np.zeros((6, 6))
    of_motion[:3, :3], of_motion[:3, 3:], of_motion[3:, :3] = -arm @ turned, -turned, -turned
    return of_reference @ covariance @ of_reference.T + of_motion @ (ALIKE * motion.covariance) @ of_motion.T


def velocity(
    before: np.ndarray, after: np.ndarray, covariance: np.ndarray, motion: Motion, scale_error: float, dt: float
) -> tuple[np.ndarray, np.ndarray]:
    """The twist (6,) in the camera's frame between two poses (4, 4) `dt` seconds apart, and its covariance (6, 6). Both poses
    were measured from one key frame, the one before with `covariance` (rotation, translation) and the one after by `motion`."""
    step = np.linalg.inv(before) @ after
    twist = np.concatenate([after[:3, :3].T @ before[:3, :3] @ step[:3, 3], turned_by(step[:3, :3])]) / dt
    both = ALIKE * (covariance + motion.covariance)[[3, 4, 5, 0, 1, 2]][:, [3, 4, 5, 0, 1, 2]] / dt**2
    both[:3, :3] += scale_error**2 * np.outer(twist[:3], twist[:3])
    return twist, both
