"""A percept's messages: the same bytes from either library, and exactly what the interface contract promises."""

import re
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from dino_perception.messages import percepts, topics
from dino_perception.messages.types import DEFINITIONS, RclpyTypes, RosbagsTypes
from dino_perception.models.label_sets import Label
from dino_perception.perception.frame import (
    IGNORE,
    CameraModel,
    Correspondences,
    Depth,
    Frame,
    Percept,
    Segmentation,
)
from dino_perception.perception.ground_plane import GroundPlane
from dino_perception.perception.local_ground import LocalGround
from dino_perception.perception.obstacles import Obstacles
from dino_perception.perception.pose import Pose
from dino_perception.perception.settings import Settings
from dino_perception.perception.traversability import TraversabilityGrid

LABELS = (Label(0, "soil", (200, 150, 80)), Label(4, "sky", (90, 160, 255)))
STAMP = 1_700_000_000_123_456_789
DATA = [name for name in topics.of_kind("data") if topics.TOPICS[name].fits(Settings().heads)]


def percept(height=24, width=32, matches=37, camera=True, frame_id="front_optical", **absent):
    rng = np.random.default_rng(3)
    frame = Frame("front", STAMP, frame_id, rng.integers(0, 256, (2 * height, 2 * width, 3), np.uint8))
    mask = rng.choice(np.array([0, 4, IGNORE], np.uint8), (height, width))
    metres = rng.uniform(1, 40, (height, width)).astype(np.float32)
    metres[0] = np.nan
    model = CameraModel(
        width,
        height,
        np.array([[30.0, 0, width / 2], [0, 31.0, height / 2], [0, 0, 1]]),
        np.array([-0.1, 0.01, 0.001, 0.002, 0.0]),
    )
    floats = [rng.uniform(0, 60, matches).astype(np.float32) for _ in range(4)]
    full = dict(
        segmentation=Segmentation(mask, rng.integers(0, 256, mask.shape, np.uint8), LABELS),
        depth=Depth(metres, rng.integers(0, 256, mask.shape, np.uint8)),
        correspondences=Correspondences(
            STAMP - 10**8,
            "before",
            2 * width,
            2 * height,
            rng.integers(2**40, size=matches, dtype=np.uint64),
            *floats,
            rng.random(matches, np.float32),
        ),
        pose=Pose(
            rng.random(3), np.eye(3)[[2, 0, 1]], np.diag(rng.random(6)), twist=rng.random(6), twist_covariance=np.eye(6)
        ),
    )
    full["obstacles"] = seen_ground(rng, height, width)
    full["traversability"] = TraversabilityGrid(rng.integers(-1, 101, (7, 7), np.int8), -1.3, 2.25, 0.1)
    return Percept(frame, height, width, output_camera=model if camera else None, **{**full, **absent})


def seen_ground(rng, height, width):
    """Ground where anything may be in the way; at least one pixel is."""
    x, y, z = rng.uniform(-3, 3, (3, height, width)).astype(np.float32)
    kind = rng.choice(np.array([1, 2], np.uint8), (height, width))
    kind[0, 0] = 2
    plane = GroundPlane(np.array([0.0, -1, 0]), 1.1, 1.0)
    grid = np.zeros((4, 6), np.float32)
    rotation = np.array([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]])
    ground = LocalGround(
        plane, rotation, 1.1, grid, grid > 0, grid, grid, x, y, z, z, kind > 9, 0, 1, 30.0
    )  # fmt: skip
    return Obstacles(ground, kind, np.ones(kind.shape, np.float32), z, np.ones((3, 2), np.float32), np.array([0, 0]))


def written(types, p, names=DATA):
    return topics.outputs(types, p, Settings(), names)


def installed(*names):
    types = RclpyTypes()
    missing = [name for name in names if not types.available(name)]
    if missing:
        pytest.skip(f"{', '.join(missing)} for rclpy is not installed")
    return types


def padding(types, message):
    """Which CDR bytes are alignment padding: those that no field writes, whatever the buffer held before."""
    definition = types.typestore.get_msgdef(message.__msgtype__)
    size = definition.getsize_cdr(0, message, types.typestore)
    buffers = [bytearray([fill]) * size for fill in (0x00, 0xFF)]
    for buffer in buffers:
        definition.serialize_cdr_le(memoryview(buffer), 0, message, types.typestore)
    first, second = (np.frombuffer(buffer, np.uint8) for buffer in buffers)
    return np.concatenate([np.zeros(4, bool), first != second])


def assert_same_bytes(ours, theirs):
    """Fast CDR leaves alignment padding uninitialised, so padding bytes of rclpy are whatever the memory held; it also
    reserves, and leaves at the end, the alignment of an empty 8-byte sequence that it then does not write."""
    pytest.importorskip("rclpy", reason="no ROS 2 here")
    from rclpy.serialization import serialize_message

    types = RosbagsTypes()
    left = np.frombuffer(types.serialize(ours), np.uint8)
    right = np.frombuffer(serialize_message(theirs), np.uint8)
    assert left.size <= right.size <= left.size + (0 if len(getattr(ours, "track_id", [0])) else 7)
    right = right[: left.size]
    assert not (left != right)[~padding(types, ours)].any()


CASES = [
    percept(),
    percept(1, 3, 0),
    percept(5, 7, 1, frame_id=""),
    percept(camera=False),
    percept(6, 6, 3, frame_id="ä" * 5),
]


@pytest.mark.parametrize("name", DATA)
@pytest.mark.parametrize("case", range(len(CASES)))
def test_both_libraries_write_the_same_bytes(name, case):
    theirs = written(installed(topics.TOPICS[name].type), CASES[case], [name])
    ours = written(RosbagsTypes(), CASES[case], [name])
    assert ours.keys() == theirs.keys()
    for topic in ours:
        assert_same_bytes(ours[topic], theirs[topic])


def test_label_info_has_the_same_bytes_in_both_libraries():
    types = installed("vision_msgs/msg/LabelInfo")
    assert_same_bytes(*(percepts.label_info(t, LABELS, STAMP, "front", 0.25) for t in (RosbagsTypes(), types)))


@pytest.mark.parametrize("name", DATA)
def test_each_library_reads_what_the_other_wrote(name):
    pytest.importorskip("rclpy", reason="no ROS 2 here")
    from rclpy.serialization import deserialize_message, serialize_message

    kind = topics.TOPICS[name].type
    rclpy_types, rosbags_types = installed(kind), RosbagsTypes()
    theirs, ours = written(rclpy_types, CASES[0], [name])[name], written(rosbags_types, CASES[0], [name])[name]
    read_by_rclpy = deserialize_message(bytes(rosbags_types.serialize(ours)), rclpy_types.type(kind))
    if not np.isnan(CASES[0].depth.metres).any() or name not in ("points", "depth/image"):
        assert read_by_rclpy == theirs
    assert bytes(getattr(read_by_rclpy, "data", b"")) == bytes(getattr(theirs, "data", b""))
    read_by_rosbags = rosbags_types.deserialize(serialize_message(theirs), kind)
    assert bytes(rosbags_types.serialize(read_by_rosbags)) == bytes(rosbags_types.serialize(ours))


def test_rclpy_messages_without_matches_are_read_whatever_trails_them():
    pytest.importorskip("rclpy", reason="no ROS 2 here")
    from rclpy.serialization import serialize_message

    types, kind = RosbagsTypes(), "dino_perception/msg/Correspondences"
    for length in range(8):  # moves the alignment of the empty track_id
        p = percept(matches=0, frame_id="f" * length)
        message = written(installed(kind), p, ["correspondences"])["correspondences"]
        assert types.deserialize(serialize_message(message), kind).width == 64


def test_rclpy_arrays_are_set_without_a_walk_over_their_elements():
    import array

    messages = written(installed(*(topics.TOPICS[name].type for name in DATA)), percept())
    assert isinstance(messages["depth/image"].data, array.array) and isinstance(messages["points"].data, array.array)
    assert messages["correspondences"].track_id.typecode == "Q" and messages["correspondences"].x.typecode == "f"


MAPS = {name for name in DATA if topics.TOPICS[name].placed}
"""What is told of odom and not of the camera."""


def test_one_stamp_one_frame_one_size():
    p = percept()
    messages = written(RosbagsTypes(), p)
    assert set(messages) == set(DATA)
    for name, message in messages.items():
        assert (message.header.stamp.sec, message.header.stamp.nanosec) == divmod(STAMP, 10**9)
    for name in set(DATA) - MAPS:
        assert messages[name].header.frame_id == "front_optical"
    for name in set(DATA) - {"correspondences", "obstacles"} - MAPS:
        assert (messages[name].height, messages[name].width) == (p.output_height, p.output_width)


def test_images_hold_the_arrays_unpadded():
    p = percept()
    messages = written(RosbagsTypes(), p)
    for name, encoding, expected in [
        ("segmentation/mask", "mono8", p.segmentation.mask),
        ("segmentation/confidence", "mono8", p.segmentation.confidence),
        ("depth/image", "32FC1", p.depth.metres),
        ("depth/confidence", "mono8", p.depth.confidence),
    ]:
        message = messages[name]
        assert (message.encoding, message.step, message.is_bigendian) == (encoding, expected.strides[0], 0)
        np.testing.assert_array_equal(message.data.view(expected.dtype).reshape(expected.shape), expected)


def test_the_cloud_describes_itself():
    """Field names, offsets and types read the way PCL and Nav2 read them give the depth back along the optical axis."""
    p = percept()
    cloud = written(RosbagsTypes(), p)["points"]
    kinds = {7: "<f4", 6: "<u4", 2: "u1"}
    layout = np.dtype(
        {
            "names": [f.name for f in cloud.fields],
            "formats": [kinds[f.datatype] for f in cloud.fields],
            "offsets": [f.offset for f in cloud.fields],
            "itemsize": cloud.point_step,
        }
    )
    points = cloud.data.view(layout).reshape(cloud.height, cloud.width)
    assert (
        cloud.point_step == 20 and cloud.row_step == 20 * cloud.width and not cloud.is_dense and not cloud.is_bigendian
    )
    assert [f.name for f in cloud.fields] == ["x", "y", "z", "rgb", "label"] and all(f.count == 1 for f in cloud.fields)
    seen = np.isfinite(points["z"])
    assert seen.any() and not seen[p.segmentation.mask == 4].any()  # sky is no point
    np.testing.assert_array_equal(points["z"][seen], p.depth.metres[seen])
    np.testing.assert_array_equal(points["label"], p.segmentation.mask)


def test_a_head_that_did_not_run_has_no_message():
    types = RosbagsTypes()
    assert set(written(types, percept(segmentation=None))) == set(DATA) - {
        "segmentation/mask",
        "segmentation/confidence",
    }
    assert set(written(types, percept(depth=None))) == set(DATA) - {
        "depth/image",
        "depth/confidence",
        "points",
        "obstacles",
        "traversability",
    }
    assert "correspondences" not in written(types, percept(correspondences=None))


def test_only_topics_that_are_wanted_are_made():
    assert set(written(RosbagsTypes(), percept(), ["depth/image"])) == {"depth/image"}


def test_an_uncalibrated_camera_keeps_everything_but_points():
    messages = written(RosbagsTypes(), percept(camera=False))
    assert set(messages) == set(DATA) - {"points"}
    info = messages["depth/camera_info"]
    assert not info.k.any() and (info.height, info.width) == (24, 32)


def test_label_info_names_the_classes():
    info = percepts.label_info(RosbagsTypes(), LABELS, STAMP, "front", 0.5)
    assert [(c.class_id, c.class_name) for c in info.class_map] == [(0, "soil"), (4, "sky")]
    assert info.threshold == 0.5 and info.header.frame_id == "front"


@pytest.mark.parametrize("path", sorted((Path(__file__).parents[2] / "msg").glob("*.msg")), ids=lambda path: path.stem)
def test_the_field_list_in_python_is_the_message_file(path):
    fields = [" ".join(line.split("#")[0].split()) for line in path.read_text().splitlines()]
    assert [f for f in fields if f] == DEFINITIONS[f"dino_perception/msg/{path.stem}"].splitlines()


def test_type_hashes_are_those_of_the_ros_installation():
    """A hash is how ROS 2 and rosbag2 tell two definitions of one name apart."""
    for name in (
        "dino_perception/msg/Correspondences",
        "dino_perception/msg/Descriptor",
        "vision_msgs/msg/LabelInfo",
        "sensor_msgs/msg/PointCloud2",
    ):
        types = RclpyTypes()
        if not types.available(name):
            continue
        package, _, leaf = name.split("/")
        import importlib

        folder = Path(importlib.import_module(package).__file__).parents[3]
        files = [f for root in [*folder.parents, folder] for f in root.glob(f"share/{package}/msg/{leaf}.json")]
        if files:
            found = re.search(r"RIHS01_[0-9a-f]{64}", files[0].read_text()).group()
            assert RosbagsTypes().typestore.hash_rihs01(name) == found


def test_an_array_of_the_wrong_kind_is_refused():
    with pytest.raises(TypeError, match="float64 was given for a field of float32"):
        installed("dino_perception/msg/Correspondences").make("dino_perception/msg/Correspondences", x=np.zeros(3))


def test_a_depth_head_that_does_not_say_how_sure_it_is_has_no_topic_for_it():
    from dino_perception.models.outputs import Output

    metres = Output("metres", "metres")
    topic = topics.TOPICS["depth/confidence"]
    assert topic.filled({"depth": (metres, Output("confidence", "levels"))}) and not topic.filled({"depth": (metres,)})
    assert topics.TOPICS["depth/image"].filled({"depth": (metres,)}) and topics.TOPICS["depth/camera_info"].filled({})
    p = percept()
    silent = written(RosbagsTypes(), percept(depth=Depth(p.depth.metres)))
    assert set(silent) == set(DATA) - {"depth/confidence"}


def test_an_array_is_copied_once_on_its_way_into_a_message():
    pixels = np.arange(1_000_000, dtype=np.uint8).reshape(1000, 1000)
    types = RclpyTypes()
    types.make("sensor_msgs/msg/Image", data=pixels[:1, :1])  # what is imported for it
    tracemalloc.start()
    message = types.make("sensor_msgs/msg/Image", height=1000, width=1000, data=pixels.reshape(-1))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert message.data.tobytes() == pixels.tobytes()
    assert pixels.nbytes <= peak < 1.5 * pixels.nbytes
