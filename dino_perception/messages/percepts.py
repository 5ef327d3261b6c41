"""Arrays of a percept as ROS messages, of rclpy and of rosbags alike; which topic holds which stands in topics.py."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from dino_perception.models.label_sets import Label
from dino_perception.perception.frame import Correspondences
from dino_perception.perception.traversability import TraversabilityGrid

_POINT_FIELD = {"uint8": 2, "uint32": 6, "float32": 7}  # sensor_msgs/PointField's numbers
_CV_32FC1 = 5
_NETWORK = 1  # of rtabmap's kinds of descriptors the one whose vectors it compares by their cosine


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


def point_cloud(types: Any, header: Any, cloud: np.ndarray, dense: bool = False) -> Any:
    """A sensor_msgs/PointCloud2 from an (H, W) structured array; its fields become the point's fields. `dense`: no point is
    NaN."""
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
        is_dense=dense,
    )


def cloud_array(message: Any) -> np.ndarray:
    """The points of a sensor_msgs/PointCloud2 that `point_cloud` made as a structured array (height, width)."""
    kinds = {number: name for name, number in _POINT_FIELD.items()}
    layout = np.dtype(
        {
            "names": [field.name for field in message.fields],
            "formats": [kinds[field.datatype] for field in message.fields],
            "offsets": [field.offset for field in message.fields],
            "itemsize": message.point_step,
        }
    )
    return np.frombuffer(bytes(message.data), layout).reshape(message.height, message.width)


def occupancy_grid(types: Any, header: Any, grid: TraversabilityGrid) -> Any:
    """The nav_msgs/OccupancyGrid of a map: -1 unknown, 0 free to 100 closed."""
    corner = types.make("geometry_msgs/msg/Point", x=float(grid.x), y=float(grid.y), z=0.0)
    upright = types.make("geometry_msgs/msg/Quaternion", x=0.0, y=0.0, z=0.0, w=1.0)
    info = types.make(
        "nav_msgs/msg/MapMetaData",
        map_load_time=header.stamp,
        resolution=float(np.float32(grid.resolution)),  # as the message holds it
        width=grid.cells.shape[1],
        height=grid.cells.shape[0],
        origin=types.make("geometry_msgs/msg/Pose", position=corner, orientation=upright),
    )
    return types.make(
        "nav_msgs/msg/OccupancyGrid", header=header, info=info, data=np.ascontiguousarray(grid.cells).reshape(-1)
    )


def global_descriptor(types: Any, header: Any, vector: np.ndarray) -> Any:
    """The rtabmap_msgs/GlobalDescriptor of a unit vector (D,): one row of OpenCV's 32FC1, as rtabmap compresses a matrix
    (zlib, then rows, columns and type as int32)."""
    row = np.ascontiguousarray(vector, "<f4")
    packed = zlib.compress(row.tobytes()) + struct.pack("<3i", 1, row.size, _CV_32FC1)
    return types.make(
        "rtabmap_msgs/msg/GlobalDescriptor",
        header=header,
        type=_NETWORK,
        info=np.zeros(0, np.uint8),
        data=np.frombuffer(packed, np.uint8),
    )


def correspondences(types: Any, header: Any, matches: Correspondences) -> Any:
    """The Correspondences message of a frame's matches."""
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
