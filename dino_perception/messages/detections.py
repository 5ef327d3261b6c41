"""Detections as messages: vision_msgs in the picture and in space, and Foxglove's annotations of a picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dino_perception.perception.frame import Answer, Percept
from dino_perception.perception.lifted_boxes import LiftedBox

LINE_LOOP = 2  # foxglove_msgs/PointsAnnotation's number
FONT = 14.0
"""Height of the annotations' letters in pixels of the picture."""


def detections_2d(types: Any, header: Any, answer: Answer) -> Any:
    """A vision_msgs/Detection2DArray. Boxes in pixels of the image, pixel centres at integers; the class is its name."""
    found, nowhere = [], types.make("geometry_msgs/msg/PoseWithCovariance", pose=_pose(types, np.zeros(3)))
    for (left, top, right, bottom), name, score in _rows(answer):
        middle = types.make("vision_msgs/msg/Point2D", x=(left + right) / 2, y=(top + bottom) / 2)
        centre = types.make("vision_msgs/msg/Pose2D", position=middle, theta=0.0)
        box = types.make("vision_msgs/msg/BoundingBox2D", center=centre, size_x=right - left, size_y=bottom - top)
        results = [_hypothesis(types, name, score, nowhere)]
        found.append(types.make("vision_msgs/msg/Detection2D", header=header, results=results, bbox=box, id=""))
    return types.make("vision_msgs/msg/Detection2DArray", header=header, detections=found)


def detections_3d(types: Any, header: Any, answer: Answer, lifted: Sequence[LiftedBox]) -> Any:
    """A vision_msgs/Detection3DArray of those detections that were lifted, in metres in the header's optical frame."""
    rows, found = _rows(answer), []
    for each in lifted:
        _, name, score = rows[each.row]
        pose = _pose(types, each.position)
        where = types.make("geometry_msgs/msg/PoseWithCovariance", pose=pose)
        size = types.make("geometry_msgs/msg/Vector3", **_xyz(each.size))
        box = types.make("vision_msgs/msg/BoundingBox3D", center=pose, size=size)
        results = [_hypothesis(types, name, score, where)]
        found.append(types.make("vision_msgs/msg/Detection3D", header=header, results=results, bbox=box, id=""))
    return types.make("vision_msgs/msg/Detection3DArray", header=header, detections=found)


def annotations(types: Any, header: Any, percept: Percept, answer: Answer) -> Any:
    """A foxglove_msgs/ImageAnnotations of the boxes, their names and scores. Foxglove counts pixels from the corner of the
    first one."""
    colours = {label.name: _colour(types, label.colour) for label in answer.labels}
    white = _colour(types, (255, 255, 255))
    points, texts = [], []
    for (left, top, right, bottom), name, score in _rows(answer):
        corners = ((left, top), (right, top), (right, bottom), (left, bottom))
        colour = colours.get(name, white)
        points.append(
            types.make(
                "foxglove_msgs/msg/PointsAnnotation",
                timestamp=header.stamp,
                type=LINE_LOOP,
                points=[types.make("foxglove_msgs/msg/Point2", x=x + 0.5, y=y + 0.5) for x, y in corners],
                outline_color=colour,
                thickness=2.0,
            )
        )
        texts.append(
            types.make(
                "foxglove_msgs/msg/TextAnnotation",
                timestamp=header.stamp,
                position=types.make("foxglove_msgs/msg/Point2", x=left + 0.5, y=top + 0.5),
                text=f"{name} {score:.2f}",
                font_size=FONT,
                text_color=white,
                background_color=colour,
            )
        )
    return types.make("foxglove_msgs/msg/ImageAnnotations", points=points, texts=texts)


def _rows(answer: Answer) -> list[tuple[list[float], str, float]]:
    """(box, name, score) of each."""
    names = {label.id: label.name for label in answer.labels}
    rows = answer["boxes"].astype(np.float64).tolist()
    return [(box, names.get(int(number), str(int(number))), score) for *box, score, number in rows]


def _hypothesis(types: Any, name: str, score: float, where: Any) -> Any:
    said = types.make("vision_msgs/msg/ObjectHypothesis", class_id=name, score=score)
    return types.make("vision_msgs/msg/ObjectHypothesisWithPose", hypothesis=said, pose=where)


def _pose(types: Any, position: np.ndarray) -> Any:
    """Not turned, said by both libraries: only one of them knows that a quaternion's default is that."""
    return types.make(
        "geometry_msgs/msg/Pose",
        position=types.make("geometry_msgs/msg/Point", **_xyz(position)),
        orientation=types.make("geometry_msgs/msg/Quaternion", x=0.0, y=0.0, z=0.0, w=1.0),
    )


def _xyz(values: np.ndarray) -> dict[str, float]:
    return dict(zip("xyz", (float(value) for value in values)))


def _colour(types: Any, rgb: Sequence[int]) -> Any:
    return types.make("foxglove_msgs/msg/Color", **dict(zip("rgb", (c / 255 for c in rgb))), a=1.0)
