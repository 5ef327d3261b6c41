"""Boxes made of masks: where there are no boxes, a class's connected parts are taken for its objects."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial

import cv2
import numpy as np

from dino_perception.models.heads import Label
from dino_perception.training.datasets.base import DataError, Dataset, Sample, names, text_key

FEWEST = 12
"""Pixels of the smallest part that is an object."""


def boxed(data: Dataset, classes: Sequence[str]) -> Dataset:
    """The data with a box around each connected part of these classes of its masks, in place of whatever boxes it has.
    Objects that touch become one. Raises DataError where the data has no such class."""
    by_name = {label.name: label for label in data.labels}
    if unknown := [name for name in classes if name not in by_name]:
        raise DataError(f"the masks of {data.source} have no class '{unknown[0]}'; they have {names(data.labels)}")
    ids = [by_name[name].id for name in classes]
    samples = tuple(_with_boxes(sample, ids) for sample in data.samples)
    labels = tuple(Label(i, name, by_name[name].colour) for i, name in enumerate(classes))
    return dataclasses.replace(data, samples=samples, box_labels=labels)


def _with_boxes(sample: Sample, ids: Sequence[int]) -> Sample:
    if sample.read_classes is None:
        return dataclasses.replace(sample, read_boxes=None)
    key = text_key(sample.truth_key, "parts of masks", tuple(ids), FEWEST)
    return dataclasses.replace(sample, truth_key=key, read_boxes=partial(_boxes, sample, ids))


def _boxes(sample: Sample, ids: Sequence[int]) -> np.ndarray:
    mask, image = sample.read_classes(), sample.read_image()
    scale = (image.shape[1] / mask.shape[1], image.shape[0] / mask.shape[0])
    rows = [[*part[:4], number, np.nan] for number, one in enumerate(ids) for part in parts(mask == one, scale, FEWEST)]
    return np.array(rows, np.float32).reshape(-1, 6)


def parts(where: np.ndarray, scale: tuple[float, float], fewest: int) -> np.ndarray:
    """(N, 5): left, top, right, bottom of the connected parts (8 neighbours) of `where` (h, w) bool, in pixels of an image
    `scale` (x, y) times as large, edges included, and their number in an array of parts, for those of `fewest` pixels."""
    _, _, about, _ = cv2.connectedComponentsWithStats(where.astype(np.uint8), connectivity=8)
    x, y, width, height, count = about[1:].T.astype(np.float64)
    box = np.stack([x * scale[0], y * scale[1], (x + width) * scale[0], (y + height) * scale[1]], axis=1) - 0.5
    return np.concatenate([box, np.arange(1, len(about))[:, None]], axis=1)[count >= fewest]
