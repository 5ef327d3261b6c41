"""The frames of a recording with truth, as a costmap would get them: from the truth, and from the model."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from dino_perception.measuring.costmaps.score import Observation
from dino_perception.measuring.demo_score import resampled
from dino_perception.perception import geometry
from dino_perception.perception.frame import Depth, Percept
from dino_perception.perception.perceiver import Perceiver
from dino_perception.perception.points import perceive_points
from dino_perception.perception.pose import Pose
from dino_perception.training.datasets.base import Sample


def views(samples: Sequence[Sample], perceiver: Perceiver) -> tuple[list[Observation], list[Observation]]:
    """Of each sample the true view and the model's, at the model's output size. The samples need camera, pose, depth
    and classes; classes that are not the model's have no truth."""
    pairs = [_pair(sample, perceiver) for sample in samples]
    return [true for true, _ in pairs], [seen for _, seen in pairs]


def _pair(sample: Sample, perceiver: Perceiver) -> tuple[Observation, Observation]:
    (percept,) = perceiver.perceive([sample.frame()], [{"segmentation", "depth"}])
    cloud = perceive_points(percept, perceiver.settings)
    segmentation = percept.segmentation
    seen = np.stack([cloud[axis] for axis in "xyz"], axis=-1)
    return _true(sample, percept), _view(sample, percept, seen, segmentation.mask, segmentation.confidence)


def _true(sample: Sample, percept: Percept) -> Observation:
    shape = (percept.output_height, percept.output_width)
    depth, classes = (resampled(read(), shape) for read in (sample.read_depth, sample.read_classes))
    points = geometry.points(depth, geometry.rays(percept.output_camera))
    sure = np.full(shape, 255, np.uint8)
    true = dataclasses.replace(
        percept,
        depth=Depth(depth),
        segmentation=dataclasses.replace(percept.segmentation, mask=classes, confidence=sure),
    )
    return _view(sample, true, points, classes, sure)


def _view(
    sample: Sample, percept: Percept, points: np.ndarray, classes: np.ndarray, confidence: np.ndarray
) -> Observation:
    pose = sample.pose
    flat = points.reshape(-1, 3).astype(np.float64) @ pose[:3, :3].T + pose[:3, 3]
    placed = dataclasses.replace(percept, pose=Pose(pose[:3, 3], pose[:3, :3]))
    return Observation(sample.stamp_ns / 1e9, flat, classes.ravel(), confidence.ravel(), pose[:3, 3], placed)
