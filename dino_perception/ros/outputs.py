"""A camera's way out: its publishers, and who listens to them."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from typing import Any

from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy
from rclpy.utilities import get_rmw_implementation_identifier

from dino_perception.messages.odometry import TF
from dino_perception.messages.topics import TOPICS
from dino_perception.ros.large_messages import VARIABLES

DATA = QoSProfile(
    history=HistoryPolicy.KEEP_LAST,
    depth=2,
    reliability=ReliabilityPolicy.RELIABLE,
    durability=DurabilityPolicy.VOLATILE,
)
LATCHED = QoSProfile(
    history=HistoryPolicy.KEEP_LAST,
    depth=1,
    reliability=ReliabilityPolicy.RELIABLE,
    durability=DurabilityPolicy.TRANSIENT_LOCAL,
)
TRANSFORMS = QoSProfile(
    history=HistoryPolicy.KEEP_LAST,
    depth=100,
    reliability=ReliabilityPolicy.RELIABLE,
    durability=DurabilityPolicy.VOLATILE,
)
"""As tf2's broadcaster has it."""

FITS = 450_000
"""Bytes that Fast DDS's own shared-memory segment (512 KiB) passes on to a best-effort reader without loss."""


class CameraOutputs:
    """Publishers of one camera from construction to `close`; with `transforms`, of /tf too. `warn` is told once when a
    message is larger than the middleware passes on as it is set up."""

    def __init__(
        self,
        node: Node,
        prefix: str,
        topics: Collection[str],
        types: Any,
        warn: Callable[[str], None],
        transforms: bool = False,
    ):
        self._node, self._warn = node, warn
        self._publishers = {
            name: node.create_publisher(
                types.type(TOPICS[name].type), f"~/{prefix}{name}", LATCHED if TOPICS[name].latched else DATA
            )
            for name in topics
        }
        if transforms:
            self._publishers[TF] = node.create_publisher(types.type("tf2_msgs/msg/TFMessage"), TF, TRANSFORMS)
        self._watch_sizes = needs_profile()

    @property
    def topics(self) -> list[str]:
        """The topics (relative names) that there are publishers for."""
        return list(self._publishers)

    def listened(self) -> set[str]:
        """The frame-by-frame topics (relative names) that somebody subscribes to now."""
        return {
            name
            for name, publisher in self._publishers.items()
            if name != TF and not TOPICS[name].latched and publisher.get_subscription_count() > 0
        }

    def publish(self, messages: Mapping[str, Any]) -> None:
        """Send messages by relative topic name."""
        for name, message in messages.items():
            if name == TF and name not in self._publishers:
                continue
            if self._watch_sizes and len(getattr(message, "data", ())) > FITS:
                self._too_large(name, len(message.data))
            self._publishers[name].publish(message)

    def close(self) -> None:
        """Destroy the publishers."""
        for publisher in self._publishers.values():
            self._node.destroy_publisher(publisher)
        self._publishers = {}

    def _too_large(self, name: str, size: int) -> None:
        self._watch_sizes = False
        self._warn(
            f"{self._publishers[name].topic_name} sends messages of {size / 1e6:.1f} MB, which Fast DDS with "
            "its own settings loses on the way to a best-effort reader; start the node with the launch file, "
            f"or set {VARIABLES[0]} to config/fastdds/large_images.xml of this package"
        )


def needs_profile() -> bool:
    """Whether large messages get lost as this process is set up: Fast DDS without a profile of the user's choice."""
    fast_dds = "fastrtps" in get_rmw_implementation_identifier()
    return fast_dds and not any(os.environ.get(name) for name in VARIABLES)
