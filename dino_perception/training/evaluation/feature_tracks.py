"""The matches of classical features in the form that odometry takes them: against a key frame, with ids that last."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import cv2
import numpy as np

from dino_perception.perception.frame import Correspondences, Frame

OVERLAP = 0.5
"""A new key frame is begun when fewer than this share of the last one's first matches is found, as the tracker does it."""
MOST = 400


class FeatureTracks:
    """Features of one kind, each image's matched with the key frame's by Lowe's ratio test (0.75) and back again."""

    def __init__(self, detector: Any, norm: int):
        self._detector, self._matcher = detector, cv2.BFMatcher(norm)
        self._key: tuple[int, str, np.ndarray, np.ndarray, np.ndarray] | None = None
        self._first, self._next = 0, 1

    def match(self, frame: Frame) -> Correspondences:
        """The matches of the next frame, at most 400, the most alike first; none of the first one."""
        found, described = self._detector.detectAndCompute(cv2.cvtColor(frame.image, cv2.COLOR_RGB2GRAY), None)
        xy = np.array([point.pt for point in found], np.float64).reshape(-1, 2)
        ids = np.arange(self._next, self._next + len(xy), dtype=np.uint64)
        self._next += len(xy)
        if self._key is None:
            self._key = frame.stamp_ns, frame.frame_id, xy, described, ids
            return _matches(self._key, frame, np.zeros((0, 2), int), xy)
        pairs = self._pairs(self._key[3], described)[:MOST]
        self._first = self._first or len(pairs)
        result = _matches(self._key, frame, pairs, xy)
        if len(pairs) < OVERLAP * self._first:
            ids[pairs[:, 1]] = self._key[4][pairs[:, 0]]
            self._key, self._first = (frame.stamp_ns, frame.frame_id, xy, described, ids), 0
        return result

    def _pairs(self, a: np.ndarray | None, b: np.ndarray | None) -> np.ndarray:
        """(N, 2) int: places in both that match, each at most once."""
        if a is None or b is None or min(len(a), len(b)) < 2:
            return np.zeros((0, 2), int)
        good = [
            best
            for best, second in (p for p in self._matcher.knnMatch(a, b, k=2) if len(p) == 2)
            if best.distance < 0.75 * second.distance
        ]
        good.sort(key=lambda m: m.distance)
        taken: set[int] = set()
        once = [m for m in good if not (m.trainIdx in taken or taken.add(m.trainIdx))]
        return np.array([(m.queryIdx, m.trainIdx) for m in once], int).reshape(-1, 2)


def _matches(key: tuple, frame: Frame, pairs: np.ndarray, xy: np.ndarray) -> Correspondences:
    stamp_ns, frame_id, key_xy, _, ids = key
    height, width = frame.image.shape[:2]
    order = np.argsort(ids[pairs[:, 0]], kind="stable") if len(pairs) else np.zeros(0, int)
    pairs = pairs[order]
    x, y, reference_x, reference_y = (a.astype(np.float32) for a in (*xy[pairs[:, 1]].T, *key_xy[pairs[:, 0]].T))
    return Correspondences(
        stamp_ns, frame_id, width, height, ids[pairs[:, 0]], x, y, reference_x, reference_y,
        np.ones(len(pairs), np.float32),
    )  # fmt: skip


FEATURES: Mapping[str, Callable[[], FeatureTracks]] = {
    "sift": lambda: FeatureTracks(cv2.SIFT_create(1000), cv2.NORM_L2),
    "orb": lambda: FeatureTracks(cv2.ORB_create(2000), cv2.NORM_HAMMING),
}
"""The classical front ends by the name they have in reports."""
