"""`dino-perception play`, as a process of its own: what a subscriber hears is what the bag holds, at the bag's pace."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs a ROS 2 installation")

from rclpy.serialization import deserialize_message  # noqa: E402
from sensor_msgs.msg import CompressedImage, Image  # noqa: E402

from dino_perception.bags.storage.topic import Record, Topic, qos  # noqa: E402
from dino_perception.bags.storage.writer import BagWriter  # noqa: E402
from dino_perception.messages.types import RosbagsTypes  # noqa: E402
from dino_perception.ros.rig.watcher import Watcher  # noqa: E402

TYPES = RosbagsTypes()
START = 1_000_000_000_000
IMAGE, INFO, TRUTH, STATIC = "/cam/image_raw/compressed", "/cam/camera_info", "/ground_truth/mask", "/tf_static"
KINDS = {
    IMAGE: "sensor_msgs/msg/CompressedImage",
    INFO: "sensor_msgs/msg/CameraInfo",
    TRUTH: "sensor_msgs/msg/CompressedImage",
    STATIC: "tf2_msgs/msg/TFMessage",
    "/strange": "no_such_msgs/msg/Strange",
}


def picture(i: int) -> np.ndarray:
    """(48, 64, 3) uint8 RGB, another one for each i."""
    return np.roll(cv2.resize(np.random.default_rng(1).integers(0, 255, (6, 8, 3), np.uint8), (64, 48)), 3 * i, axis=1)


def jpeg(i: int) -> np.ndarray:
    return cv2.imencode(".jpg", picture(i)[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])[1].reshape(-1)


@pytest.fixture(scope="module")
def bag(tmp_path_factory):
    """20 frames at 20 Hz."""
    path = tmp_path_factory.mktemp("play") / "drive.mcap"
    topics = {}
    for name, kind in KINDS.items():
        known = kind in TYPES.typestore.fielddefs
        text = TYPES.typestore.generate_msgdef(kind, ros_version=2)[0] if known else "uint8 x\n"
        topics[name] = Topic(
            name, kind, text, "ros2msg", qos=qos(1, durability="transient_local" if name == STATIC else "volatile")
        )
    writer = BagWriter(path)

    def write(name: str, time_ns: int, **fields) -> None:
        message = TYPES.make(KINDS[name], **fields)
        writer.write([Record(topics[name], time_ns, TYPES.serialize(message))])

    write(STATIC, START, transforms=[])
    for i in range(20):
        stamp = START + i * 50_000_000
        header = TYPES.header(stamp, "cam_optical")
        write(IMAGE, stamp, header=header, format="rgb8; jpeg compressed bgr8", data=jpeg(i))
        write(
            INFO, stamp, header=header, height=48, width=64, d=np.zeros(0), k=np.zeros(9), r=np.zeros(9), p=np.zeros(12)
        )
        write(
            TRUTH,
            stamp,
            header=header,
            format="mono8; png compressed ",
            data=cv2.imencode(".png", picture(i)[..., 0])[1].reshape(-1),
        )
        writer.write([Record(topics["/strange"], stamp, b"\x00\x01\x00\x00\x07")])
    writer.close()
    return path


def playing(bag, report):
    """A generator function that plays the bag while `topics` are watched, and yields watcher, report and output."""

    def played(topics: dict[str, str], *arguments: str, latched=frozenset()):
        watcher = Watcher(topics, latched)
        try:
            command = [
                sys.executable,
                "-m",
                "dino_perception.cli",
                "play",
                str(bag),
                "--wait",
                "20",
                "--json",
                str(report),
                *arguments,
            ]
            done = subprocess.run(command, capture_output=True, text=True, timeout=60)
            assert done.returncode == 0, done.stderr
            deadline = time.monotonic() + 5
            while time.monotonic() < deadline and any(not heard for heard in watcher.heard.values()):
                time.sleep(0.05)
            yield watcher, json.loads(report.read_text()), done.stdout
        finally:
            watcher.close()

    return played


@pytest.fixture(scope="module")
def as_recorded(bag, tmp_path_factory):
    """What is heard of the bag as it is played without further arguments."""
    yield from playing(bag, tmp_path_factory.mktemp("played") / "report.json")(
        {
            "/cam/image_raw": "sensor_msgs/msg/Image",
            INFO: KINDS[INFO],
            TRUTH: KINDS[TRUTH],
            "/clock": "rosgraph_msgs/msg/Clock",
        }
    )


def test_images_come_raw_and_everything_else_as_recorded(as_recorded):
    watcher, report, output = as_recorded
    images = watcher.heard["/cam/image_raw"]
    assert report["counts"][IMAGE] == 20 and len(images) == 20
    for heard in images:
        message = deserialize_message(heard.data, Image)
        i = (heard.stamp_ns - START) // 50_000_000
        assert (message.encoding, message.header.frame_id, message.step) == ("rgb8", "cam_optical", 192)
        decoded = cv2.imdecode(jpeg(i), cv2.IMREAD_COLOR)[..., ::-1]
        np.testing.assert_array_equal(np.frombuffer(message.data, np.uint8).reshape(48, 64, 3), decoded)
    mask = deserialize_message(watcher.heard[TRUTH][-1].data, CompressedImage)  # a PNG of class ids stays one
    np.testing.assert_array_equal(
        cv2.imdecode(np.frombuffer(mask.data, np.uint8), cv2.IMREAD_UNCHANGED), picture(19)[..., 0]
    )
    assert "left out /strange: no_such_msgs/msg/Strange is not installed" in output


def test_the_pace_is_the_bags_and_the_clock_never_lags_behind_a_message(as_recorded):
    watcher, _, _ = as_recorded
    infos, ticks = watcher.heard[INFO], watcher.heard["/clock"]
    span = (infos[-1].sent_ns - infos[0].sent_ns) / (infos[-1].stamp_ns - infos[0].stamp_ns)
    assert 0.8 < span < 2  # a busy machine may be late at either end
    times = [(tick.sent_ns, tick.stamp_ns) for tick in ticks]  # a Clock is a bare time where others have their stamp
    assert [t for _, t in times] == sorted(t for _, t in times)
    assert len(ticks) / (len(infos) * 0.05) >= 40
    for info in infos[1:]:
        assert max(said for sent, said in times if sent <= info.sent_ns) >= info.stamp_ns


def test_rate_remap_topic_and_compressed(bag, tmp_path):
    for watcher, report, _ in playing(bag, tmp_path / "report.json")(
        {"/front/image/compressed": KINDS[IMAGE]},
        "--compressed",
        "--rate",
        "4",
        "--topic",
        IMAGE,
        "--remap",
        f"{IMAGE}:=/front/image/compressed",
    ):
        heard = watcher.heard["/front/image/compressed"]
    assert report["counts"] == {IMAGE: 20}
    assert deserialize_message(heard[0].data, CompressedImage).format == "rgb8; jpeg compressed bgr8"
    span = (heard[-1].sent_ns - heard[0].sent_ns) / (heard[-1].stamp_ns - heard[0].stamp_ns)
    assert 0.15 < span < 0.9


def test_static_transforms_reach_who_comes_late(bag, tmp_path):
    # No image is listened to, so the wait takes its whole time, in which the two find each other.
    for watcher, _, _ in playing(bag, tmp_path / "report.json")(
        {STATIC: KINDS[STATIC]}, "--wait", "5", latched={STATIC}
    ):
        assert len(watcher.heard[STATIC]) == 1


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["nowhere"], "nowhere does not exist"),
        (["{bag}", "--topic", "/nope"], "the bag has no topic /nope; it has /cam/camera_info"),
        (["{bag}", "--rate", "0"], "0 is not a positive number"),
    ],
)
def test_what_cannot_be_played_is_said_in_a_sentence(bag, arguments, sentence):
    command = [sys.executable, "-m", "dino_perception.cli", "play", *(a.format(bag=bag) for a in arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode in (1, 2) and sentence in done.stderr and "Traceback" not in done.stderr
