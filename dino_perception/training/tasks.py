"""What training knows of each kind of head: its truth, its loss and its score. A kind that can be trained is one class
here."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dino_perception.models.heads import Head
from dino_perception.perception.frame import IGNORE
from dino_perception.training.evaluation.metrics import DepthScore, SegmentationScore
from dino_perception.training.losses import class_weights, depth_loss, overlap_loss, segmentation_loss


class TaskError(ValueError):
    """There is no such task; the message says which there are."""


class Task:
    """`truth_name` is what the data must have, `measured` the number that decides, which is `better` by its sign:
    1 where more is better, -1 where less is. `empty` fills the truth where there is no image, in the truth's dtype."""

    kind = ""
    truth_name = ""
    truths_name = ""
    measured = ""
    better = 1.0
    empty: Any = None
    classed = False
    """Whether the classes of the data decide what the head tells."""

    def reader(self, sample: Any) -> Callable[[], np.ndarray] | None:
        """What reads a sample's truth; None where it has none."""
        raise NotImplementedError

    def learnt(self, sample: Any, truth: np.ndarray) -> np.ndarray:
        """A sample's truth as a head is to learn it."""
        return truth

    def options(self, labels: Sequence[Any], depth_range: Sequence[float] | None) -> dict[str, Any]:
        """What `create_head` is told: the data's classes, or the range that the user names."""
        return {}

    def unknown(self, head: Head, truths: Sequence[Callable[[], np.ndarray]]) -> str:
        """Why no pixel of any truth says anything, "" when one does: a head that learnt from such truth would have
        learnt nothing, yet would be saved as trained."""
        return ""

    def begin(self, head: Head, truths: Sequence[Callable[[], np.ndarray]]) -> None:
        """Give an untrained head a start from some of the truth; each of `truths` reads one array as it is kept."""

    def weights(self, head: Head, truths: Sequence[Callable[[], np.ndarray]], recipe: Any) -> Tensor | None:
        """What `loss` weighs its terms with, from all of the truth."""
        return None

    def loss(self, head: Head, raw: Tensor, truth: Tensor, weights: Tensor | None, recipe: Any) -> Tensor:
        raise NotImplementedError

    def score(self, head: Head) -> Any:
        """A new score of metrics.py."""
        raise NotImplementedError

    def add(self, score: Any, truth: np.ndarray, arrays: Mapping[str, np.ndarray]) -> None:
        """Count one look: its truth and the head's arrays by name."""
        raise NotImplementedError

    def number(self, score: Any) -> float:
        """The one that decides."""
        raise NotImplementedError

    def report(self, head: Head, score: Any) -> dict[str, Any]:
        """All numbers, rounded, as plain data."""
        raise NotImplementedError


class SegmentationTask(Task):
    kind, truth_name, truths_name, measured = "segmentation", "mask", "masks", "mIoU"
    empty = np.uint8(IGNORE)
    classed = True

    def reader(self, sample):
        return sample.read_classes

    def options(self, labels, depth_range):
        return {"labels": labels}

    def unknown(self, head, truths):
        if any((read() != IGNORE).any() for read in truths):
            return ""
        return f"are unlabelled ({IGNORE}) everywhere; check 'ignore' and 'values' of labels.yaml"

    def weights(self, head, truths, recipe):
        if recipe.class_weights == "none":
            return None
        counts = np.zeros(256, np.int64)
        for read in truths:
            counts += np.bincount(read().ravel(), minlength=256)
        return class_weights(torch.from_numpy(counts[: len(head.spec.labels)]).double(), recipe.class_weights)

    def loss(self, head, raw, truth, weights, recipe):
        loss = segmentation_loss(raw, truth, weights=weights, smoothing=recipe.label_smoothing)
        return loss + recipe.overlap * overlap_loss(raw, truth) if recipe.overlap else loss

    def score(self, head):
        return SegmentationScore(len(head.spec.labels))

    def add(self, score, truth, arrays):
        score.add(truth, arrays["mask"], arrays["confidence"])

    def number(self, score):
        return score.miou

    def report(self, head, score):
        return {
            "miou": round(score.miou, 5),
            "iou": {label.name: _rounded(v) for label, v in zip(head.spec.labels, score.iou)},
            "pixel_accuracy": round(score.accuracy, 5),
            "ece": round(score.ece(), 5),
        }


class DepthTask(Task):
    kind, truth_name, truths_name, measured = "depth", "depth", "depth", "AbsRel"
    better = -1.0
    empty = np.float32(np.nan)

    def reader(self, sample):
        return sample.read_depth

    def learnt(self, sample, truth):
        if sample.far_class is None:
            return truth
        # A head that was never told makes an obstacle of the sky.
        return np.where(sample.read_classes() == sample.far_class, np.float32(np.inf), truth)

    def options(self, labels, depth_range):
        return {"depth_range": tuple(depth_range)} if depth_range else {}

    def unknown(self, head, truths):
        near, far = head.spec.depth_range
        if any(((metres := read()) >= near).any() and (metres <= far).any() for read in truths):
            return ""
        return f"hold nothing from {near:g} to {far:g} m; is it metres (.npy) or millimetres (16-bit PNG)?"

    def begin(self, head, truths):
        near, far = head.spec.depth_range
        metres = np.concatenate([read()[::8, ::8].ravel() for read in truths[:: max(1, len(truths) // 64)]])
        head.answer_with(torch.from_numpy(metres[(metres >= near) & (metres <= far)].astype(np.float32)))

    def loss(self, head, raw, truth, weights, recipe):
        return depth_loss(raw, truth, head.spec.depth_range, relief=recipe.relief)

    def score(self, head):
        return DepthScore()

    def add(self, score, truth, arrays):
        score.add(truth, arrays["metres"])

    def number(self, score):
        return score.numbers()["abs_rel"]

    def report(self, head, score):
        return {**{k: round(v, 5) for k, v in score.numbers().items()}, "up_to_m": score.farthest}


TASKS: Mapping[str, Task] = {task.kind: task for task in (SegmentationTask(), DepthTask())}
"""Every kind of head that can be trained."""


def task_of(kind: str) -> Task:
    """The task of a head kind. Raises TaskError."""
    if kind not in TASKS:
        raise TaskError(f"a {kind} head cannot be trained; accepted are {', '.join(TASKS)}")
    return TASKS[kind]


def _rounded(value: float) -> float | None:
    return round(float(value), 5) if math.isfinite(value) else None
