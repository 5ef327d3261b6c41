"""The frames of a recording with truth, as a costmap would get them: from the truth, and from the model."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from dino_perception.measuring.costmaps.score import Observation
from dino_perception.measuring.demo_score import resampled
from dino_perception.messages.intake import Intake
from dino_perception.messages.types import RosbagsTypes
from dino_perception.perception import geometry
from dino_perception.perception.frame import Depth, Percept
from dino_perception.perception.perceiver import Perceiver
from dino_perception.perception.points import perceive_points
from dino_perception.perception.pose import LOST, Pose
from dino_perception.training.datasets.base import Sample


def views(samples: Sequence[Sample], perceiver: Perceiver) -> tuple[list[Observation], list[Observation]]:
    """Of each sample the true view and the model's, at the model's output size. The samples need camera, pose, depth
    and classes; classes that are not the model's have no truth."""
    pairs = [_pair(sample, perceiver) for sample in samples]
    return [true for true, _ in pairs], [seen for _, seen in pairs]


def by_own_odometry(
    samples: Sequence[Sample], perceiver: Perceiver, step: int, camera_height: float = 0.0
) -> list[Observation]:
    """The model's view of every `step`-th sample, at the pose that the node's own odometry gives it after all the frames
    before, laid over the recording's poses at the first frame. With a `camera_height` in metres depth and odometry are scaled by
    it. Frames without a pose are left out."""
    told = {"camera_height": camera_height, "depth.camera_height_scaling": True} if camera_height else {}
    intake, start, found = Intake(perceiver, perceiver.settings.changed(told), RosbagsTypes()), None, []
    for number, sample in enumerate(samples):
        (percept,) = perceiver.perceive([sample.frame()], [{"segmentation", "depth", "correspondences"}])
        percept = intake.followed(intake.scaled(percept), {"odometry"})
        pose = percept.pose
        if pose is None or pose.health == LOST:
            continue
        if start is None:
            start = sample.pose @ np.linalg.inv(pose.matrix)
        if number % step == 0:
            at = start @ pose.matrix
            placed = dataclasses.replace(
                percept, pose=dataclasses.replace(pose, position=at[:3, 3], rotation=at[:3, :3])
            )
            cloud = perceive_points(placed, perceiver.settings)
            points = placed.pose.to_odom(np.stack([cloud[a] for a in "xyz"], -1).reshape(-1, 3).astype(np.float64))
            said = placed.segmentation
            found.append(
                Observation(
                    sample.stamp_ns / 1e9, points, said.mask.ravel(), said.confidence.ravel(), at[:3, 3], placed
                )
            )
    return found


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
