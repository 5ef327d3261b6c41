"""The odometry of one camera: a pose for each of its frames, in order."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dino_perception.perception.frame import CameraModel, Correspondences, Percept
from dino_perception.perception.odometry import consensus, covariances
from dino_perception.perception.odometry.keyframe import (
    MOST,
    Keyframe,
    View,
    begun,
    camera_height,
    handed_over,
    on_plane,
    rescaled,
    spread,
)
from dino_perception.perception.odometry.motion import FEWEST, Motion, Rays, deepen, turn, turned_by
from dino_perception.perception.odometry.scale import OF_HEIGHT, Scale
from dino_perception.perception.odometry.start import start
from dino_perception.perception.odometry.wheels import Wheels
from dino_perception.perception.pose import GOOD, LOST, WEAK, Pose

PIXELS = 0.3
"""Error of a match in pixels of the image, one standard deviation an axis."""
SHARED = 0.6
"""Share of a key frame's points below which the frame before becomes the key frame, where matches are of that one."""
MANY, SOME = 30, 12
"""Agreeing points for a pose that is good, and for one at all."""
MOST_AGREE, SOME_AGREE = 0.5, 0.25
"""The same as shares of the matches."""
COAST_S = 0.5
"""For so long a camera that sees nothing is taken to go on as it did; then to stand still."""
UNSEEN = 1.0
"""Metres a second by which it may have moved otherwise."""
PACE = 10.0
"""Metres a second squared: a step that needs more is a wrong answer, not a motion."""
SLACK = 0.3
"""Metres that a step may be long whatever the speed."""


BASELINE = 0.15
"""Way over the height of the camera from which the points of two views tell that height."""
SHORTEST_ROLL, TURNED = 0.15, 0.15
"""Metres between two key frames from which the wheels are asked, and radians up to which."""


@dataclass(frozen=True, eq=False)
class Step:
    """The motion of the camera over the frame before: `twist` (6,) and its covariance, metres and radians a second."""

    twist: np.ndarray
    covariance: np.ndarray


class Odometer:
    """Follows one camera. `camera_height` (metres, 0: not known) is how high it stands over the ground, `wheels` the robot's
    own odometry: what there is of them sets the scale."""

    def __init__(self, camera_height: float = 0.0, wheels: Wheels | None = None):
        self.wheels = wheels
        self.camera_height = camera_height
        self.mount: np.ndarray | None = None
        """(4, 4): the optical frame in that of the robot, where that is asked for and known."""
        self.scale = Scale()
        self.depth_factor = 1.0  # of estimated depth, as wheels or a height have taught it
        self.era = 0
        self.levelled = ""
        self.keyframe: Keyframe | None = None
        self.last: View | None = None
        self.reference: View | None = None  # what the points of the last matches were matched with
        self.step: Step | None = None
        self.relative = np.zeros((6, 6))  # covariance of the motion since the key frame
        self.height: float | None = None  # of the key frame's camera, in the metres of its points
        self.seen_ns = 0  # when it last saw how it moved
        self.origin = np.zeros(3)

    def follow(self, percept: Percept) -> Pose | None:
        """The pose of the next frame; None for one whose matches were not asked for."""
        matches = percept.correspondences
        if matches is None:
            return None
        stamp_ns = percept.frame.stamp_ns
        if percept.output_camera is None:
            return self._blind(percept, percept.camera_problem or "the camera is not calibrated")
        if self.last is None or stamp_ns < self.last.stamp_ns:
            return self._begin(percept)
        if stamp_ns == self.last.stamp_ns:
            return self._told(LOST, "two frames have one stamp", self.last, None)
        if not len(matches.x):
            return self._carry_on(percept, "no points were found again")
        keyframe = self._keyframe(matches)
        if keyframe is None:
            return self._carry_on(percept, "the frame that is matched with was not seen")
        self.keyframe = keyframe
        return self._place(percept, keyframe)

    def anew(self) -> None:
        """The next frame begins a new era, whatever its stamp."""
        if self.last is not None:
            self.era += 1
        self.last = self.keyframe = self.reference = self.step = self.height = None
        self.scale = Scale()

    # Key frames

    def _keyframe(self, matches: Correspondences) -> Keyframe | None:
        """The key frame that these matches are to be measured from."""
        old = self.keyframe
        if matches.reference_stamp_ns == self.last.stamp_ns:
            self.reference = self.last
        if old is not None:
            if matches.reference_stamp_ns == old.view.stamp_ns:
                return old.extended(matches)
            if len(old.find(matches.track_id)[0]) >= max(MANY, SHARED * len(old)):
                return old
        view = self.reference
        if view is None or matches.reference_stamp_ns != view.stamp_ns:
            return None
        if old is None:
            self.relative = np.zeros((6, 6))
            return begun(view, matches, spread(np.arange(len(matches.x)), MOST))
        self.scale.handed_on()
        self.relative = np.zeros((6, 6))
        sigma = self._sigma(view.camera, view.scale)
        rolled = self.scale.told(self._by_wheels(old.view, view))
        if rolled is not None:
            self.depth_factor = float(np.clip(self.depth_factor / rolled[1], 0.5, 2.0))
            return handed_over(old, view, matches, sigma, rolled[0], self.depth_factor)[0]
        if self.scale.source == "wheels":  # they say nothing just now
            return handed_over(old, view, matches, sigma, 1.0, self.depth_factor)[0]
        made, by_depth = handed_over(old, view, matches, sigma)
        height, self.height = self.height, None
        divided = self.scale.measured(height / self.camera_height, OF_HEIGHT) if height and self.camera_height else 1.0
        return rescaled(made, 1 / (divided * self.scale.measured(by_depth and by_depth / divided)))

    def _by_wheels(self, before: View, view: View) -> float | None:
        """Metres by odometry over those by the wheels, between two key frames; None where they are too near to each other to
        tell, or where the robot turned: its camera went another way than its middle."""
        if self.wheels is None or self.mount is None:  # a camera on a mast goes another way than the wheels below it
            return None
        step = self.mount @ np.linalg.inv(before.pose) @ view.pose @ np.linalg.inv(self.mount)
        seen = float(np.linalg.norm(step[:3, 3]))
        rolled = self.wheels.metres(before.stamp_ns, view.stamp_ns)
        if rolled is None or min(seen, rolled) < SHORTEST_ROLL or np.linalg.norm(turned_by(step[:3, :3])) > TURNED:
            return None
        return seen / rolled

    # Motion

    def _place(self, percept: Percept, keyframe: Keyframe) -> Pose:
        matches, camera, scale = percept.correspondences, percept.output_camera, percept.output_scale
        theirs, own = keyframe.find(matches.track_id)
        seen = on_plane(camera, scale, matches.x[theirs], matches.y[theirs])
        fine = np.isfinite(seen).all(1)
        rays, seen = keyframe.rays[own[fine]], seen[fine]
        if len(rays) < FEWEST:
            return self._carry_on(percept, f"{len(rays)} points were found again")
        sigma = self._sigma(camera, scale)
        motion = self._motion(percept.frame.stamp_ns, keyframe, rays, seen, sigma)
        if motion is None or motion.inliers.sum() < SOME or motion.share < SOME_AGREE:
            count = 0 if motion is None else int(motion.inliers.sum())
            return self._carry_on(percept, f"{count} of {len(rays)} points agree on a motion")
        pose = keyframe.view.pose @ _inverse(motion.rotation, motion.translation)
        if self.camera_height and self.height is None:
            self._look_at_ground(keyframe.view, rays[motion.inliers], seen[motion.inliers], motion, sigma)
        dt = (percept.frame.stamp_ns - self.last.stamp_ns) / 1e9
        blind_s = (percept.frame.stamp_ns - self.seen_ns) / 1e9
        speed = 0.0 if self.step is None else float(np.linalg.norm(self.step.twist[:3]))
        length = float(np.linalg.norm(pose[:3, 3] - self.last.pose[:3, 3]))
        if length > (speed + PACE * blind_s) * blind_s + SLACK:
            return self._carry_on(percept, f"the matches say {length:.1f} m within {dt:.2f} s")
        covariance = covariances.composed(keyframe.view.pose, keyframe.view.covariance, motion)
        view = View.of(percept, pose, covariance, bool(self.camera_height))
        step = covariances.velocity(self.last.pose, pose, self.relative, motion, self.scale.error, dt)
        self.relative = motion.covariance
        self.seen_ns = view.stamp_ns
        agreeing = int(motion.inliers.sum())
        health, reason = GOOD, ""
        if agreeing < MANY or motion.share < MOST_AGREE:
            health, reason = WEAK, f"{agreeing} of {len(rays)} points agree on the motion"
        elif keyframe.known < 0.2:
            health, reason = WEAK, "there is no depth, so that metres are a guess"
        self.last, self.step = view, Step(*step)
        return self._told(health, reason, view, self.step)

    def _look_at_ground(self, view: View, rays: Rays, seen: np.ndarray, motion: Motion, sigma: float) -> None:
        """Once a key frame, when the camera has moved enough to measure the ground nearby and still sees it."""
        if np.linalg.norm(motion.translation) > BASELINE * self.camera_height:
            self.height = camera_height(view, deepen(rays, seen, sigma, motion))

    def _motion(self, stamp_ns: int, keyframe: Keyframe, rays: Rays, seen: np.ndarray, sigma: float) -> Motion | None:
        """From where the camera should be by now; where that does not explain most points, from scratch."""
        guess = np.linalg.inv(self._expected(stamp_ns)) @ keyframe.view.pose
        return consensus.best_motion(rays, seen, sigma, guess[:3, :3], guess[:3, 3])

    def _expected(self, stamp_ns: int) -> np.ndarray:
        """(4, 4): the pose if the camera goes on as it did."""
        if self.step is None:
            return self.last.pose
        dt = (stamp_ns - self.last.stamp_ns) / 1e9
        pose = self.last.pose.copy()
        pose[:3, 3] += pose[:3, :3] @ self.step.twist[:3] * dt
        pose[:3, :3] = pose[:3, :3] @ turn(self.step.twist[3:] * dt)
        return pose

    # Where there is none

    def _begin(self, percept: Percept) -> Pose:
        self.anew()
        pose, self.levelled = start(percept, self.camera_height, self.mount)
        self.origin = pose[:3, 3].copy()
        self.last = View.of(percept, pose, np.zeros((6, 6)), bool(self.camera_height))
        self.relative = np.zeros((6, 6))
        self.seen_ns = self.last.stamp_ns
        return self._told(GOOD, "", self.last, None)

    def _carry_on(self, percept: Percept, reason: str) -> Pose:
        """The camera sees nothing of its motion."""
        stamp_ns = percept.frame.stamp_ns
        blind_s = (stamp_ns - self.seen_ns) / 1e9
        if blind_s > COAST_S:
            self.step = None
        pose = self._expected(stamp_ns)
        dt = (stamp_ns - self.last.stamp_ns) / 1e9
        covariance = self.last.covariance.copy()
        covariance[:3, :3] += np.eye(3) * UNSEEN**2 * (blind_s**2 - (blind_s - dt) ** 2)
        covariance[3:, 3:] += np.eye(3) * (0.5 * UNSEEN) ** 2 * (blind_s**2 - (blind_s - dt) ** 2)
        self.last = View.of(percept, pose, covariance, bool(self.camera_height))
        self.keyframe = self.height = None
        return self._told(LOST, reason, self.last, None)

    def _blind(self, percept: Percept, reason: str) -> Pose:
        """A frame without a camera model is not placed, and says nothing of where the next one is."""
        pose = np.eye(4) if self.last is None else self.last.pose
        if self.last is None:
            pose[:3, :3] = [[0, 0, 1], [-1, 0, 0], [0, -1, 0]]
        return Pose(pose[:3, 3], pose[:3, :3], None, LOST, era=self.era, reason=reason)

    def _told(self, health: str, reason: str, view: View, step: Step | None) -> Pose:
        way = view.pose[:3, 3] - self.origin
        covariance = view.covariance.copy()
        covariance[:3, :3] += self.scale.error**2 * np.outer(way, way)
        twist = (None, None) if step is None else (step.twist, step.covariance)
        return Pose(
            view.pose[:3, 3].copy(),
            view.pose[:3, :3].copy(),
            covariance,
            health,
            "visual",
            self.era,
            *twist,
            reason,
            self.mount,
        )

    def _sigma(self, camera: CameraModel, scale: tuple[float, float]) -> float:
        """The error of a match on the plane z = 1."""
        return PIXELS * scale[0] / camera.k[0, 0]


def _inverse(rotation: np.ndarray, translation: np.ndarray) -> np.ndarray:
    pose = np.eye(4)
    pose[:3, :3] = rotation.T
    pose[:3, 3] = -rotation.T @ translation
    return pose
