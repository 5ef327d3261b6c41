"""What can be had without a network: the numbers that a head's numbers are read beside."""

from __future__ import annotations

import cv2
import numpy as np
import torch

from dino_perception.perception.frame import IGNORE, CameraModel
from dino_perception.perception.geometry import rays, scale_camera


class ColourNeighbours:
    """Classes by colour alone: the majority among the `neighbours` labelled pixels nearest in CIELAB.

    Fitted on up to `samples` pixels drawn evenly from the frames; predictions come from a table over colours of 5 bits
    a channel. A generous baseline: it is fitted on frames of the same drive that it is judged on.
    """

    def __init__(self, classes: int, *, neighbours: int = 9, samples: int = 6000, seed: int = 0):
        self.classes, self.neighbours, self.samples = classes, neighbours, samples
        self.random = np.random.default_rng(seed)
        self.colours: list[np.ndarray] = []
        self.ids: list[np.ndarray] = []
        self._table: np.ndarray | None = None

    def add(self, image: np.ndarray, truth: np.ndarray, pixels: int) -> None:
        """Remember `pixels` labelled pixels of a frame: `image` (H, W, 3) uint8, `truth` (h, w) uint8 that shows the
        same."""
        v, u = np.nonzero(truth != IGNORE)
        if not v.size:
            return
        chosen = self.random.choice(v.size, min(pixels, v.size), replace=False)
        v, u = v[chosen], u[chosen]
        at_v, at_u = v * image.shape[0] // truth.shape[0], u * image.shape[1] // truth.shape[1]
        self.colours.append(image[at_v, at_u])
        self.ids.append(truth[v, u])
        self._table = None

    def predict(self, image: np.ndarray) -> np.ndarray:
        """Class ids (H, W) uint8 of an image (H, W, 3) uint8; IGNORE everywhere when nothing was remembered."""
        if not self.ids:
            return np.full(image.shape[:2], IGNORE, np.uint8)
        if self._table is None:
            self._table = self._build()
        c = (image >> 3).astype(np.int32)
        return self._table[c[..., 0] << 10 | c[..., 1] << 5 | c[..., 2]]

    def _build(self) -> np.ndarray:
        known, ids = np.concatenate(self.colours), torch.from_numpy(np.concatenate(self.ids).astype(np.int64))
        cells = np.stack(np.meshgrid(*[np.arange(32)] * 3, indexing="ij"), -1).reshape(-1, 3).astype(np.uint8) * 8 + 4
        known_lab, cells_lab = (torch.from_numpy(_lab(c)) for c in (known, cells))
        k = min(self.neighbours, len(ids))
        table = []
        for part in cells_lab.split(2048):
            nearest = torch.cdist(part, known_lab).topk(k, largest=False).indices
            votes = torch.zeros(len(part), self.classes).scatter_add_(1, ids[nearest], torch.ones(len(part), k))
            table.append(votes.argmax(1))
        return torch.cat(table).to(torch.uint8).numpy()


class FlatGround:
    """Depth as if the ground were one plane.

    Where camera model and attitude are known, the plane is level and the camera's height above it is fitted: what a
    rover with an inertial sensor could do. Else the plane is fixed to the camera, 1 / z = a u + b v + c in pixels,
    which is exact for a plane and a camera that never tilts. Both fits make AbsRel (or, for the second, its like in
    log depth) as small as it gets on frames of the same drive, which favours the baseline; what the plane does not
    reach is `farthest` metres away.
    """

    def __init__(self, farthest: float = 30.0):
        self.farthest = farthest
        self._heights: list[np.ndarray] = []
        self._pixels: list[np.ndarray] = []
        self._fitted: tuple[float | None, np.ndarray | None] | None = None

    def add(self, truth: np.ndarray, down: np.ndarray | None = None) -> None:
        """Remember a frame: true depth (h, w) metres, NaN where unknown, and what `descent` gives for it."""
        self._fitted = None
        with np.errstate(invalid="ignore"):
            v, u = np.nonzero((truth > 0) & (truth < self.farthest))
        z = truth[v, u].astype(np.float64)
        self._pixels.append(np.column_stack([self._rows(truth.shape, u, v), z]))
        if down is not None:
            height = z * down[v, u]
            self._heights.append(height[height > 0])

    def predict(self, shape: tuple[int, int], down: np.ndarray | None = None) -> np.ndarray:
        """Depth (h, w) float64 metres; NaN when nothing was remembered."""
        height, plane = self._fit()
        if down is not None and height is not None:
            return height / np.maximum(np.nan_to_num(down), height / self.farthest)
        if plane is None:
            return np.full(shape, np.nan)
        v, u = np.mgrid[: shape[0], : shape[1]]
        inverse = (self._rows(shape, u.ravel(), v.ravel()) @ plane).reshape(shape)
        return 1 / np.maximum(inverse, 1 / self.farthest)

    def _fit(self) -> tuple[float | None, np.ndarray | None]:
        if self._fitted is None:
            heights = np.concatenate(self._heights) if self._heights else np.zeros(0)
            pixels = np.concatenate(self._pixels) if self._pixels else np.zeros((0, 4))
            self._fitted = (
                weighted_median(heights, 1 / heights) if heights.size else None,
                self._plane(pixels) if len(pixels) else None,
            )
        return self._fitted

    def _plane(self, pixels: np.ndarray) -> np.ndarray:
        """Least absolute differences of log depth by reweighted least squares."""
        rows, z = pixels[:, :3], pixels[:, 3]
        weights = z
        for _ in range(20):
            plane = np.linalg.lstsq(rows * weights[:, None], weights / z, rcond=None)[0]
            inverse = np.maximum(rows @ plane, 1 / self.farthest)
            error = np.maximum(np.abs(np.log(inverse * z)), 1e-3)
            weights = np.sqrt(error) / np.maximum(np.abs(inverse - 1 / z), 1e-4)
        return plane

    @staticmethod
    def _rows(shape: tuple[int, int], u: np.ndarray, v: np.ndarray) -> np.ndarray:
        return np.stack([(u + 0.5) / shape[1], (v + 0.5) / shape[0], np.ones(len(u))], axis=1)


def descent(camera: CameraModel | None, pose: np.ndarray | None, shape: tuple[int, int]) -> np.ndarray | None:
    """(h, w) metres by which each pixel's ray falls for a metre of depth, for an array that shows what the camera's
    image shows; negative above the horizon. The world's z points up (REP 103). None without camera or pose."""
    if camera is None or pose is None:
        return None
    scaled = scale_camera(camera, (shape[1] / camera.width, shape[0] / camera.height), shape[1], shape[0])
    return -(rays(scaled).astype(np.float64) @ pose[2, :3])


def weighted_median(values: np.ndarray, weights: np.ndarray) -> float:
    """The value v that makes sum(weights * |values - v|) smallest."""
    order = np.argsort(values)
    total = np.cumsum(weights[order])
    return float(values[order][np.searchsorted(total, total[-1] / 2)])


def orb_matches(
    reference: np.ndarray, image: np.ndarray, *, features: int = 2000, ratio: float = 0.75
) -> tuple[np.ndarray, np.ndarray]:
    """Both ends (N, 2) float64 of ORB matches (Rublee et al. 2011) that pass Lowe's ratio test.

    Images (H, W, 3) uint8.
    """
    orb = cv2.ORB_create(features)
    (points, described), (other, other_described) = (orb.detectAndCompute(_grey(i), None) for i in (reference, image))
    if described is None or other_described is None or len(other_described) < 2:
        return np.zeros((0, 2)), np.zeros((0, 2))
    pairs = cv2.BFMatcher(cv2.NORM_HAMMING).knnMatch(described, other_described, k=2)
    good = [best for best, second in (p for p in pairs if len(p) == 2) if best.distance < ratio * second.distance]
    return (
        np.array([points[m.queryIdx].pt for m in good], np.float64).reshape(-1, 2),
        np.array([other[m.trainIdx].pt for m in good], np.float64).reshape(-1, 2),
    )


def lucas_kanade_matches(
    reference: np.ndarray, image: np.ndarray, *, corners: int = 600, consistency: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """Both ends (N, 2) float64 of corners followed by pyramidal Lucas-Kanade (Bouguet 2001) that come back to within
    `consistency` pixels of where they started. Images (H, W, 3) uint8."""
    first, second = _grey(reference), _grey(image)
    start = cv2.goodFeaturesToTrack(first, corners, 0.01, 7)
    if start is None:
        return np.zeros((0, 2)), np.zeros((0, 2))
    options = dict(winSize=(21, 21), maxLevel=4)
    end, found, _ = cv2.calcOpticalFlowPyrLK(first, second, start, None, **options)
    back, found_back, _ = cv2.calcOpticalFlowPyrLK(second, first, end, None, **options)
    kept = (found & found_back).ravel().astype(bool) & (
        np.linalg.norm((back - start).reshape(-1, 2), axis=1) <= consistency
    )
    return start.reshape(-1, 2)[kept].astype(np.float64), end.reshape(-1, 2)[kept].astype(np.float64)


MATCHERS = {"orb": orb_matches, "lk": lucas_kanade_matches}
"""The classical matchers by the name they have in reports."""


def _grey(image: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)


def _lab(colours: np.ndarray) -> np.ndarray:
    """CIELAB (N, 3) float32 of colours (N, 3) uint8, where distances are about as people see them."""
    return cv2.cvtColor(colours[None].astype(np.float32) / 255, cv2.COLOR_RGB2LAB)[0]
