"""The way of each camera through a recording, by its odometry, and as a file that trajectory tools read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from dino_perception.bags.camera_height import height_in
from dino_perception.bags.cameras import CameraTopics
from dino_perception.bags.feed import Part, each_frame
from dino_perception.bags.robot import told_by_robot
from dino_perception.bags.storage.reader import BagReader
from dino_perception.messages.intake import Intake
from dino_perception.messages.odometry import quaternion
from dino_perception.messages.types import RosbagsTypes
from dino_perception.perception.perceiver import FrameError, Perceiver
from dino_perception.perception.pose import Pose
from dino_perception.perception.settings import Settings


@dataclass
class Trajectory:
    """The poses of one camera, or of the frame that it is mounted on, with the stamps of their images in nanoseconds, and
    the odometry's last word on its health."""

    stamps_ns: list[int] = field(default_factory=list)
    poses: list[Pose] = field(default_factory=list)
    health: dict[str, object] = field(default_factory=dict)

    @property
    def metres(self) -> float:
        """The length of the way."""
        positions = np.array([pose.position for pose in self.poses]).reshape(-1, 3)
        return float(np.linalg.norm(np.diff(positions, axis=0), axis=1).sum())

    def tum(self) -> str:
        """A line a pose: seconds, x y z, and the quaternion x y z w; the format of the TUM RGB-D benchmark (Sturm et al.
        2012), which evo reads. Only the last era: poses of different ones do not belong together."""
        lines = ["# timestamp tx ty tz qx qy qz qw"]
        last = self.poses[-1].era if self.poses else 0
        for stamp_ns, pose in zip(self.stamps_ns, self.poses):
            if pose.era == last:
                seconds, rest = divmod(stamp_ns, 10**9)
                numbers = " ".join(f"{number:.9f}" for number in (*pose.position, *quaternion(pose.rotation)))
                lines.append(f"{seconds}.{rest:09d} {numbers}")
        return "\n".join(lines) + "\n"


def trajectories(
    bag: BagReader,
    cameras: Sequence[CameraTopics],
    perceiver: Perceiver,
    settings: Settings,
    part: Part,
    progress: Callable[[int], None] = lambda done: None,
) -> dict[str, Trajectory]:
    """Camera -> its way, as a replay would write it to ~/odometry; frames that cannot be used are left out."""
    intake = Intake(perceiver, settings, RosbagsTypes(), height_in(bag, settings))
    told_by_robot(intake.odometry, bag, settings)
    found = {camera.name: Trajectory() for camera in cameras}
    for number, frame in enumerate(each_frame(bag, cameras, part)):
        progress(number)
        order = intake.order(frame.camera, frame.stamp_ns, {"odometry"})
        if not order.topics:
            continue
        try:
            percept = perceiver.perceive([frame], [order.heads])[0]
        except FrameError:
            continue
        pose = intake.followed(intake.scaled(percept), order.topics).pose
        perceiver.prepare()
        if pose is not None and settings.odometry.child_frame:
            pose = pose.of_child()
        if pose is not None and pose.covariance is not None:
            found[frame.camera].stamps_ns.append(frame.stamp_ns)
            found[frame.camera].poses.append(pose)
    for name, trajectory in found.items():
        trajectory.health = intake.odometry.health(name)
    return found
