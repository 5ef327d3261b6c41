"""The numbers that perception is judged by, added up frame by frame.

Each score takes arrays as they come, keeps only sums, and gives its numbers at any time. NaN means "there is nothing to
say": a class that occurs nowhere, no pixel with a known depth, no match.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from dino_perception.perception.frame import IGNORE

PCK_PIXELS = (1, 2, 4, 8, 16)
"""Distances in pixels at which matches are counted as correct."""

DEPTH_EDGES = (0.0, 1.0, 2.0, 3.0, 5.0, 8.0, 12.0, 20.0, 30.0, 50.0, 80.0)
"""Metres between which depth errors are also given apart."""

SURE_EDGES = (0, 64, 96, 128, 160, 192, 208, 216, 224, 232, 240, 256)
"""Levels of the depth's confidence between which depth errors are also given apart."""


class SegmentationScore:
    """Confusion and calibration over any number of frames.

    `confusion` (K, K + 1) int64 counts pixels by true class (row) and predicted class (column); the last column holds
    pixels that were given none of the K classes. `levels` (256, 2) int64 counts pixels and hits by 8-bit confidence.
    """

    def __init__(self, classes: int, judged: Sequence[int] | None = None):
        """`judged` are the classes that the truth can hold at all, by default every one; the others have no IoU."""
        self.classes = classes
        self.judged = tuple(range(classes)) if judged is None else tuple(judged)
        self.confusion = np.zeros((classes, classes + 1), np.int64)
        self.levels = np.zeros((256, 2), np.int64)

    def add(self, truth: np.ndarray, mask: np.ndarray, confidence: np.ndarray | None = None) -> SegmentationScore:
        """Count a frame: `truth` and `mask` (H, W) uint8 class ids, `confidence` (H, W) uint8, 255 = certain.

        Pixels whose truth is IGNORE (255) do not count. Returns the score of this frame alone.
        """
        if truth.shape != mask.shape:
            raise ValueError(f"the truth is {truth.shape} and the mask {mask.shape}; both must have one size")
        known = truth != IGNORE
        truth, mask = truth[known].astype(np.int64), np.minimum(mask[known], self.classes).astype(np.int64)
        if truth.size and truth.max() >= self.classes:
            raise ValueError(f"the truth holds class {truth.max()}; there are {self.classes} classes")
        one = SegmentationScore(self.classes, self.judged)
        one.confusion += np.bincount(truth * (self.classes + 1) + mask, minlength=one.confusion.size).reshape(
            one.confusion.shape
        )
        if confidence is not None:
            level = confidence[known]
            one.levels[:, 0] = np.bincount(level, minlength=256)
            one.levels[:, 1] = np.bincount(level[truth == mask], minlength=256)
        self.confusion += one.confusion
        self.levels += one.levels
        return one

    @property
    def pixels(self) -> int:
        """Pixels with a known class."""
        return int(self.confusion.sum())

    @property
    def iou(self) -> np.ndarray:
        """Intersection over union a class, (K,) float64: hits / (true + predicted - hits), PASCAL VOC's measure.

        NaN for a class that was neither there nor predicted, or is not judged.
        """
        hits = np.diag(self.confusion).astype(np.float64)
        union = self.confusion.sum(1) + self.confusion[:, : self.classes].sum(0) - hits
        judged = np.isin(np.arange(self.classes), self.judged)
        return np.divide(hits, union, out=np.full(self.classes, np.nan), where=(union > 0) & judged)

    @property
    def miou(self) -> float:
        """Mean of `iou` over the classes that have one."""
        iou = self.iou
        return float(np.nanmean(iou)) if np.isfinite(iou).any() else math.nan

    @property
    def accuracy(self) -> float:
        """Share of pixels with the right class."""
        return float(np.trace(self.confusion[:, : self.classes]) / self.pixels) if self.pixels else math.nan

    def reliability(self, bins: int = 15) -> np.ndarray:
        """(bins, 3) float64 for each bin of confidence: its share of the pixels, mean confidence and accuracy (NaN
        when the bin is empty). Bin i holds confidences from i / bins up to, but not including, (i + 1) / bins; the last
        one includes 1."""
        level = np.arange(256)
        index = np.minimum(level * bins // 255, bins - 1)
        count = np.bincount(index, self.levels[:, 0], bins)
        share = count / max(count.sum(), 1)
        with np.errstate(invalid="ignore"):
            confidence = np.bincount(index, self.levels[:, 0] * (level / 255), bins) / count
            accuracy = np.bincount(index, self.levels[:, 1], bins) / count
        return np.stack([share, confidence, accuracy], axis=1)

    def ece(self, bins: int = 15) -> float:
        """Expected calibration error: the mean gap between confidence and accuracy over bins of confidence, weighted
        by their pixels (Guo et al. 2017, eq. 3)."""
        if not self.levels[:, 0].any():
            return math.nan
        share, confidence, accuracy = self.reliability(bins).T
        return float(np.nansum(share * np.abs(confidence - accuracy)))


class DepthScore:
    """Depth errors, averaged over frames as the field does (Eigen et al. 2014), from `nearest` to `farthest` metres.

    `abs_rel` is mean |d - t| / t, `rmse` the root of the mean of (d - t)^2 in metres, `delta[k]` the share of pixels
    with max(d / t, t / d) < 1.25^(k+1). A pixel whose depth is not given (NaN) is a miss for delta, lowers `coverage`,
    and is left out of the other two. `aligned` holds the same numbers after `align` (abs_rel, rmse, delta 1..3).
    """

    NAMES = ("abs_rel", "rmse", "delta1", "delta2", "delta3")

    def __init__(self, nearest: float = 0.1, farthest: float = 30.0):
        self.nearest, self.farthest = nearest, farthest
        self.rows: list[np.ndarray] = []
        self.aligned_rows: list[np.ndarray] = []
        self.pixels = self.given = 0
        self.by_range = np.zeros((len(DEPTH_EDGES) - 1, 2))
        """Pixels and summed |d - t| / t between DEPTH_EDGES."""
        self.by_confidence = np.zeros((len(SURE_EDGES) - 1, 4))
        """Pixels, summed |d - t| / t, pixels with max(d / t, t / d) < 1.25, and summed |d - t| / t after the frame's d is
        divided by its median d / t, between SURE_EDGES. What a head is unsure of is not the scale of the whole frame."""

    def add(self, truth: np.ndarray, metres: np.ndarray, confidence: np.ndarray | None = None) -> np.ndarray | None:
        """Count a frame: (H, W) float metres, NaN where unknown, and (H, W) uint8 confidence where the head says. Returns
        its five numbers in the order of NAMES, None when it has no pixel with a true depth in range."""
        if truth.shape != metres.shape:
            raise ValueError(f"the truth is {truth.shape} and the depth {metres.shape}; both must have one size")
        with np.errstate(invalid="ignore"):
            known = (truth >= self.nearest) & (truth <= self.farthest)
        t, d = truth[known].astype(np.float64), metres[known].astype(np.float64)
        if not t.size:
            return None
        given = np.isfinite(d) & (d > 0)
        self.pixels += t.size
        self.given += int(given.sum())
        if not given.any():
            row = np.array([math.nan, math.nan, 0.0, 0.0, 0.0])
        else:
            error = np.abs(d[given] - t[given]) / t[given]
            index = np.digitize(t[given], DEPTH_EDGES) - 1
            inside = index < len(self.by_range)
            self.by_range[:, 0] += np.bincount(index[inside], minlength=len(self.by_range))
            self.by_range[:, 1] += np.bincount(index[inside], error[inside], len(self.by_range))
            if confidence is not None:
                ratio = d[given] / t[given]
                columns = error, np.maximum(ratio, 1 / ratio) < 1.25, np.abs(ratio / np.median(ratio) - 1)
                self._add_by_confidence(confidence[known][given], columns)
            row = _depth_numbers(t[given], d[given], t.size)
            self.aligned_rows.append(_depth_numbers(t[given], align(d[given], t[given], self.farthest), t.size))
        self.rows.append(row)
        return row

    def _add_by_confidence(self, levels: np.ndarray, columns: Sequence[np.ndarray]) -> None:
        index = np.digitize(levels, SURE_EDGES) - 1
        for column, weights in enumerate((None, *columns)):
            self.by_confidence[:, column] += np.bincount(index, weights, len(self.by_confidence))

    def numbers(self) -> dict[str, float]:
        """The five numbers, their mean over frames."""
        return dict(zip(self.NAMES, _means(self.rows)))

    def aligned(self) -> dict[str, float]:
        """The five numbers after the best scale and shift of each frame."""
        return dict(zip(self.NAMES, _means(self.aligned_rows)))

    @property
    def coverage(self) -> float:
        """Share of the pixels with a true depth for which one was given."""
        return self.given / self.pixels if self.pixels else math.nan


class MatchScore:
    """End-point errors of matches between two frames, over any number of pairs."""

    def __init__(self):
        self.errors: list[np.ndarray] = []
        self.given = 0

    def add(self, errors: np.ndarray, given: int | None = None) -> None:
        """One pair: `errors` (N,) pixels, inf for a match that cannot be right; `given` counts the matches including
        those whose truth is unknown."""
        self.errors.append(np.asarray(errors, np.float64))
        self.given += len(errors) if given is None else given

    def pck(self, pixels: Sequence[float] = PCK_PIXELS) -> list[float]:
        """Share of the matches that are at most so many pixels off (percentage of correct keypoints)."""
        errors = self._all()
        return [float((errors <= p).mean()) if errors.size else math.nan for p in pixels]

    def numbers(self) -> dict[str, float]:
        """pck1 .. pck16, `median_px`, and a pair's mean number of `matches`."""
        errors = self._all()
        return {
            **{f"pck{p}": value for p, value in zip(PCK_PIXELS, self.pck())},
            "median_px": float(np.median(errors)) if errors.size else math.nan,
            "matches": self.given / len(self.errors) if self.errors else math.nan,
        }

    def _all(self) -> np.ndarray:
        return np.concatenate(self.errors) if self.errors else np.zeros(0)


def align(metres: np.ndarray, truth: np.ndarray, farthest: float) -> np.ndarray:
    """`metres` (N,) after the scale and shift of inverse depth that fit `truth` best in least squares (Ranftl et al.
    2020, sec. 5), never beyond `farthest`."""
    inverse = 1 / metres
    columns = np.stack([inverse, np.ones_like(inverse)], axis=1)
    scale, shift = np.linalg.lstsq(columns, 1 / truth, rcond=None)[0]
    return 1 / np.maximum(scale * inverse + shift, 1 / farthest)


def _depth_numbers(truth: np.ndarray, metres: np.ndarray, pixels: int) -> np.ndarray:
    ratio = np.maximum(metres / truth, truth / metres)
    deltas = [(ratio < 1.25**k).sum() / pixels for k in (1, 2, 3)]
    return np.array([np.mean(np.abs(metres - truth) / truth), np.sqrt(np.mean((metres - truth) ** 2)), *deltas])


def _means(rows: list[np.ndarray]) -> list[float]:
    if not rows:
        return [math.nan] * 5
    table = np.stack(rows)
    return [float(np.nanmean(column)) if np.isfinite(column).any() else math.nan for column in table.T]
