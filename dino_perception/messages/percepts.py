"""A percept as ROS messages: one place that decides what every output topic holds, for the live node and for bags."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import numpy as np

from dino_perception.messages.camera_info import camera_info
from dino_perception.perception.frame import Label, Percept
from dino_perception.perception.settings import Settings


class Topic(NamedTuple):
    """What a topic is: its message type, how it is offered ("data": reliable, volatile; "latched": reliable, transient
    local, the last message for whoever comes late) and the heads whose output it shows."""

    type: str
    qos: str
    heads: tuple[str, ...]


TOPICS = {
    "segmentation/mask": Topic("sensor_msgs/msg/Image", "data", ("segmentation",)),
    "segmentation/confidence": Topic("sensor_msgs/msg/Image", "data", ("segmentation",)),
    "segmentation/label_info": Topic("vision_msgs/msg/LabelInfo", "latched", ()),
    "segmentation/overlay": Topic("sensor_msgs/msg/Image", "data", ("segmentation",)),
    "depth/image": Topic("sensor_msgs/msg/Image", "data", ("depth",)),
    "depth/camera_info": Topic("sensor_msgs/msg/CameraInfo", "data", ()),
    "depth/overlay": Topic("sensor_msgs/msg/Image", "data", ("depth",)),
    "points": Topic("sensor_msgs/msg/PointCloud2", "data", ("depth", "segmentation")),
    "correspondences": Topic("dino_perception/msg/Correspondences", "data", ("correspondences",)),
    "correspondences/overlay": Topic("sensor_msgs/msg/Image", "data", ("correspondences",)),
}
"""Every output topic by its name below the node's (and camera's) namespace."""


def waiting(heads: Collection[str]) -> frozenset[str]:
    """The topics that wait for the answer of one of these heads."""
    return frozenset(name for name, topic in TOPICS.items() if set(heads) & set(topic.heads))


_POINT_FIELD = {"uint8": 2, "uint32": 6, "float32": 7}  # sensor_msgs/PointField's numbers


def outputs(
    types: Any, percept: Percept, settings: Settings, labels: Sequence[Label], topics: Collection[str]
) -> dict[str, Any]:
    """The messages of one percept, by relative topic name, for those of `topics` that the percept can fill.

    All carry the stamp and frame of the percept's image. Mask, confidence, depth, camera_info and points have one size.
    `segmentation/label_info` belongs to a configuration, not to a frame: see `label_info`.
    """
    frame = percept.frame
    header = types.header(frame.stamp_ns, frame.frame_id)
    messages: dict[str, Any] = {}

    segmentation = percept.segmentation
    if segmentation is not None:
        if "segmentation/mask" in topics:
            messages["segmentation/mask"] = image(types, header, segmentation.mask, "mono8")
        if "segmentation/confidence" in topics:
            messages["segmentation/confidence"] = image(types, header, segmentation.confidence, "mono8")
    if percept.depth is not None and "depth/image" in topics:
        messages["depth/image"] = image(types, header, percept.depth.metres, "32FC1")
    if "depth/camera_info" in topics:
        messages["depth/camera_info"] = camera_info(
            types, percept.output_camera, header, width=percept.output_width, height=percept.output_height
        )
    if percept.depth is not None and "points" in topics:
        from dino_perception.perception.points import perceive_points

        cloud = perceive_points(percept, settings)
        if cloud is not None:
            messages["points"] = point_cloud(types, header, cloud)
    if percept.correspondences is not None and "correspondences" in topics:
        messages["correspondences"] = _correspondences(types, header, percept)
    for name in topics:
        picture = _overlay(name, percept, settings, labels) if name.endswith("/overlay") else None
        if picture is not None:
            messages[name] = image(types, header, picture, "rgb8")
    return messages


def label_info(
    types: Any, labels: Sequence[Label], stamp_ns: int = 0, frame_id: str = "", threshold: float = 0.0
) -> Any:
    """The vision_msgs/LabelInfo that names the mask's ids; `threshold` is the least confidence that counts.

    It belongs to a configuration and not to a frame, so its stamp is zero: valid at any time, live and replayed.
    """
    classes = [types.make("vision_msgs/msg/VisionClass", class_id=label.id, class_name=label.name) for label in labels]
    return types.make(
        "vision_msgs/msg/LabelInfo",
        header=types.header(stamp_ns, frame_id),
        class_map=classes,
        threshold=float(threshold),
    )


def image(types: Any, header: Any, pixels: np.ndarray, encoding: str) -> Any:
    """A sensor_msgs/Image without row padding from (H, W) or (H, W, C) `pixels` of the encoding's dtype."""
    pixels = np.ascontiguousarray(pixels)
    height, width = pixels.shape[:2]
    return types.make(
        "sensor_msgs/msg/Image",
        header=header,
        height=height,
        width=width,
        encoding=encoding,
        is_bigendian=0,
        step=pixels.nbytes // height,
        data=pixels.reshape(-1).view(np.uint8),
    )


def point_cloud(types: Any, header: Any, cloud: np.ndarray) -> Any:
    """An organised sensor_msgs/PointCloud2 from an (H, W) structured array; its fields become the point's fields."""
    height, width = cloud.shape
    cloud = np.ascontiguousarray(cloud)
    fields = [
        types.make("sensor_msgs/msg/PointField", name=name, offset=offset, datatype=_POINT_FIELD[kind.name], count=1)
        for name, (kind, offset) in cloud.dtype.fields.items()
    ]
    step = cloud.dtype.itemsize
    return types.make(
        "sensor_msgs/msg/PointCloud2",
        header=header,
        height=height,
        width=width,
        fields=fields,
        is_bigendian=False,
        point_step=step,
        row_step=step * width,
        data=cloud.reshape(-1).view(np.uint8),
        is_dense=False,
    )


def _correspondences(types: Any, header: Any, percept: Percept) -> Any:
    matches = percept.correspondences
    arrays = {
        name: np.ascontiguousarray(getattr(matches, name), np.float32)
        for name in ("x", "y", "reference_x", "reference_y", "score")
    }
    return types.make(
        "dino_perception/msg/Correspondences",
        header=header,
        reference_header=types.header(matches.reference_stamp_ns, matches.reference_frame_id),
        width=matches.width,
        height=matches.height,
        track_id=np.ascontiguousarray(matches.track_id, np.uint64),
        **arrays,
    )


def _overlay(name: str, percept: Percept, settings: Settings, labels: Sequence[Label]) -> np.ndarray | None:
    from dino_perception.perception import drawing

    if name == "segmentation/overlay" and percept.segmentation is not None:
        return drawing.segmentation_overlay(percept, settings)
    if name == "depth/overlay" and percept.depth is not None:
        return drawing.depth_overlay(percept, settings)
    if name == "correspondences/overlay" and percept.correspondences is not None:
        return drawing.correspondences_overlay(percept, settings)
    return None
