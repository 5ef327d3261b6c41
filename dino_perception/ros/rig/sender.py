"""A camera driver without a camera: pictures from a file at a steady rate, stamped when they are sent.

    python -m dino_perception.ros.rig.sender front 10 pictures.npy

sends /front/image (bgr8) and /front/camera_info ten times a second until it is told to end. The pictures are
(N, H, W, 3) uint8 RGB. An empty name sends /image and /camera_info.
"""

from __future__ import annotations

import sys
import time

import numpy as np
import rclpy

from dino_perception.messages.camera_info import camera_info
from dino_perception.messages.percepts import image
from dino_perception.messages.types import RclpyTypes
from dino_perception.perception.frame import CameraModel
from dino_perception.ros.outputs import DATA


def send(name: str, hz: float, pictures: np.ndarray) -> None:
    """Send until the process is told to end. A picture that is late is not made up for."""
    rclpy.init(args=[])
    node = rclpy.create_node(f"camera_{name or 'only'}", enable_rosout=False, start_parameter_services=False)
    types = RclpyTypes()
    prefix = f"/{name}" if name else ""
    images = node.create_publisher(types.type("sensor_msgs/msg/Image"), f"{prefix}/image", DATA)
    infos = node.create_publisher(types.type("sensor_msgs/msg/CameraInfo"), f"{prefix}/camera_info", DATA)
    height, width = pictures.shape[1:3]
    focal = 0.8 * width
    matrix = np.array([[focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1.0]])
    header = types.header(0, f"{name or 'camera'}_optical")
    messages = [image(types, header, np.ascontiguousarray(picture[:, :, ::-1]), "bgr8") for picture in pictures]
    info = camera_info(types, CameraModel(width, height, matrix), header)
    due, count = time.monotonic(), 0
    try:
        while rclpy.ok():
            time.sleep(max(0.0, due - time.monotonic()))
            message = messages[count % len(messages)]
            now = time.time_ns()
            for each in (message, info):
                each.header.stamp.sec, each.header.stamp.nanosec = divmod(now, 1_000_000_000)
            images.publish(message)
            infos.publish(info)
            count += 1
            due = max(due + 1 / hz, time.monotonic())
    except KeyboardInterrupt:
        pass


if __name__ == "__main__":
    send(sys.argv[1], float(sys.argv[2]), np.load(sys.argv[3]))
