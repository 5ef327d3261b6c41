"""What the rover sends with each frame: its picture and camera, where it is, and the time."""

from __future__ import annotations

from typing import Any

import numpy as np

from dino_perception.measuring.driving.rover import CAMERA as MOUNT
from dino_perception.measuring.driving.senses import CAMERA, View
from dino_perception.training.terrain.sample_bag import OPTICAL_FRAME, Messages, mounting

IMAGE, INFO, TF, TF_STATIC, ODOM, CLOCK = "/image", "/camera_info", "/tf", "/tf_static", "/odom", "/clock"
SENT = {
    CLOCK: "rosgraph_msgs/msg/Clock",
    TF_STATIC: "tf2_msgs/msg/TFMessage",
    TF: "tf2_msgs/msg/TFMessage",
    ODOM: "nav_msgs/msg/Odometry",
    INFO: "sensor_msgs/msg/CameraInfo",
    IMAGE: "sensor_msgs/msg/Image",
}
"""Topic -> type, in the order in which a frame's messages are sent: those that make a picture useful before it."""


class RoverMessages:
    """Makes the messages of one view after another; odom is the world, as wheels and gyros without errors would have it."""

    def __init__(self) -> None:
        self._make = Messages()
        self._before: View | None = None

    def __call__(self, view: View, picture: np.ndarray) -> dict[str, Any]:
        """The messages of rosbags by topic."""
        make, stamp, types = self._make, view.stamp_ns, self._make.types
        poses, times = [view.base], [0.0]
        if self._before is not None:
            poses.insert(0, self._before.base)
            times = [0.0, (stamp - self._before.stamp_ns) / 1e9]
        odometry = make.odometry(stamp, np.stack(poses), np.array(times), len(poses) - 1)
        self._before = view
        time = types["builtin_interfaces/msg/Time"](sec=stamp // 10**9, nanosec=stamp % 10**9)
        height, width = picture.shape[:2]
        image = types["sensor_msgs/msg/Image"](
            header=make.header(stamp, OPTICAL_FRAME),
            height=height,
            width=width,
            encoding="rgb8",
            is_bigendian=0,
            step=3 * width,
            data=np.ascontiguousarray(picture).reshape(-1),
        )
        return {
            CLOCK: types[SENT[CLOCK]](clock=time),
            TF_STATIC: make.transforms(stamp, mounting(MOUNT)),
            TF: make.transforms(stamp, [("odom", "base_link", view.base)]),
            ODOM: odometry,
            INFO: make.camera_info(stamp, CAMERA),
            IMAGE: image,
        }
