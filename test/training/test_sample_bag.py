"""The sample drive opens with rosbags and with mcap's own reader, and its pictures, poses and depth agree."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import cv2
import numpy as np
import pytest
from mcap_ros2.reader import read_ros2_messages
from rosbags.highlevel import AnyReader
from rosbags.typesys import Stores, get_typestore
from scipy.ndimage import map_coordinates
from scipy.spatial.transform import Rotation

from dino_perception.training.terrain import sample_bag
from dino_perception.training.terrain.world import PinholeCamera

SHIPPED = Path(__file__).parents[2] / "data" / "sample_drive"


def read(folder: Path) -> dict[str, list]:
    """Messages by topic, in time order, decoded by mcap's own ROS 2 decoder."""
    found = defaultdict(list)
    for item in read_ros2_messages(str(next(folder.glob("*.mcap")))):
        found[item.channel.topic].append(item.ros_msg)
    return found


def stamp(message) -> int:
    return message.header.stamp.sec * 1_000_000_000 + message.header.stamp.nanosec


def image(message) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(message.data, np.uint8), cv2.IMREAD_UNCHANGED)


def matrix(transform) -> np.ndarray:
    pose = np.eye(4)
    q, t = transform.rotation, transform.translation
    pose[:3, :3] = Rotation.from_quat([q.x, q.y, q.z, q.w]).as_matrix()
    pose[:3, 3] = t.x, t.y, t.z
    return pose


def camera_poses(bag: dict[str, list]) -> np.ndarray:
    """odom <- camera_optical_frame of every frame, composed from /tf and /tf_static."""
    fixed = {t.child_frame_id: t for m in bag["/tf_static"] for t in m.transforms}
    chain, frame = np.eye(4), bag["/camera/camera_info"][0].header.frame_id
    while frame != "base_link":
        chain = matrix(fixed[frame].transform) @ chain
        frame = fixed[frame].header.frame_id
    return np.stack([matrix(m.transforms[0].transform) @ chain for m in bag["/tf"]])


def depth_agreement(bag: dict[str, list], first: int, second: int) -> float:
    """Share of the nearer points of one depth picture that the next one puts at the same depth, within 2 %."""
    poses, k = camera_poses(bag), np.array(bag["/ground_truth/camera_info"][0].k).reshape(3, 3)
    a, b = (image(bag["/ground_truth/depth"][i]) / 1000.0 for i in (first, second))
    v, u = np.mgrid[: a.shape[0], : a.shape[1]]
    points = np.stack([(u - k[0, 2]) / k[0, 0], (v - k[1, 2]) / k[1, 1], np.ones_like(a)], -1) * a[..., None]
    move = np.linalg.inv(poses[second]) @ poses[first]
    points = points @ move[:3, :3].T + move[:3, 3]
    x = points[..., 0] / points[..., 2].clip(0.1) * k[0, 0] + k[0, 2]
    y = points[..., 1] / points[..., 2].clip(0.1) * k[1, 1] + k[1, 2]
    inside = (a > 0) & (a < 12) & (x > 0) & (x < a.shape[1] - 1) & (y > 0) & (y < a.shape[0] - 1)
    found = 1.0 / map_coordinates(1.0 / np.where(b > 0, b, 1e6), [y, x], order=1).clip(1e-6)
    assert inside.mean() > 0.2
    return float(np.mean(np.abs(found[inside] / points[..., 2][inside] - 1.0) < 0.02))


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("drive") / "small"
    assert sample_bag.main(["--out", str(folder), "--frames", "4", "--seed", "7", "--style", "mars"]) == 0
    return folder


def test_both_readers_read_every_message_of_the_bag_it_writes(made):
    with AnyReader([made], default_typestore=get_typestore(Stores.ROS2_JAZZY)) as reader:
        kinds = {c.topic: c.msgtype for c in reader.connections}
        counts = {c.topic: c.msgcount for c in reader.connections}
        for connection, _, raw in reader.messages():
            reader.deserialize(raw, connection.msgtype)
    assert kinds == sample_bag.TOPICS
    assert counts == {topic: 1 if topic == "/tf_static" else 4 for topic in sample_bag.TOPICS}
    assert {topic: len(messages) for topic, messages in read(made).items()} == counts


def test_messages_of_a_frame_share_its_stamp_and_frame(made):
    bag = read(made)
    for topic in sample_bag.TOPICS:
        if topic.startswith(("/camera", "/ground_truth")):
            assert [stamp(m) for m in bag[topic]] == [sample_bag.START_NS + i * 100_000_000 for i in range(4)], topic
            assert {m.header.frame_id for m in bag[topic]} == {"camera_optical_frame"}
    assert [stamp(m) for m in bag["/odom"]] == [stamp(m.transforms[0]) for m in bag["/tf"]]


def test_odometry_is_the_transform_and_its_velocity_is_the_motion(made):
    bag = read(made)
    poses = [matrix(m.transforms[0].transform) for m in bag["/tf"]]
    for message, pose in zip(bag["/odom"], poses):
        assert (message.header.frame_id, message.child_frame_id) == ("odom", "base_link")
        p = message.pose.pose.position
        assert np.allclose([p.x, p.y, p.z], pose[:3, 3], atol=1e-9)
    middle = bag["/odom"][1].twist.twist.linear
    motion = poses[1][:3, :3].T @ (poses[2][:3, 3] - poses[0][:3, 3]) / 0.2
    assert np.allclose([middle.x, middle.y, middle.z], motion, atol=1e-6)
    assert 0.2 < middle.x < 0.8
    # Level start: the odom frame begins at the rover, heading along x.
    assert np.allclose(poses[0][:3, 3], 0.0, atol=1e-9) and abs(np.arctan2(poses[0][1, 0], poses[0][0, 0])) < 1e-6


def test_depth_and_poses_of_the_bag_agree(made):
    assert depth_agreement(read(made), 0, 3) > 0.9


def test_pictures_have_the_sizes_their_camera_info_says(made):
    bag = read(made)
    colour, quarter = bag["/camera/camera_info"][0], bag["/ground_truth/camera_info"][0]
    assert image(bag["/camera/image_raw/compressed"][0]).shape == (colour.height, colour.width, 3) == (480, 640, 3)
    depth, mask = image(bag["/ground_truth/depth"][0]), image(bag["/ground_truth/mask"][0])
    assert depth.dtype == np.uint16 and depth.shape == (quarter.height, quarter.width) == (120, 160)
    assert mask.dtype == np.uint8 and mask.shape == (240, 320) and mask.max() <= 4
    # Half-pixel centres: the picture's edges, at -0.5 and width - 0.5, stay where they are in both cameras.
    for info in (colour, quarter):
        left, right = (np.array([edge - info.k[2], 0]) / info.k[0] for edge in (-0.5, info.width - 0.5))
        assert np.allclose([left[0], right[0]], np.array([-1, 1]) * np.tan(np.radians(33)), atol=1e-9)


def test_scaling_a_camera_keeps_its_rays():
    camera = PinholeCamera.of(640, 480)
    quarter = sample_bag.scaled(camera, 4)
    # The centre of the small picture's first pixel is the corner shared by pixels 1 and 2 of the large one.
    assert np.isclose((0 - quarter.k[0, 2]) / quarter.k[0, 0], (1.5 - camera.k[0, 2]) / camera.k[0, 0])


def test_a_folder_that_is_there_is_not_overwritten(made, capsys):
    with pytest.raises(SystemExit):
        sample_bag.main(["--out", str(made)])
    assert "--force" in capsys.readouterr().err


def test_the_shipped_bag_is_whole_small_and_true():
    assert sum(path.stat().st_size for path in SHIPPED.iterdir()) <= 8_000_000
    bag = read(SHIPPED)
    assert {topic: len(messages) for topic, messages in bag.items()} == {
        topic: 1 if topic == "/tf_static" else 100 for topic in sample_bag.TOPICS
    }
    stamps = np.array([stamp(m) for m in bag["/camera/image_raw/compressed"]])
    assert (np.diff(stamps) == 100_000_000).all()
    for first, second in ((0, 1), (20, 30), (60, 90)):
        assert depth_agreement(bag, first, second) > 0.85
    ids = np.concatenate([image(bag["/ground_truth/mask"][i]).ravel() for i in range(0, 100, 20)])
    assert (np.bincount(ids, minlength=5) / ids.size > 0.01).all()
