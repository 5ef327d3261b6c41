"""The frames of the robot that do not move, as a recording has them."""

from __future__ import annotations

from rosbags.serde import SerdeError

from dino_perception.bags.storage.reader import BagReader
from dino_perception.perception.transforms import TransformTree

KIND = "tf2_msgs/msg/TFMessage"


def fixed_frames(bag: BagReader) -> TransformTree:
    """What the topics named tf_static say, wherever in the bag; of two that contradict each other the last is right."""
    tree = TransformTree()
    names = [name for name, topic in bag.topics.items() if name.endswith("/tf_static") and topic.type == KIND]
    for number, record in enumerate(bag.messages(names) if names else ()):
        try:
            transforms = bag.decode(record).transforms
        except (SerdeError, KeyError):
            continue
        for one in transforms:
            move, turn = one.transform.translation, one.transform.rotation
            tree.add(
                one.header.frame_id, one.child_frame_id, number, (move.x, move.y, move.z),
                (turn.x, turn.y, turn.z, turn.w), static=True,
            )  # fmt: skip
    return tree
