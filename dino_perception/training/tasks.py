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
from dino_perception.perception.geometry import Letterbox
from dino_perception.training.detection_loss import detection_losses
from dino_perception.training.evaluation.detection_score import DetectionScore
from dino_perception.training.evaluation.metrics import DepthScore, SegmentationScore
from dino_perception.training.evaluation.sampling import nearest
from dino_perception.training.looks import Look
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
    dense = True
    """Whether the truth says something of each pixel, and so has the picture's aspect."""

    def labels(self, data: Any) -> Sequence[Any]:
        """The classes of a dataset that such a head tells apart."""
        return data.labels

    def reader(self, sample: Any) -> Callable[[], np.ndarray] | None:
        """What reads a sample's truth; None where it has none."""
        raise NotImplementedError

    def learnt(self, sample: Any, truth: np.ndarray) -> np.ndarray:
        """A sample's truth as a head is to learn it."""
        return truth

    def placed(self, truth: np.ndarray, view: Look, box: Letterbox) -> np.ndarray:
        """The truth of a look, for an image that lies in the network's input as `box` says: an array of one shape for all
        images, to be loaded in batches."""
        x, y = box.output_scale
        scale = (x * box.image_width / truth.shape[1], y * box.image_height / truth.shape[0])
        whole = np.full((box.grid_height, box.grid_width), self.empty)
        content = nearest(view.truth(truth), box.output_height, box.output_width, scale)
        whole[: box.output_height, : box.output_width] = content
        return whole

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


class DetectionTask(Task):
    kind, truth_name, truths_name, measured = "detection", "boxes", "boxes", "AP50"
    classed, dense = True, False
    MOST = 128
    """Objects of a frame that are learnt and judged by, the largest first."""

    def labels(self, data):
        return data.box_labels

    def reader(self, sample):
        return sample.read_boxes

    def placed(self, truth, view, box):
        """(MOST, 6), in pixels of the network's input; class -1 in rows that hold nothing."""
        truth = truth[np.argsort(-(truth[:, 2] - truth[:, 0]) * (truth[:, 3] - truth[:, 1]), kind="stable")][
            : self.MOST
        ]
        whole = np.full((self.MOST, 6), -1, np.float32)
        if view.mirrored:
            truth = truth[:, [2, 1, 0, 3, 4, 5]] * [-1, 1, -1, 1, 1, 1] + np.array(
                [box.image_width - 1, 0] * 2 + [0, 0]
            )
        whole[: len(truth)] = truth
        whole[: len(truth), :4] = box.to_input(truth[:, :4].reshape(-1, 2)).reshape(-1, 4)
        return whole

    def options(self, labels, depth_range):
        return {"labels": labels}

    def unknown(self, head, truths):
        if any((read()[:, 4] >= 0).any() for read in truths):
            return ""
        return "hold no object; check the classes"

    def begin(self, head, truths):
        head.begin()

    def loss(self, head, raw, truth, weights, recipe):
        return sum(detection_losses(raw, truth[:, : max(1, int((truth[..., 4] >= 0).sum(dim=1).max()))]))

    def score(self, head):
        return DetectionScore(len(head.spec.labels))

    def add(self, score, truth, arrays):
        score.add(truth, arrays["boxes"])

    def number(self, score):
        return score.mean

    def report(self, head, score):
        own = {label.name: _rounded(v) for label, v in zip(head.spec.labels, score.ap50)}
        return {"ap50": _rounded(score.mean), "ap50_of": own, "objects": int(score.objects.sum())}


TASKS: Mapping[str, Task] = {task.kind: task for task in (SegmentationTask(), DepthTask(), DetectionTask())}
"""Every kind of head that can be trained."""


def task_of(kind: str) -> Task:
    """The task of a head kind. Raises TaskError."""
    if kind not in TASKS:
        raise TaskError(f"a {kind} head cannot be trained; accepted are {', '.join(TASKS)}")
    return TASKS[kind]


def _rounded(value: float) -> float | None:
    return round(float(value), 5) if math.isfinite(value) else None
