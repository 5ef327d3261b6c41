"""The motion that most matches agree on: from a guess, or among many wrong ones by RANSAC, on points with depth or on the
two views alone."""

from __future__ import annotations

import cv2
import numpy as np

from dino_perception.perception.odometry.motion import FEWEST, Motion, Rays, refine

LOOSE = 4.0
"""A point agrees with a hypothesis at this many times the error of a match, or at a tenth of the median way in the image,
whichever is more: guessed depth puts it off by so much."""
KNOWN = 0.5
"""Relative error up to which a depth is worth a hypothesis."""
LEAST_KNOWN = 20
"""Points of known depth that are asked before the others."""
SHORTEST = 0.02
"""Metres that a camera which moved is taken to have moved where nothing says how far."""
LEAST_PARALLAX = 0.01
"""Radians of median motion in the image below which two views alone say nothing of the direction of motion."""


WHOLE, HALF = 0.75, 0.5
"""Shares of points that agree: from the first on a motion is believed as it is; below the second everything is tried."""


def best_motion(
    rays: Rays, seen: np.ndarray, sigma: float, rotation: np.ndarray, translation: np.ndarray
) -> Motion | None:
    """The motion of the most agreement. A guess is tried first, and is nearly always enough; then PnP where depth is known,
    then two views, whose length is that of the guess where no depth is known."""
    known = _known(rays)
    best = None
    if known.sum() >= LEAST_KNOWN:
        best = refine(rays[known], seen[known], sigma, rotation, translation)
        if (
            best is not None and not known.all()
        ):  # a point that may be anywhere leads astray until the motion is about right
            best = refine(rays, seen, sigma, best.rotation, best.translation)
        if best is None or best.share < WHOLE:
            best = _better(best, by_points(rays, seen, sigma))
    if best is None or best.share < HALF:
        length = max(float(np.linalg.norm(translation)), SHORTEST)
        best = _better(best, by_two_views(rays, seen, sigma, length))
    if best is None or best.share < HALF:
        best = _better(best, refine(rays, seen, sigma, rotation, translation))
    return best


def _better(a: Motion | None, b: Motion | None) -> Motion | None:
    return b if a is None or (b is not None and b.inliers.sum() > a.inliers.sum()) else a


def _known(rays: Rays) -> np.ndarray:
    return np.sqrt(rays.variance) < KNOWN * rays.inverse


def by_points(rays: Rays, seen: np.ndarray, sigma: float) -> Motion | None:
    """PnP on the points whose depth is known (P3P in RANSAC), refined on all of them."""
    known = np.flatnonzero(_known(rays))
    if len(known) < FEWEST:
        return None
    way = float(np.median(np.linalg.norm(seen - rays.xy, axis=1)))
    points = (rays.directions[known] / rays.inverse[known, None]).astype(np.float64)
    found, turned, moved, _ = cv2.solvePnPRansac(
        points, seen[known].astype(np.float64), np.eye(3), None, iterationsCount=100, confidence=0.99,
        reprojectionError=float(max(LOOSE * sigma, 0.1 * way)), flags=cv2.SOLVEPNP_AP3P,
    )  # fmt: skip
    if not found or not np.isfinite(turned).all() or not np.isfinite(moved).all():
        return None
    return refine(rays, seen, sigma, cv2.Rodrigues(turned)[0], moved.ravel())


def by_two_views(rays: Rays, seen: np.ndarray, sigma: float, length: float) -> Motion | None:
    """The essential matrix of the two views (five points in RANSAC), its translation `length` metres long where no depth
    is known, else as long as the depths say, refined on all points. None where the camera only turned, or hardly moved."""
    if len(rays) < FEWEST or np.median(np.linalg.norm(seen - rays.xy, axis=1)) < LEAST_PARALLAX:
        return None
    essential, mask = cv2.findEssentialMat(
        rays.xy, seen, np.eye(3), method=cv2.RANSAC, prob=0.99, threshold=float(2 * sigma), maxIters=100
    )
    if essential is None or essential.shape != (3, 3) or mask is None or mask.sum() < FEWEST:
        return None
    count, rotation, moved, mask = cv2.recoverPose(essential, rays.xy, seen, np.eye(3), mask=mask.copy())
    if count < FEWEST:
        return None
    moved = moved.ravel()
    inside = mask.ravel() > 0
    metres = _length(rays[inside], seen[inside], rotation, moved) or length
    return refine(rays, seen, sigma, rotation, moved * metres)


def _length(rays: Rays, seen: np.ndarray, rotation: np.ndarray, moved: np.ndarray) -> float | None:
    """Metres of a unit translation: the median over the points of their known depth over that by triangulation."""
    turned = rays.directions @ rotation.T
    views = np.column_stack([seen, np.ones(len(seen))])
    # turned / q + moved s = views z: crossed with the view, turned x view = -q s (moved x view).
    left, right = np.cross(turned, views), np.cross(moved, views)
    scaled = -(left * right).sum(1) / np.maximum((right**2).sum(1), 1e-12)  # q s
    known = _known(rays) & (scaled > 0)
    if known.sum() < FEWEST:
        return None
    return float(np.median(scaled[known] / rays.inverse[known]))
