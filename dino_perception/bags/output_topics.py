"""The topics that a replay writes, as the live node offers them."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from dino_perception.bags.storage.topic import Topic, qos
from dino_perception.messages.odometry import TF
from dino_perception.messages.topics import TOPICS
from dino_perception.messages.types import RosbagsTypes

NODE = "/dino_perception"
"""The live node's name, below which its topics lie."""


def transforms_topic(types: RosbagsTypes) -> Topic:
    """/tf, as tf2 offers it."""
    kind = "tf2_msgs/msg/TFMessage"
    definition, _ = types.typestore.generate_msgdef(kind, ros_version=2)
    return Topic(TF, kind, definition, "ros2msg", types.typestore.hash_rihs01(kind), qos(100))


def output_topics(types: RosbagsTypes, camera: str, cameras: int, wanted: Collection[str]) -> Mapping[str, Topic]:
    """Relative name -> the topic as the live node offers it, in the order in which a frame's messages are written."""
    prefix = f"{NODE}/" if cameras == 1 else f"{NODE}/{camera}/"
    found = {}
    for name, about in TOPICS.items():
        if name in wanted:
            offered = qos(1, durability="transient_local") if about.latched else qos(2)
            definition, _ = types.typestore.generate_msgdef(about.type, ros_version=2)
            found[name] = Topic(
                prefix + name, about.type, definition, "ros2msg", types.typestore.hash_rihs01(about.type), offered
            )
    return found
