"""Odometry against motions that are known exactly: what is seen is computed, not rendered."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from seen_drives import STEP_NS, curve, percepts, pose

from dino_perception.models.label_sets import Label
from dino_perception.perception.frame import Percept, Segmentation
from dino_perception.perception.odometry.cameras import Odometry
from dino_perception.perception.odometry.motion import Rays, refine, turn, turned_by
from dino_perception.perception.odometry.odometer import Odometer
from dino_perception.perception.odometry.wheels import Wheels
from dino_perception.perception.pose import Pose
from dino_perception.perception.settings import Settings


def followed(drive, odometer: Odometer | None = None) -> list[Pose]:
    odometer = odometer or Odometer()
    return [odometer.follow(percept) for percept in drive]


def errors(found: list[Pose], poses: list[np.ndarray]) -> np.ndarray:
    """Metres from the truth, once both begin at one place."""
    together = poses[0] @ np.linalg.inv(found[0].matrix)
    return np.array([np.linalg.norm((together @ f.matrix)[:3, 3] - p[:3, 3]) for f, p in zip(found, poses)])


@pytest.mark.parametrize("reference", ["keyframe", "previous"])
def test_a_known_motion_is_found_to_a_millimetre(reference):
    poses = curve(40)
    found = followed(percepts(poses, reference=reference))
    assert errors(found, poses).max() < 1e-3
    assert {f.health for f in found} == {"good"}
    turned = [
        turned_by(f.rotation.T @ found[0].rotation @ poses[0][:3, :3].T @ p[:3, :3]) for f, p in zip(found, poses)
    ]
    assert np.abs(turned).max() < 1e-3
    # The twist of the camera: 0.8 m/s along where it looks, but for the tilt, and 0.1 rad/s to the left.
    assert np.linalg.norm(found[-1].twist[:3]) == pytest.approx(0.8, abs=0.01)
    assert found[-1].twist[4] == pytest.approx(-0.1 * np.cos(0.2), abs=2e-3)


def test_odom_begins_on_the_ground_below_the_camera_level_and_looks_ahead():
    first = followed(percepts([pose(0.0, down=0.3, height=1.2)]))[0]
    assert np.allclose(first.position, [0, 0, 1.2], atol=1e-3)
    ahead = first.rotation @ [0, 0, 1]
    assert np.allclose(ahead, [np.cos(0.3), 0, -np.sin(0.3)], atol=1e-3)


def test_with_a_mount_odom_begins_where_the_robot_stands():
    poses, odometer = curve(10), Odometer()
    odometer.mount = pose(0.4, y=0.1, height=0.8)  # ahead of and beside the robot's own frame
    found = followed(percepts(poses), odometer)
    base = [f.of_child() for f in found]
    assert np.allclose(base[0].matrix, np.eye(4), atol=2e-3)
    truth = [p @ np.linalg.inv(odometer.mount) for p in poses]
    assert np.allclose(base[-1].matrix, np.linalg.inv(truth[0]) @ truth[-1], atol=3e-3)


def test_four_of_ten_matches_may_be_nonsense():
    poses = curve(25)
    found = followed(percepts(poses, outliers=0.4, noise=0.1))
    assert errors(found, poses).max() < 0.02


def test_rocks_that_slide_are_not_believed():
    poses = curve(25)
    found = followed(percepts(poses, moving=0.3))
    assert errors(found, poses).max() < 5e-3


def test_a_pure_rotation_moves_nothing():
    poses = [pose(0.0, yaw=0.02 * i) for i in range(25)]
    found = followed(percepts(poses, noise=0.1, depth_noise=0.1))
    assert errors(found, poses).max() < 0.03
    assert turned_by(found[0].rotation.T @ found[-1].rotation)[1] == pytest.approx(-0.48 * np.cos(0.2), abs=0.01)


def test_a_camera_that_stands_still_stays():
    poses = [pose(1.0)] * 40
    found = followed(percepts(poses, noise=0.2, depth_noise=0.1))
    assert errors(found, poses).max() < 0.01
    assert errors(found[-20:], poses[-20:]).mean() < 0.01  # no drift either
    assert {f.health for f in found} == {"good"}


def test_time_that_goes_back_begins_a_new_era_at_the_origin():
    poses = curve(10)
    stamps = [*(np.arange(6) * STEP_NS + 10**10).tolist(), *(np.arange(4) * STEP_NS).tolist()]
    found = followed(percepts(poses, stamps=stamps))
    assert [f.era for f in found] == [0] * 6 + [1] * 4
    assert np.allclose(found[6].matrix, found[0].matrix, atol=1e-3)


def test_without_depth_the_way_is_right_but_for_its_length_and_its_health_is_weak():
    poses = curve(20, step=0.15)
    found = followed(percepts(poses, with_depth=False))
    assert {f.health for f in found[1:]} == {"weak"}
    assert "metres are a guess" in found[-1].reason
    steps = np.diff([f.position for f in found], axis=0)
    assert np.linalg.norm(steps, axis=1).max() < 2.0


def test_frames_in_which_nothing_is_found_are_lost_and_never_a_jump():
    poses = curve(30)
    drive = list(percepts(poses))
    for number in range(12, 15):
        some = drive[number].correspondences
        few = {name: getattr(some, name)[:5] for name in ("track_id", "x", "y", "reference_x", "reference_y", "score")}
        drive[number] = dataclasses.replace(drive[number], correspondences=dataclasses.replace(some, **few))
    found = followed(drive)
    assert [f.health for f in found[11:15]] == ["good", "lost", "lost", "lost"]
    assert "points were found again" in found[12].reason
    assert np.linalg.norm(np.diff([f.position for f in found], axis=0), axis=1).max() < 0.2
    assert np.trace(found[14].covariance) > np.trace(found[11].covariance) + 0.05
    assert errors(found, poses).max() < 0.1  # it went on as it did


def test_a_camera_that_is_not_calibrated_is_lost_with_that_reason():
    blind = [dataclasses.replace(p, output_camera=None, camera_problem="no camera_info") for p in percepts(curve(3))]
    found = followed(blind)
    assert [(f.health, f.reason) for f in found] == [("lost", "no camera_info")] * 3
    assert all(f.covariance is None for f in found)


def test_a_sky_without_depth_does_no_harm():
    poses = curve(20)
    drive = []
    for percept in percepts(poses):
        metres = percept.depth.metres.copy()
        metres[:85] = np.nan
        drive.append(dataclasses.replace(percept, depth=dataclasses.replace(percept.depth, metres=metres)))
    assert errors(followed(drive), poses).max() < 5e-3


def test_the_covariance_of_a_motion_is_that_of_its_errors():
    """NEES of 150 motions: chi-square with 6 degrees of freedom, whose mean lies within 6 +- 3 sqrt(2 * 6 / 150)."""
    random = np.random.default_rng(3)
    sigma, count, found = 0.5 / 400, 80, []
    rotation, translation = turn(np.array([0.02, -0.05, 0.01])), np.array([0.1, -0.05, 0.5])
    for _ in range(150):
        xy = random.uniform(-0.7, 0.7, (count, 2))
        depth = random.uniform(2, 12, count)
        at = np.column_stack([xy, np.ones(count)]) @ rotation.T + translation / depth[:, None]
        seen = at[:, :2] / at[:, 2:] + sigma * random.standard_normal((count, 2))
        spread = 0.1 / depth
        rays = Rays(xy, 1 / depth + spread * random.standard_normal(count), spread**2)
        motion = refine(rays, seen, sigma, np.eye(3), np.zeros(3))
        error = np.concatenate([turned_by(rotation @ motion.rotation.T), translation - motion.translation])
        found.append(error @ np.linalg.solve(motion.covariance, error))
    assert abs(np.mean(found) - 6) < 3 * np.sqrt(2 * 6 / 150)


def test_what_it_remembers_survives_json_and_goes_on_to_the_same_bits():
    drive = list(percepts(curve(24), noise=0.2, depth_noise=0.1))
    whole, settings = Odometry(), Settings()
    expected = [whole.placed(percept, settings).pose for percept in drive]
    first, second = Odometry(), Odometry()
    for percept in drive[:12]:
        first.placed(percept, settings)
    second.recall(json.loads(json.dumps(first.memory())))
    for percept, pose_ in zip(drive[12:], expected[12:]):
        again = second.placed(percept, settings).pose
        assert again.matrix.tobytes() == pose_.matrix.tobytes()
        assert again.covariance.tobytes() == pose_.covariance.tobytes()


def test_a_frame_whose_matches_nobody_asked_for_has_no_pose():
    percept = next(percepts(curve(1)))
    assert Odometry().placed(dataclasses.replace(percept, correspondences=None), Settings()).pose is None
    assert isinstance(percept, Percept)


def with_long_depth(poses: list[np.ndarray], factor: float = 1.15) -> list[Percept]:
    """A drive whose estimated depth is too long, as that of a head that learnt with another lens is."""
    return [
        dataclasses.replace(p, depth=dataclasses.replace(p.depth, metres=p.depth.metres * np.float32(factor)))
        for p in percepts(poses)
    ]


def last_stretch(found: list[Pose], poses: list[np.ndarray], frames: int = 30) -> float:
    """Metres driven over the last frames, over the true ones."""
    ends = [np.linalg.norm(a - b) for a, b in ((found[-1].position, found[-frames].position),)]
    return float(ends[0] / np.linalg.norm(poses[-1][:3, 3] - poses[-frames][:3, 3]))


def test_wheels_set_the_scale_that_depth_has_wrong():
    poses = curve(150, turning=0.002)
    wheels, mount = Wheels(), pose(0.3, height=0.8)
    for number, place in enumerate(poses):
        wheels.hear(number * STEP_NS, (place @ np.linalg.inv(mount))[:3, 3])
    drive = with_long_depth(poses)
    assert last_stretch(followed(drive), poses) == pytest.approx(1.15, abs=0.02)
    unmounted = Odometer(wheels=wheels)  # where the camera is on the robot is not known: then wheels say nothing
    assert last_stretch(followed(drive, unmounted), poses) == pytest.approx(1.15, abs=0.02)
    told = Odometer(wheels=wheels)
    told.mount = mount
    assert last_stretch(followed(drive, told), poses) == pytest.approx(1.0, abs=0.03)
    assert told.scale.source == "wheels" and told.scale.error < 0.04


def test_the_height_of_the_camera_pulls_the_scale_that_depth_has_wrong():
    poses = curve(150, turning=0.002)
    ground = (Label(0, "soil", (0, 0, 0)), Label(1, "rock", (0, 0, 0)))
    drive = []
    for percept, place in zip(with_long_depth(poses), poses):
        on_ground = np.arange(240)[:, None] > 119.5 + 200 * np.tan(np.arctan(0.8 / (15 - place[0, 3])) - 0.2)
        mask = np.where(np.broadcast_to(on_ground, (240, 320)), 0, 1).astype(np.uint8)
        drive.append(dataclasses.replace(percept, segmentation=Segmentation(mask, mask, ground)))
    told = Odometer(camera_height=0.8)
    without = last_stretch(followed(drive), poses)
    assert 1.0 < last_stretch(followed(drive, told), poses) < without - 0.01  # depth is not silent beside it


def test_wheels_say_nothing_of_times_they_did_not_hear_of():
    wheels = Wheels()
    assert wheels.metres(0, 1) is None
    for stamp_ns, x in ((0, 0.0), (10**8, 0.1), (10**9, 1.0)):
        wheels.hear(stamp_ns, (x, 0.0, 0.0))
    assert wheels.metres(0, 5 * 10**7) == pytest.approx(0.05)
    assert wheels.metres(0, 5 * 10**8) is None  # a gap
    assert wheels.metres(0, 2 * 10**9) is None
    wheels.hear(3, (float("nan"), 0.0, 0.0))
    wheels.hear(5, (0.0, 0.0, 0.0))  # time went back
    assert len(wheels) == 1
