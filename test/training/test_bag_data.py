"""A bag as data: what depth cameras, tf and the sample drive record, written by rosbags' own writer."""

from __future__ import annotations

import struct
from pathlib import Path

import cv2
import numpy as np
import pytest
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore
from small_data import striped

from dino_perception.perception.transforms import TransformTree, slerp
from dino_perception.training.datasets import DataError, open_dataset
from dino_perception.training.evaluation.baselines import lucas_kanade_matches
from dino_perception.training.evaluation.reprojection import end_point_errors

STORE = get_typestore(Stores.ROS2_JAZZY)
SAMPLE = Path(__file__).parents[2] / "data" / "sample_drive"
START = 1_700_000_000_000_000_000
STEP = 100_000_000


def make(name: str, **fields):
    return STORE.types[f"{name.split('/')[0]}/msg/{name.split('/')[1]}"](**fields)


def header(stamp: int, frame: str = "cam_optical"):
    return make(
        "std_msgs/Header",
        stamp=make("builtin_interfaces/Time", sec=stamp // 10**9, nanosec=stamp % 10**9),
        frame_id=frame,
    )


def image(stamp: int, encoding: str, pixels: np.ndarray):
    data = np.ascontiguousarray(pixels)
    return make(
        "sensor_msgs/Image",
        header=header(stamp),
        height=data.shape[0],
        width=data.shape[1],
        encoding=encoding,
        is_bigendian=0,
        step=data[0].nbytes,
        data=data.view(np.uint8).ravel(),
    )


def compressed(stamp: int, form: str, data: bytes):
    return make("sensor_msgs/CompressedImage", header=header(stamp), format=form, data=np.frombuffer(data, np.uint8))


def transform(stamp: int, parent: str, child: str, xyz, xyzw):
    return make(
        "geometry_msgs/TransformStamped",
        header=header(stamp, parent),
        child_frame_id=child,
        transform=make(
            "geometry_msgs/Transform",
            translation=make("geometry_msgs/Vector3", x=xyz[0], y=xyz[1], z=xyz[2]),
            rotation=make("geometry_msgs/Quaternion", x=xyzw[0], y=xyzw[1], z=xyzw[2], w=xyzw[3]),
        ),
    )


def written(path: Path, messages) -> Path:
    """A rosbag2 folder of (topic, stamp, type, message)."""
    with Writer(path, version=9, storage_plugin=StoragePlugin.MCAP) as bag:
        topics = {}
        for topic, stamp, kind, message in messages:
            kind = f"{kind.split('/')[0]}/msg/{kind.split('/')[1]}"
            if topic not in topics:
                topics[topic] = bag.add_connection(topic, kind, typestore=STORE)
            bag.write(topics[topic], stamp, STORE.serialize_cdr(message, kind))
    return path


METRES = np.where(
    np.arange(48 * 64).reshape(48, 64) % 7 == 0, 0, 0.5 + np.arange(48 * 64).reshape(48, 64) * 0.001
).astype(np.float32)


def millimetres() -> np.ndarray:
    return np.round(METRES * 1000).astype(np.uint16)


def png(pixels: np.ndarray) -> bytes:
    return cv2.imencode(".png", pixels)[1].tobytes()


def quantised() -> bytes:
    """32FC1 as compressed_depth_image_transport writes it: inverse depth in steps behind a header of 12 bytes."""
    a, b = 100.0 * (100.0 + 1), 1 - 100.0 * (100.0 + 1) / 10.0
    with np.errstate(divide="ignore"):
        value = np.where(METRES > 0, a / METRES + b, 0)
    return struct.pack("<iff", 0, a, b) + png(np.round(value).astype(np.uint16))


DEPTHS = {
    "16UC1": ("sensor_msgs/Image", lambda s: image(s, "16UC1", millimetres()), 6e-4),
    "32FC1": (
        "sensor_msgs/Image",
        lambda s: image(s, "32FC1", np.where(METRES > 0, METRES, np.nan).astype(np.float32)),
        0,
    ),
    "compressed 16UC1": (
        "sensor_msgs/CompressedImage",
        lambda s: compressed(s, "16UC1; compressedDepth png", struct.pack("<iff", 0, 0, 0) + png(millimetres())),
        6e-4,
    ),
    "compressed 32FC1": (
        "sensor_msgs/CompressedImage",
        lambda s: compressed(s, "32FC1; compressedDepth png", quantised()),
        2e-3,
    ),
}


def drive(tmp_path, kind: str, *, frames: int = 3, late: int = 0) -> Path:
    messages = []
    for i in range(frames):
        stamp = START + i * STEP
        messages.append(("/cam/color/image_raw", stamp, "sensor_msgs/Image", image(stamp, "rgb8", striped(i)[0])))
        name, build, _ = DEPTHS[kind]
        messages.append(("/cam/aligned_depth_to_color/image_raw", stamp + late, name, build(stamp + late)))
    return written(tmp_path / "bag", messages)


@pytest.mark.parametrize("kind", DEPTHS)
def test_aligned_depth_of_every_kind_is_found_and_read(tmp_path, kind):
    data = open_dataset(drive(tmp_path, kind), cache=tmp_path)
    assert len(data.samples) == 3 and data.continuous and not data.labels
    np.testing.assert_array_equal(data.samples[1].read_image(), striped(1)[0])
    depth = data.samples[1].read_depth()
    np.testing.assert_array_equal(np.isnan(depth), METRES == 0)
    np.testing.assert_allclose(depth[METRES > 0], METRES[METRES > 0], rtol=DEPTHS[kind][2], atol=DEPTHS[kind][2])


def test_depth_up_to_25_ms_late_belongs_to_its_picture_and_later_depth_to_none(tmp_path):
    near = open_dataset(drive(tmp_path / "a", "16UC1", late=20_000_000), cache=tmp_path)
    far = open_dataset(drive(tmp_path / "b", "16UC1", late=40_000_000), cache=tmp_path)
    assert all(s.read_depth for s in near.samples) and not any(s.read_depth for s in far.samples)


def test_topics_are_asked_for_where_there_are_several(tmp_path):
    stamp = START
    pixels = striped(0)[0]
    bag = written(
        tmp_path / "two",
        [(f"/{side}/image", stamp, "sensor_msgs/Image", image(stamp, "bgr8", pixels)) for side in ("left", "right")],
    )
    with pytest.raises(
        DataError, match="several camera topics; choose one with --image-topic: /left/image, /right/image"
    ):
        open_dataset(bag, cache=tmp_path)
    np.testing.assert_array_equal(
        open_dataset(bag, cache=tmp_path, image_topic="/right/image").samples[0].read_image(), pixels[..., ::-1]
    )
    with pytest.raises(DataError, match="no image topic '/up'; it has /left/image, /right/image"):
        open_dataset(bag, cache=tmp_path, image_topic="/up")
    with pytest.raises(DataError, match="no topic '/depth'"):
        open_dataset(bag, cache=tmp_path, image_topic="/left/image", depth_topic="/depth")


def test_poses_come_from_tf_between_its_stamps(tmp_path):
    quarter = (0.0, 0.0, 0.5**0.5, 0.5**0.5)
    messages = [
        (
            "/tf_static",
            START,
            "tf2_msgs/TFMessage",
            make(
                "tf2_msgs/TFMessage",
                transforms=[transform(START, "base", "cam_optical", (0.0, 0.0, 1.0), (0.0, 0.0, 0.0, 1.0))],
            ),
        )
    ]
    for i, (x, turn) in enumerate(((0.0, (0.0, 0.0, 0.0, 1.0)), (2.0, quarter))):
        stamp = START + 2 * i * STEP
        messages.append(
            (
                "/tf",
                stamp,
                "tf2_msgs/TFMessage",
                make("tf2_msgs/TFMessage", transforms=[transform(stamp, "odom", "base", (x, 0.0, 0.0), turn)]),
            )
        )
    for i in range(3):
        stamp = START + i * STEP
        messages.append(("/cam/image", stamp, "sensor_msgs/Image", image(stamp, "mono8", striped(0)[1])))
    samples = open_dataset(written(tmp_path / "tf", messages), cache=tmp_path).samples
    np.testing.assert_allclose(samples[0].pose[:3, 3], [0, 0, 1])
    np.testing.assert_allclose(samples[1].pose[:3, 3], [1, 0, 1])
    np.testing.assert_allclose(samples[1].pose[:3, :3], cv2.Rodrigues(np.array([0, 0, np.pi / 4]))[0], atol=1e-12)
    np.testing.assert_allclose(samples[2].pose[:3, :3], cv2.Rodrigues(np.array([0, 0, np.pi / 2]))[0], atol=1e-12)


def test_slerp_takes_the_short_way_round():
    a, b = np.array([0, 0, 0, 1.0]), np.array([0, 0, np.sin(0.6), np.cos(0.6)])
    for other in (b, -b):
        np.testing.assert_allclose(slerp(a, other, 0.25), [0, 0, np.sin(0.15), np.cos(0.15)], atol=1e-12)


def test_no_pose_before_the_first_transform_nor_across_a_hole():
    tree = TransformTree()
    for stamp in (0, 5_000_000_000):
        tree.add("odom", "base", stamp, (0, 0, 0), (0, 0, 0, 1))
    assert tree.pose("base", -1) is None and tree.pose("base", 2_500_000_000) is None
    np.testing.assert_array_equal(tree.pose("/base", 0), np.eye(4))


def test_a_bag_without_pictures_says_what_it_has(tmp_path):
    bag = written(
        tmp_path / "none", [("/tf_static", START, "tf2_msgs/TFMessage", make("tf2_msgs/TFMessage", transforms=[]))]
    )
    with pytest.raises(DataError, match="no camera topic; its topics are /tf_static"):
        open_dataset(bag, cache=tmp_path)


def test_a_file_that_is_no_bag_is_named(tmp_path):
    (tmp_path / "x.mcap").write_bytes(b"nothing")
    with pytest.raises(DataError, match="x.mcap"):
        open_dataset(tmp_path / "x.mcap", cache=tmp_path)


@pytest.mark.skipif(not SAMPLE.exists(), reason="the sample drive is not in data/")
def test_pictures_depth_and_poses_of_the_sample_drive_agree_to_a_fraction_of_a_pixel(tmp_path):
    data = open_dataset(SAMPLE, cache=tmp_path)
    assert [label.name for label in data.labels] == ["soil", "bedrock", "sand", "big_rock", "sky"]
    first, second = data.samples[10], data.samples[12]
    ends = lucas_kanade_matches(first.read_image(), second.read_image())
    errors = end_point_errors(*ends, first.read_depth(), first.camera, first.pose, second.camera, second.pose)
    assert len(errors) > 200 and np.nanmedian(errors) < 0.4
