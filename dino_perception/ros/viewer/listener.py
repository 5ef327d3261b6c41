"""The viewer's ears: finds the node's topics and keeps the newest picture of each, but only while somebody looks."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import cv2
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.qos import QoSProfile, ReliabilityPolicy

from dino_perception.messages.images import decode_image
from dino_perception.messages.topics import known
from dino_perception.messages.types import RclpyTypes
from dino_perception.ros.viewer.birdseye import birdseye

log = logging.getLogger(__name__)

IMAGE, CLOUD = "sensor_msgs/msg/Image", "sensor_msgs/msg/PointCloud2"
NEWEST = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
WIDEST = 960
"""Pictures are made no wider than this before they are sent."""


@dataclass
class Channel:
    """One picture of the page: `number` counts its pictures, `jpeg` is the newest."""

    topic: str
    number: int = 0
    jpeg: bytes = b""
    problem: str = ""
    times: deque[float] = field(default_factory=lambda: deque(maxlen=30))

    def rate_hz(self) -> float:
        """Pictures a second over the last ones; 0 when none came for two seconds."""
        if len(self.times) < 2 or time.monotonic() - self.times[-1] > 2:
            return 0.0
        return (len(self.times) - 1) / max(self.times[-1] - self.times[0], 1e-6)


class Listener:
    """Its ROS node runs in a thread of its own from construction to `close`.

    `most_hz` limits how often a picture is made of one topic. While `watched` is false it has no subscription but
    /diagnostics, so the perception node draws nothing.
    """

    def __init__(self, most_hz: float = 10.0):
        self.channels: dict[str, Channel] = {}
        """Topic -> its channel, cameras before what is drawn from them."""
        self.status: dict[str, dict[str, Any]] = {}
        """Newest diagnostics a name: level 0..3, message, values."""
        self.watched = False
        self._gap_s = 1 / most_hz
        self._context = rclpy.Context()
        rclpy.init(args=[], context=self._context)
        self._node = rclpy.create_node("viewer", context=self._context, enable_rosout=False)
        self._types = RclpyTypes()
        self._subscriptions: dict[str, Any] = {}
        self._node.create_subscription(DiagnosticArray, "/diagnostics", self._diagnose, 10)
        self._node.create_timer(0.5, self._adjust)
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self._node)
        self._thread = threading.Thread(target=self._spin, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._executor.shutdown()
        self._thread.join(timeout=5)
        self._node.destroy_node()
        rclpy.try_shutdown(context=self._context)

    def _spin(self) -> None:
        while True:
            try:
                self._executor.spin()
                return
            except ExternalShutdownException:
                return
            except Exception:  # a message that cannot be shown ends no viewer
                log.warning("the viewer goes on after an error", exc_info=True)

    def _adjust(self) -> None:
        """Subscribe to what there is while somebody looks, and to nothing else."""
        wanted = self._there() if self.watched else {}
        for topic in self._subscriptions.keys() - wanted.keys():
            self._node.destroy_subscription(self._subscriptions.pop(topic))
            self.channels.pop(topic, None)
        for topic, kind in wanted.items():
            if topic not in self._subscriptions:
                self.channels[topic] = Channel(topic)
                callback = self._keeper(topic, birdseye if kind == CLOUD else decode_image)
                self._subscriptions[topic] = self._node.create_subscription(
                    self._types.type(kind), topic, callback, NEWEST
                )
        if list(self.channels) != list(wanted):
            self.channels = {topic: self.channels[topic] for topic in wanted}

    def _there(self) -> dict[str, str]:
        """Topic -> type of everything that can be shown: the cameras that perception nodes listen to, then what these
        nodes draw, then their clouds."""
        topics = {name: kinds[0] for name, kinds in self._node.get_topic_names_and_types()}
        drawn = {name: kind for name, kind in topics.items() if (row := known(name)) and row.kind == "picture"}
        clouds = {
            name: kind for name, kind in topics.items() if kind == CLOUD and (row := known(name)) and row.kind == "data"
        }
        makers = {
            (info.node_name, info.node_namespace)
            for name in (*drawn, *clouds)
            for info in self._node.get_publishers_info_by_topic(name)
        }
        cameras: dict[str, str] = {}
        for name, namespace in makers:
            if "UNKNOWN" in name:  # discovered, but not yet by name
                continue
            heard = self._node.get_subscriber_names_and_types_by_node(name, namespace)
            cameras.update({topic: IMAGE for topic, kinds in heard if IMAGE in kinds})
        return {**dict(sorted(cameras.items())), **drawn, **dict(sorted(clouds.items()))}

    def _keeper(self, topic: str, picture_of: Callable) -> Callable:
        def keep(message: Any) -> None:
            channel, now = self.channels.get(topic), time.monotonic()
            if channel is None or (channel.times and now - channel.times[-1] < self._gap_s):
                return
            try:
                picture = picture_of(message)
                if picture.shape[1] > WIDEST:
                    height = round(picture.shape[0] * WIDEST / picture.shape[1])
                    picture = cv2.resize(picture, (WIDEST, height), interpolation=cv2.INTER_AREA)
                good, jpeg = cv2.imencode(".jpg", picture[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 80])
            except (ValueError, cv2.error) as error:
                channel.problem = str(error)
                return
            if good:
                channel.jpeg, channel.number, channel.problem = jpeg.tobytes(), channel.number + 1, ""
                channel.times.append(now)

        return keep

    def _diagnose(self, array: DiagnosticArray) -> None:
        for status in array.status:
            level = status.level[0] if isinstance(status.level, bytes) else int(status.level)
            values = {value.key: value.value for value in status.values}
            self.status[status.name] = {"level": level, "message": status.message, "values": values}
