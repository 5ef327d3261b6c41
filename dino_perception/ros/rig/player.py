"""Plays recorded messages at their own pace, as the robot sent them: images raw, /clock along with them."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import rclpy
from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy
from rclpy.serialization import deserialize_message
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CompressedImage

from dino_perception.messages.images import ImageError, decode_compressed
from dino_perception.messages.types import RclpyTypes

COMPRESSED = "sensor_msgs/msg/CompressedImage"
IMAGES = (COMPRESSED, "sensor_msgs/msg/Image")
SETTLED_S = 1.0


@dataclass(frozen=True)
class Recorded:
    """One message of a bag: `time_ns` is when it was recorded, `data` its CDR bytes."""

    topic: str
    type: str
    time_ns: int
    data: bytes


@contextmanager
def playing_node(remaps: Sequence[str] = ()) -> Iterator[Node]:
    """A node with topics renamed as FROM:=TO, in a context of its own, so that a process which plays may also do other
    things with rclpy."""
    context = rclpy.Context()
    rclpy.init(args=[], context=context)
    try:
        renamed = [part for remap in remaps for part in ("-r", remap)]
        yield rclpy.create_node(
            "bag_player",
            context=context,
            cli_args=["--ros-args", *renamed] if renamed else None,
            enable_rosout=False,
            start_parameter_services=False,
        )
    finally:
        rclpy.try_shutdown(context=context)


class Player:
    """Publishers for `topics` (name -> type) on `node`.

    With `decode`, a CompressedImage on `<name>/compressed` comes out as the raw Image on `<name>`. Every publisher is
    reliable, which any subscriber matches; `latched` topics are transient local. Topics of a type that is not
    installed are left out and named in `left_out`.
    """

    def __init__(
        self,
        node: Node,
        topics: Mapping[str, str],
        *,
        decode: bool = True,
        latched: set[str] = frozenset(),
        clock_rate: float = 100.0,
    ):
        self._node, self._types, self._decode = node, RclpyTypes(), decode
        self.counts: Counter[str] = Counter()
        self.left_out: dict[str, str] = {}
        self.unreadable: dict[str, str] = {}
        """Topic -> why its latest undecodable image could not be decoded."""
        self._publishers: dict[str, Any] = {}
        for topic, kind in topics.items():
            if not self._types.available(kind):
                self.left_out[topic] = kind
                continue
            decoded = self._decodes(topic, kind)
            self._publishers[topic] = node.create_publisher(
                self._types.type("sensor_msgs/msg/Image" if decoded else kind),
                topic.removesuffix("/compressed") if decoded else topic,
                _qos(topic in latched),
            )
        self._images = {topic for topic in self._publishers if topics[topic] in IMAGES}
        self._clock = node.create_publisher(Clock, "/clock", _qos(False)) if clock_rate > 0 else None
        self._tick_s = 1 / clock_rate if clock_rate > 0 else float("inf")

    def wait_for_subscribers(self, seconds: float) -> bool:
        """Waits until somebody listens to an image topic (to anything, when there is none) and for `SETTLED_S` nobody
        else has joined, at most `seconds`. Readers of several topics find them one after another."""
        watched = [self._publishers[topic] for topic in self._images or self._publishers]
        until = time.monotonic() + seconds
        joined, since = 0, time.monotonic()
        while (now := time.monotonic()) < until:
            readers = sum(publisher.get_subscription_count() for publisher in self._publishers.values())
            if readers != joined:
                joined, since = readers, now
            if now - since >= SETTLED_S and any(publisher.get_subscription_count() for publisher in watched):
                return True
            time.sleep(0.02)
        return False

    def play(
        self,
        messages: Iterator[Recorded],
        rate: float = 1.0,
        played: Callable[[Recorded], None] = lambda _: None,
        ok: Callable[[], bool] = lambda: True,
    ) -> None:
        """Publishes `messages`, which come in the order of their times, `rate` times as fast as they were recorded.

        /clock says the bag's time, at its own rate and with every message. `played` is told of each message after it
        went out. Ends early when `ok` says no. Blocks.
        """
        start = now = None
        for message in messages:
            if message.topic not in self._publishers:
                continue
            ready = self._ready(message)  # decoded ahead of its time, so that decoding delays nothing
            if start is None:
                start, now = message.time_ns, message.time_ns
                began = time.monotonic()
            due = (message.time_ns - start) / 1e9 / rate
            while (left := due - (time.monotonic() - began)) > 0:
                if not ok():
                    return
                time.sleep(min(left, self._tick_s))
                now = min(message.time_ns, start + int((time.monotonic() - began) * rate * 1e9))
                self._say_time(now)
            if not ok():
                return
            if message.time_ns > now:
                now = message.time_ns
                self._say_time(now)
            if ready is not None:
                self._publishers[message.topic].publish(ready)
                self.counts[message.topic] += 1
                played(message)

    def topic_name(self, topic: str) -> str:
        """The name under which a recorded topic is published."""
        return self._publishers[topic].topic_name

    def close(self, seconds: float = 1.0) -> None:
        """Destroy the publishers, once their readers have what was sent or after `seconds`."""
        until = time.monotonic() + seconds
        for publisher in filter(None, [*self._publishers.values(), self._clock]):
            try:
                publisher.wait_for_all_acked(Duration(seconds=max(until - time.monotonic(), 0)))
            except RuntimeError:  # a context that is shutting down cannot wait
                pass
            self._node.destroy_publisher(publisher)

    def _decodes(self, topic: str, kind: str) -> bool:
        # image_transport's name for a camera's compressed pictures; depth and masks are compressed under other names.
        return self._decode and kind == COMPRESSED and topic.endswith("/compressed")

    def _ready(self, message: Recorded) -> Any:
        """What goes out: the recorded bytes, or the raw image (None when it cannot be decoded)."""
        if not self._decodes(message.topic, message.type):
            return message.data
        compressed = deserialize_message(message.data, CompressedImage)
        try:
            pixels = decode_compressed(compressed)
        except ImageError as error:
            self.unreadable[message.topic] = str(error)
            return None
        height, width = pixels.shape[:2]
        return self._types.make(
            "sensor_msgs/msg/Image",
            header=compressed.header,
            height=height,
            width=width,
            encoding="rgb8",
            step=3 * width,
            data=pixels,
        )

    def _say_time(self, now_ns: int) -> None:
        if self._clock is not None:
            message = Clock()
            message.clock.sec, message.clock.nanosec = divmod(now_ns, 1_000_000_000)
            self._clock.publish(message)


def _qos(latched: bool) -> QoSProfile:
    return QoSProfile(
        history=HistoryPolicy.KEEP_LAST,
        depth=10,
        reliability=ReliabilityPolicy.RELIABLE,
        durability=DurabilityPolicy.TRANSIENT_LOCAL if latched else DurabilityPolicy.VOLATILE,
    )
