"""How high a camera stands by its depth, and by what it was told: the two tell whether distances can be believed."""

from __future__ import annotations

import collections
import statistics
import threading
import time

from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy

from dino_perception.perception.frame import Percept
from dino_perception.perception.ground_plane import ground_plane
from dino_perception.perception.transforms import TransformTree

LOOK_S = 1.0
"""Seconds between two looks at the ground, at least."""
KEPT, LEAST = 15, 5
"""Heights of which the median is taken, and how many there must be: one view may see a slope or a step."""
OFF = 0.15
"""Relative difference from which distances are not to be believed."""


class GroundHeights:
    """Recent heights of one camera above the ground that it saw, in metres, by its estimated depth."""

    def __init__(self) -> None:
        self.frame_id = ""
        self._heights: collections.deque[float] = collections.deque(maxlen=KEPT)
        self._last_s = float("-inf")

    def look(self, percept: Percept) -> None:
        """Measure a percept that has depth and classes, unless the last measurement is fresh."""
        now = time.monotonic()
        if percept.depth is None or percept.segmentation is None or now - self._last_s < LOOK_S:
            return
        self._last_s = now
        plane = ground_plane(percept)
        if plane is not None:
            self.frame_id = percept.frame.frame_id
            self._heights.append(plane.height)

    def metres(self) -> float | None:
        """The median; None while there are too few."""
        heights = list(self._heights)
        return statistics.median(heights) if len(heights) >= LEAST else None


class StaticFrames:
    """The fixed frames of the robot, from /tf_static. Where a camera moves on its mast there is no fixed height."""

    def __init__(self, node: Node, transforms: type | None):
        """`transforms` is tf2_msgs/msg/TFMessage, None where that package is not installed."""
        self.tree, self._lock = TransformTree(), threading.Lock()
        if transforms is not None:
            latched = QoSProfile(
                depth=100, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL
            )
            node.create_subscription(transforms, "/tf_static", self._add, latched)

    def height(self, frame: str, ground: str) -> float | None:
        """Metres of a frame's origin over that of the frame `ground`, along the latter's z; None when no fixed
        transforms lead from the one to the other. Any thread may ask."""
        with self._lock:
            return self.tree.height(frame, ground)

    def _add(self, message) -> None:
        with self._lock:
            self.tree.add_fixed(message)


def disagreement(by_depth: float | None, told: float | None, by: str) -> str:
    """A sentence when the two heights differ by more than 15 %; empty when they agree or one is not known."""
    if by_depth is None or not told or told < 0 or abs(by_depth / told - 1) <= OFF:
        return ""
    way = "long" if by_depth > told else "short"
    return (
        f"the camera stands {by_depth:.2f} m over the ground by its estimated depth, but {told:.2f} m by {by}: distances "
        f"come out {abs(by_depth / told - 1):.0%} too {way}, if the latter is right"
    )
