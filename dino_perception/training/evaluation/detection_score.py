"""How well boxes are found: average precision at an overlap of a half, added up frame by frame."""

from __future__ import annotations

import math

import numpy as np
import torch

from dino_perception.models.heads.boxes import iou

HALF = 0.5
RECALLS = np.linspace(0, 1, 101)
"""At which precision is averaged, as COCO does."""
MOST = 100
"""Boxes of a class and frame that count, the best first; COCO's number, too."""


class DetectionScore:
    """AP50 of each of K classes (Everingham et al. 2010, with COCO's 101 points): a box is right when it overlaps an
    object of its class by a half (IoU) that no better box has taken."""

    def __init__(self, classes: int):
        self.classes = classes
        self.objects = np.zeros(classes, np.int64)
        self._scores: list[list[float]] = [[] for _ in range(classes)]
        self._right: list[list[bool]] = [[] for _ in range(classes)]

    def add(self, truth: np.ndarray, boxes: np.ndarray) -> None:
        """Count a frame: `truth` (M, 5 or more) with the class in column 4, -1 for none; `boxes` (N, 6) with score and
        class, score 0 for none."""
        for number in range(self.classes):
            true = truth[truth[:, 4] == number]
            own = boxes[(boxes[:, 5] == number) & (boxes[:, 4] > 0)]
            own = own[np.argsort(-own[:, 4], kind="stable")][:MOST]
            self.objects[number] += len(true)
            self._scores[number] += own[:, 4].tolist()
            self._right[number] += (matched(own, true) >= 0).tolist()

    @property
    def ap50(self) -> np.ndarray:
        """(K,), NaN for a class without objects."""
        return np.array([self._average(number) for number in range(self.classes)])

    @property
    def mean(self) -> float:
        found = self.ap50
        return float(np.nanmean(found)) if np.isfinite(found).any() else math.nan

    def _average(self, number: int) -> float:
        if not self.objects[number]:
            return math.nan
        order = np.argsort(-np.array(self._scores[number]), kind="stable")
        right = np.array(self._right[number], bool)[order]
        hits = np.cumsum(right)
        recall = hits / self.objects[number]
        precision = hits / np.arange(1, len(hits) + 1)
        precision = np.maximum.accumulate(precision[::-1])[::-1]
        place = np.searchsorted(recall, RECALLS, side="left")
        return float(np.append(precision, 0.0)[np.minimum(place, len(precision))].mean())


def matched(boxes: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """For each of boxes (N, 4 or more), best first, the row of truth (M, 4 or more) that it finds: the one it overlaps
    most among those not yet found, if by a half; (N,) int64, -1 for none."""
    found = np.full(len(boxes), -1)
    if not len(boxes) or not len(truth):
        return found
    overlap = iou(torch.from_numpy(boxes[:, :4].astype(np.float64)), torch.from_numpy(truth[:, :4].astype(np.float64)))
    overlap = overlap.numpy()
    for row in range(len(boxes)):
        best = int(overlap[row].argmax())
        if overlap[row, best] >= HALF:
            found[row] = best
            overlap[:, best] = -1
    return found
