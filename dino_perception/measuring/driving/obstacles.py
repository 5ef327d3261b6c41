"""What in the node's messages is in the rover's way."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from dino_perception.messages.percepts import cloud_array
from dino_perception.perception import ground_plane

Found = tuple[np.ndarray, np.ndarray]
"""(N, 3) points that were seen, and (M, 3) of what is in the way, float32 metres of the optical frame; NaN where unknown."""

HEIGHT, HEIGHT_REACH = 0.2, 5.0
"""Metres over the plane of the ground from where anything is in the way, and how far along the optical axis that is
believed: further on the ground need not be that plane."""


@dataclass(frozen=True)
class Finder:
    """`topics` are what it reads, relative names; `find` makes of their messages what was seen."""

    topics: tuple[str, ...]
    find: Callable[[Mapping[str, Any]], Found]


def _of_points(messages: Mapping[str, Any]) -> Found:
    """The points of the cloud whose class is a big rock, and those that stand over the plane of the ground near the
    camera."""
    names = {c.class_id: c.class_name for c in messages["segmentation/label_info"].class_map}
    cloud = cloud_array(messages["points"])
    points = xyz(cloud)
    closed = np.isin(cloud["label"], [id_ for id_, name in names.items() if name == "big_rock"])
    ground = np.isin(cloud["label"], [id_ for id_, name in names.items() if name in ground_plane.GROUND])
    plane = ground_plane.fit(points, ground)
    if plane is not None:
        with np.errstate(invalid="ignore"):
            closed |= (plane.over(points) > HEIGHT) & (points[..., 2] < HEIGHT_REACH)
    return points.reshape(-1, 3), points[closed]


def _of_obstacles(messages: Mapping[str, Any]) -> Found:
    """What the node takes for obstacles, among the points that it sees. Where it sees no ground it says nothing of them."""
    seen = xyz(cloud_array(messages["points"])).reshape(-1, 3)
    return seen, xyz(cloud_array(messages["obstacles"])).reshape(-1, 3) if "obstacles" in messages else seen[:0]


FINDERS = {
    "obstacles": Finder(("points", "obstacles"), _of_obstacles),
    "points": Finder(("points", "segmentation/label_info"), _of_points),
}
"""By the topic that tells what is in the way."""


def xyz(cloud: np.ndarray) -> np.ndarray:
    """(..., 3) float32."""
    return np.stack([cloud[axis] for axis in "xyz"], axis=-1)
