"""What a recording says of the robot itself: its frames that do not move, and its own odometry."""

from __future__ import annotations

from rosbags.serde import SerdeError

from dino_perception.bags.storage.problems import USAGE, BagError
from dino_perception.bags.storage.reader import BagReader
from dino_perception.perception.odometry.cameras import Odometry
from dino_perception.perception.odometry.wheels import Wheels
from dino_perception.perception.settings import Settings
from dino_perception.perception.transforms import TransformTree

KIND, ODOMETRY = "tf2_msgs/msg/TFMessage", "nav_msgs/msg/Odometry"


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


def told_by_robot(odometry: Odometry, bag: BagReader, settings: Settings) -> None:
    """Give odometry what it wants of the robot. Raises BagError where the recording has no such topic."""
    if settings.odometry.child_frame:
        odometry.frames = fixed_frames(bag)
    if settings.odometry.wheels:
        odometry.wheels = wheels(bag, settings.odometry.wheels)


def wheels(bag: BagReader, topic: str) -> Wheels:
    """The robot's own odometry in a recording: all positions of a topic of nav_msgs/Odometry. Raises BagError where it is
    none."""
    there = bag.topics.get(topic)
    if there is None or there.type != ODOMETRY:
        what = f"is of type {there.type}" if there else "is not in the bag"
        raise BagError(f"'odometry.wheels' is {topic}, which {what}; name a topic of {ODOMETRY}", USAGE)
    heard = Wheels()
    for record in bag.messages([topic]):
        try:
            message = bag.decode(record)
        except (SerdeError, KeyError):
            continue
        at, stamp = message.pose.pose.position, message.header.stamp
        heard.hear(stamp.sec * 1_000_000_000 + stamp.nanosec, (at.x, at.y, at.z))
    return heard
