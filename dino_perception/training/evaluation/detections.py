"""How well objects are found, and how far away they are told to be, beside the connected parts of the mask."""

from __future__ import annotations

import contextlib
import dataclasses
import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from dino_perception.missing_packages import missing
from dino_perception.models.label_sets import Label
from dino_perception.perception.frame import Answer, Percept
from dino_perception.perception.lifted_boxes import dominant, ids_of, lifted_boxes, pixels_in
from dino_perception.perception.settings import Settings
from dino_perception.training.datasets import DataError, Dataset, Sample
from dino_perception.training.datasets.mask_boxes import parts
from dino_perception.training.evaluation.detection_score import DetectionScore, matched

FEWEST = 4
"""Pixels of the published mask that make an object of the baseline."""


class ObjectJudge:
    """Counts frame by frame. `least` is the score from which a detection is told."""

    def __init__(self, data: Dataset, labels: Sequence[Label], settings: Settings):
        by_name = {label.name: label.id for label in labels}
        self.table = {label.id: by_name[label.name] for label in data.box_labels if label.name in by_name}
        if not self.table:
            raise DataError(
                f"the objects of {data.source} ({', '.join(l.name for l in data.box_labels)}) and those of the detection "
                f"head ({', '.join(by_name)}) have no name in common"
            )
        self.labels, self.settings = tuple(labels), settings
        self.own, self.baseline = _Count(len(labels)), _Count(len(labels))

    def judge(self, sample: Sample, percept: Percept) -> None:
        truth = sample.read_boxes()
        truth = truth[np.isin(truth[:, 4], list(self.table))].copy()
        truth[:, 4] = [self.table[int(number)] for number in truth[:, 4]]
        if sample.read_depth is not None:
            fill_distances(truth, sample.read_depth(), percept.frame.image.shape)
        self.own.add(truth, percept, self.settings)
        if percept.segmentation is not None:
            self.baseline.add(truth, _of_parts(percept, self.labels), self.settings)

    def numbers(self) -> dict[str, Any]:
        """{ap50, ap50_of, ap, ap75, recall, objects, range_...} and the same of the baseline."""
        base = self.baseline.numbers(self.labels) if self.baseline.score.objects.sum() else {}
        return {**self.own.numbers(self.labels), **{f"baseline_{key}": value for key, value in base.items()}}


class _Count:
    def __init__(self, classes: int):
        self.score = DetectionScore(classes)
        self.truths: list[np.ndarray] = []
        self.boxes: list[np.ndarray] = []
        self.errors: list[tuple[float, float]] = []
        self.found, self.lifted = 0, 0

    def add(self, truth: np.ndarray, percept: Percept, settings: Settings) -> None:
        boxes = percept.answer("detection")["boxes"]
        self.score.add(truth, boxes)
        self.truths.append(truth)
        self.boxes.append(boxes)
        lifted = {each.row: each.position[2] for each in lifted_boxes(percept, settings) or ()}
        for number in range(self.score.classes):
            own, true = np.flatnonzero(boxes[:, 5] == number), truth[truth[:, 4] == number]
            own = own[np.argsort(-boxes[own, 4], kind="stable")]
            for row, place in zip(own, matched(boxes[own], true)):
                if place >= 0:
                    self.found += 1
                    self.lifted += row in lifted
                    if row in lifted and np.isfinite(true[place, 5]):
                        self.errors.append((float(true[place, 5]), float(lifted[row] - true[place, 5])))

    def numbers(self, labels: Sequence[Label]) -> dict[str, Any]:
        far, off = np.array(self.errors).reshape(-1, 2).T
        median = lambda values: float(np.median(values)) if len(values) else np.nan
        return {
            "ap50": self.score.mean,
            "ap50_of": {label.name: value for label, value in zip(labels, self.score.ap50)},
            **coco_numbers(self.truths, self.boxes),
            "objects": int(self.score.objects.sum()),
            "recall": self.found / max(1, int(self.score.objects.sum())),
            "boxes": sum(map(len, self.boxes)),
            "precision": self.found / max(1, sum(map(len, self.boxes))),
            "range_error": median(np.abs(off) / far),
            "range_error_m": median(np.abs(off)),
            "range_known": self.lifted / max(1, self.found),
        }


def coco_numbers(truths: Sequence[np.ndarray], boxes: Sequence[np.ndarray]) -> dict[str, float]:
    """COCO's AP, AP50 and AP75 by pycocotools; nothing where it is not installed. Frames of truth (M, 5 or more) and
    boxes (N, 6)."""
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError:
        return {}
    rows = [(image, row) for image, each in enumerate(truths) for row in each.astype(float).tolist()]
    found = [(image, row) for image, each in enumerate(boxes) for row in each.astype(float).tolist()]
    if not rows or not found:
        return {}
    side = lambda row: [row[0], row[1], row[2] - row[0], row[3] - row[1]]
    truth = COCO()
    truth.dataset = {
        "info": {},
        "images": [{"id": image} for image in range(len(truths))],
        "categories": [{"id": number} for number in sorted({int(row[4]) for _, row in rows})],
        "annotations": [
            {"id": i + 1, "image_id": image, "category_id": int(row[4]), "bbox": side(row), "iscrowd": 0,
             "area": (row[2] - row[0]) * (row[3] - row[1])}
            for i, (image, row) in enumerate(rows)
        ],
    }  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()):  # it prints each step
        truth.createIndex()
        said = truth.loadRes(
            [
                {"image_id": image, "category_id": int(row[5]), "bbox": side(row), "score": row[4]}
                for image, row in found
            ]
        )
        evaluation = COCOeval(truth, said, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return {name: float(evaluation.stats[i]) for i, name in enumerate(("ap", "ap50", "ap75"))}


def lacking() -> str:
    """Why some numbers are missing; "" where none is."""
    try:
        import pycocotools  # noqa: F401
    except ImportError as error:
        return f"AP from 0.5 to 0.95 and at 0.75 are not given: {missing(error) or error}"
    return ""


def _of_parts(percept: Percept, labels: Sequence[Label]) -> Percept:
    """The percept with the connected parts of its mask for detections, as sure as the mask is there."""
    import cv2

    said, rows = percept.segmentation, []
    x, y = percept.output_scale
    for label in labels:
        where = np.isin(said.mask, ids_of(label.name, said.labels))
        _, numbers = cv2.connectedComponents(where.astype(np.uint8), connectivity=8)
        for *box, part in parts(where, (1 / x, 1 / y), FEWEST).tolist():
            rows.append([*box, said.confidence[numbers == int(part)].mean() / 255, label.id])
    boxes = np.array(rows, np.float32).reshape(-1, 6)
    answer = percept.answer("detection")
    instead = Answer({answer.outputs[0].name: boxes}, answer.outputs, tuple(labels))
    return dataclasses.replace(percept, others={**percept.others, "detection": instead})


def fill_distances(truth: np.ndarray, depth: np.ndarray, image_shape: Sequence[int]) -> None:
    """Where the truth does not say how far an object is, take the mode of the true depth in its box."""
    scale = np.array([depth.shape[1] / image_shape[1], depth.shape[0] / image_shape[0]] * 2)
    for row in np.flatnonzero(np.isnan(truth[:, 5])):
        mode = dominant(depth[pixels_in((truth[row, :4] + 0.5) * scale - 0.5, depth.shape)])
        truth[row, 5] = mode[2] if mode else np.nan
