"""Listens to topics and keeps every message as the bytes that came, with the time at which it was sent."""

from __future__ import annotations

import struct
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy
from rclpy.serialization import deserialize_message

from dino_perception.messages.types import RclpyTypes


@dataclass(frozen=True)
class Heard:
    """One message: `sent_ns` is when its publisher sent it (system clock), `data` its CDR bytes."""

    topic: str
    type: str
    sent_ns: int
    data: bytes

    @property
    def stamp_ns(self) -> int:
        """The stamp of a message that begins with a std_msgs/Header."""
        seconds, nanoseconds = struct.unpack_from(f"{self._order}iI", self.data, 4)
        return seconds * 1_000_000_000 + nanoseconds

    @property
    def frame_id(self) -> str:
        """The frame of a message that begins with a std_msgs/Header."""
        (length,) = struct.unpack_from(f"{self._order}I", self.data, 12)
        return bytes(self.data[16 : 16 + length - 1]).decode()  # the length counts the closing zero

    @property
    def _order(self) -> str:
        return "<" if self.data[1] & 1 else ">"  # the second byte of the CDR header is the byte order


class Watcher:
    """Hears `topics` (full name -> type), and /diagnostics, from construction to `close`, in a thread of its own.

    `latched` topics also deliver what was sent before. Nothing is dropped: a reader that asks for reliable delivery and
    keeps all. Messages are not unpacked while they come, so that watching costs little. With `most_bytes` only that
    much of each message is kept: a minute of point clouds does not fit into memory, their headers do.
    """

    def __init__(self, topics: Mapping[str, str], latched: set[str] = frozenset(), most_bytes: int | None = None):
        self.heard: dict[str, list[Heard]] = {topic: [] for topic in topics}
        self.diagnostics: dict[str, tuple[str, dict[str, str]]] = {}
        """Newest status a name: its sentence and its values."""
        self._most_bytes = most_bytes
        self._context = rclpy.Context()
        rclpy.init(args=[], context=self._context)  # not the arguments of this process
        self._node = rclpy.create_node(
            "watcher", context=self._context, enable_rosout=False, start_parameter_services=False
        )
        types = RclpyTypes()
        for topic, kind in topics.items():
            self._node.create_subscription(
                types.type(kind), topic, self._keeper(topic, kind), _qos(topic in latched), raw=True
            )
        if "/diagnostics" not in topics:
            self._node.create_subscription(DiagnosticArray, "/diagnostics", self._diagnose, 10)
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self._node)
        self._thread = threading.Thread(target=self._spin, daemon=True)
        self._thread.start()

    def offered(self) -> set[str]:
        """The topics that somebody publishes now."""
        return {topic for topic in self.heard if self._node.count_publishers(topic)}

    def close(self) -> None:
        self._executor.shutdown()
        self._thread.join(timeout=5)
        self._node.destroy_node()
        rclpy.try_shutdown(context=self._context)

    def _spin(self) -> None:
        try:
            self._executor.spin()
        except ExternalShutdownException:
            pass

    def _keeper(self, topic: str, kind: str) -> Any:
        def keep(data: bytes, info: Mapping[str, int]) -> None:
            self.heard[topic].append(Heard(topic, kind, info["source_timestamp"], data[: self._most_bytes]))
            if topic == "/diagnostics":
                self._diagnose(deserialize_message(data, DiagnosticArray))

        return keep

    def _diagnose(self, array: DiagnosticArray) -> None:
        for status in array.status:
            self.diagnostics[status.name] = (status.message, {value.key: value.value for value in status.values})


def _qos(latched: bool) -> QoSProfile:
    return QoSProfile(
        history=HistoryPolicy.KEEP_ALL,
        reliability=ReliabilityPolicy.RELIABLE,
        durability=DurabilityPolicy.TRANSIENT_LOCAL if latched else DurabilityPolicy.VOLATILE,
    )
