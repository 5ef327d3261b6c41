"""The plane of the ground before a camera, from depth and classes: how high the camera stands and how it is tilted.

Points X of a plane (optical frame, metres) satisfy a . X = 1, with |a| = 1 / height and a pointing at the ground. That
is linear in a, and a . X - 1 is the relative error of the point's distance, which is how estimated depth errs: a far
point does not outweigh the near ones. Three points give a hypothesis (RANSAC, Fischler and Bolles 1981); the best one
is refined by least squares with Tukey's weights.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from dino_perception.perception import geometry
from dino_perception.perception.frame import Percept

GROUND = (
    "soil", "bedrock", "sand", "gravel", "dirt", "mud", "grass", "road", "path", "sidewalk", "asphalt", "concrete",
    "earth", "ground", "floor", "snow", "regolith", "terrain",
)  # fmt: skip
"""Names of classes that one drives on, of this package's heads and of those that other datasets bring."""
NEAREST, FARTHEST = 0.3, 8.0
"""Metres along the optical axis within which ground is taken: further on it need not be the ground one stands on."""
MOST = 2000
"""Points that are looked at; more say the same."""
LEAST = 200
"""Points below which there is no answer."""
HYPOTHESES = 128
AGREES = 0.06
"""Relative error up to which a point counts as one of the plane."""
TUKEY = 4.685
"""Weights fall to zero at this many standard deviations (95 % efficient on normal errors)."""


@dataclass(frozen=True)
class GroundPlane:
    """`normal` (3,) is a unit vector in the optical frame (x right, y down, z forward) that points up, away from the
    ground; `height` is the camera's distance from the plane in metres; `agreeing` is the share of the ground's points
    whose distance is within 6 % of the plane's."""

    normal: np.ndarray
    height: float
    agreeing: float

    def over(self, points: np.ndarray) -> np.ndarray:
        """Height in metres of (..., 3) points of the optical frame over the plane."""
        return points @ self.normal.astype(points.dtype) + self.height


def ground_plane(percept: Percept, classes: Collection[str] = GROUND) -> GroundPlane | None:
    """The plane of a percept's ground; `classes` are the names of those that are ground. None when the percept has no
    depth, classes or camera, or too little ground is seen, or what is seen is no plane."""
    if percept.depth is None or percept.segmentation is None or percept.output_camera is None:
        return None
    known = [label.id for label in percept.segmentation.labels if label.name in classes]
    points = geometry.points(percept.depth.metres, geometry.rays(percept.output_camera))
    return fit(points, np.isin(percept.segmentation.mask, known))


def fit(
    points: np.ndarray,
    ground: np.ndarray,
    *,
    seed: int = 0,
    most: int = MOST,
    hypotheses: int = HYPOTHESES,
    least: float = 0.5,
    fewest: int = LEAST,
    rounds: int = 8,
) -> GroundPlane | None:
    """The plane of (h, w, 3) points in the optical frame, metres, NaN where unknown, of those that are `ground` (h, w).

    At most `most` points are looked at, and so many `hypotheses`. None when fewer than `fewest` of them are near, or when
    less than the share `least` of them agree on a plane below the camera. The same input gives the same plane.
    """
    with np.errstate(invalid="ignore"):
        near = (points[..., 2] >= NEAREST) & (points[..., 2] <= FARTHEST) & ground & np.isfinite(points).all(-1)
    chosen = points[near].astype(np.float64)
    if len(chosen) < fewest:
        return None
    generator = np.random.default_rng(seed)
    if len(chosen) > most:
        chosen = chosen[generator.choice(len(chosen), most, replace=False)]
    plane = _refined(_best(chosen, generator, hypotheses), chosen, rounds)
    if plane is None:
        return None
    agreeing = float((np.abs(chosen @ plane - 1) < AGREES).mean())
    height = 1 / np.linalg.norm(plane)
    normal = -plane * height
    # Up is against the image's y, however far (78 degrees) the camera looks down. A wall, or a plane overhead, is not.
    return GroundPlane(normal, float(height), agreeing) if agreeing >= least and normal[1] < -0.2 else None


def _best(points: np.ndarray, generator: np.random.Generator, hypotheses: int) -> np.ndarray:
    """The hypothesis that most points agree with."""
    triples = points[generator.integers(0, len(points), (hypotheses, 3))]
    sound = np.abs(np.linalg.det(triples)) > 1e-6
    planes = np.linalg.solve(triples[sound], np.ones((int(sound.sum()), 3, 1)))[..., 0]
    if not len(planes):
        return np.linalg.lstsq(points, np.ones(len(points)), rcond=None)[0]
    return planes[(np.abs(points @ planes.T - 1) < AGREES).sum(0).argmax()]


def _refined(plane: np.ndarray, points: np.ndarray, rounds: int) -> np.ndarray | None:
    for _ in range(rounds):
        error = points @ plane - 1
        scale = max(1.4826 * float(np.median(np.abs(error))), 1e-4)
        root = np.clip(1 - (error / (TUKEY * scale)) ** 2, 0, None)  # the root of Tukey's biweight
        weighed = points * root[:, None]
        if np.linalg.matrix_rank(weighed) < 3:
            return None
        plane = np.linalg.lstsq(weighed, root, rcond=None)[0]
    return plane
