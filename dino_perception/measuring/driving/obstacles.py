"""What in the node's messages is in the rover's way."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from dino_perception.perception import ground_plane

TOPICS = ("points", "segmentation/label_info")
"""What a Finder reads."""
HEIGHT, HEIGHT_REACH = 0.2, 5.0
"""Metres over the plane of the ground from where anything is in the way, and how far along the optical axis that is
believed: further on the ground need not be that plane."""


class Finder:
    """Takes for obstacles the points of a cloud whose class is a big rock, and those that stand over the plane of the
    ground near the camera."""

    def __call__(self, messages: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        """The points (h, w, 3) float32 of the optical frame, NaN where unknown, and which are in the way (h, w) bool."""
        names = {c.class_id: c.class_name for c in messages["segmentation/label_info"].class_map}
        cloud = cloud_of(messages["points"])
        points = np.stack([cloud[axis] for axis in "xyz"], axis=-1)
        rock = np.isin(cloud["label"], [id_ for id_, name in names.items() if name == "big_rock"])
        ground = np.isin(cloud["label"], [id_ for id_, name in names.items() if name in ground_plane.GROUND])
        plane = ground_plane.fit(points, ground)
        if plane is None:
            return points, rock
        with np.errstate(invalid="ignore"):
            return points, rock | ((plane.over(points) > HEIGHT) & (points[..., 2] < HEIGHT_REACH))


def cloud_of(message: Any) -> np.ndarray:
    """The points of a PointCloud2 as a structured array (height, width)."""
    kinds = {6: np.uint32, 7: np.float32}
    dtype = np.dtype(
        {
            "names": [field.name for field in message.fields],
            "formats": [kinds[field.datatype] for field in message.fields],
            "offsets": [field.offset for field in message.fields],
            "itemsize": message.point_step,
        }
    )
    return np.frombuffer(bytes(message.data), dtype).reshape(message.height, message.width)
