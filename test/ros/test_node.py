"""One camera: the node in its own process publishes what the interface says, and lives through what it is given."""

import os
import time
from pathlib import Path

import numpy as np
import pytest
from live_node import BEST_EFFORT, SMALL, TYPES, image, info, stamp_ns, wait_for
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy
from std_srvs.srv import SetBool, Trigger

from dino_perception.messages.topics import offered
from dino_perception.perception.settings import Settings

TOPICS = offered(Settings().heads)

FRAMES = {  # topic -> encoding of an image, or None
    "segmentation/mask": "mono8",
    "segmentation/confidence": "mono8",
    "segmentation/overlay": "rgb8",
    "depth/image": "32FC1",
    "depth/confidence": "mono8",
    "depth/camera_info": None,
    "depth/overlay": "rgb8",
    "points": None,
    "correspondences": None,
    "correspondences/overlay": "rgb8",
}
LATCHED = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL)


@pytest.fixture(scope="module")
def live(start):
    node, client = start(SMALL)
    client.wait_for_state("active")
    return node, client


@pytest.fixture
def client(live):
    node, client = live
    yield client
    client.deafen()
    assert node.alive(), node.log()


def published(client, received, count=1, **picture):
    """Send frames until `count` messages more have come; returns those, oldest first."""
    begin = len(received)

    def send():
        stamp = client.now_ns()
        client.send(image(stamp, **picture), info(stamp))
        time.sleep(0.02)
        return len(received) >= begin + count

    wait_for(send, f"{count} messages")
    return received[begin:]


def test_everything_the_interface_names_comes_with_one_stamp_frame_and_size(client):
    received = {name: client.listen(name, TOPICS[name].type) for name in FRAMES}
    wait_for(lambda: published(client, received["segmentation/mask"]) and all(received.values()), "every topic")
    stamps = [{stamp_ns(message) for message in messages} for messages in received.values()]
    together = set.intersection(*stamps)
    assert together
    for stamp in together:
        at = {name: next(m for m in messages if stamp_ns(m) == stamp) for name, messages in received.items()}
        assert {message.header.frame_id for message in at.values()} == {"camera_optical"}
        aligned = ("segmentation/mask", "segmentation/confidence", "depth/image", "depth/camera_info", "points")
        assert {(at[name].height, at[name].width) for name in aligned} == {(48, 64)}
        for name, encoding in FRAMES.items():
            assert encoding is None or at[name].encoding == encoding
        assert at["segmentation/mask"].step == 64  # unpadded, as the costmap layer reads it
        assert at["depth/camera_info"].k[0] == pytest.approx(50.0)  # focal 100 px at half the size
        assert (at["correspondences"].width, at["correspondences"].height) == (128, 96)


def test_no_output_is_stamped_with_anything_but_its_images_stamp(client):
    masks = client.listen("segmentation/mask", "sensor_msgs/msg/Image")
    published(client, masks)
    time.sleep(0.2)
    masks.clear()
    sent = []
    for number in range(5):
        sent.append(client.now_ns() - number)
        client.send(image(sent[-1]))
        wait_for(lambda: stamp_ns(masks[-1]) == sent[-1] if masks else False, "the mask of the frame just sent")
    assert [stamp_ns(mask) for mask in masks] == sent


def test_the_offered_qos_suits_every_reader(client):
    for name, topic in TOPICS.items():
        (offer,) = client.node.get_publishers_info_by_topic(client.topic(name))
        assert offer.topic_type == topic.type
        assert offer.qos_profile.reliability == ReliabilityPolicy.RELIABLE
        latched = offer.qos_profile.durability == DurabilityPolicy.TRANSIENT_LOCAL
        assert latched == (name == "segmentation/label_info")
    for name in ("/image", "/camera_info"):
        (wish,) = client.node.get_subscriptions_info_by_topic(name)
        assert wish.qos_profile.reliability == ReliabilityPolicy.BEST_EFFORT
        assert wish.qos_profile.durability == DurabilityPolicy.VOLATILE
        if wish.qos_profile.history != HistoryPolicy.UNKNOWN:  # not every middleware tells over the wire
            assert wish.qos_profile.depth == 1


@pytest.mark.parametrize("qos", [BEST_EFFORT, QoSProfile(depth=5)], ids=["best effort", "reliable"])
def test_both_kinds_of_readers_get_masks(client, qos):
    published(client, client.listen("segmentation/mask", "sensor_msgs/msg/Image", qos))


def test_the_labels_wait_for_whoever_comes_late(client):
    if not TYPES.available("vision_msgs/msg/LabelInfo"):
        pytest.skip("vision_msgs is not installed")
    received = client.listen("segmentation/label_info", "vision_msgs/msg/LabelInfo", LATCHED)
    wait_for(lambda: received, "the latched labels")
    classes = {entry.class_id: entry.class_name for entry in received[0].class_map}
    masks = client.listen("segmentation/mask", "sensor_msgs/msg/Image")
    mask = published(client, masks)[0]
    assert set(np.unique(np.frombuffer(mask.data, np.uint8))) <= {*classes, 255} and 255 not in classes
    time.sleep(0.1)
    assert len(received) == 1


def test_a_head_nobody_wants_does_not_run(client):
    depth = client.listen("depth/image", "sensor_msgs/msg/Image")
    published(client, depth, 3)
    wait_for(lambda: published(client, depth) and "depth [ms].p50" in client.values("perception"), "the depth stage")

    def others_have_gone():
        published(client, depth, 3)
        return not {"segmentation [ms].p50", "correspondences [ms].p50"} & client.values("perception").keys()

    wait_for(others_have_gone, "the stages of unwatched heads to leave the diagnostics")
    assert "backbone [ms].p95" in client.values("perception")


def test_nothing_runs_when_nobody_listens(client):
    before = None

    def only_unwatched():
        nonlocal before
        for _ in range(3):
            client.send(image(client.now_ns()))
            time.sleep(0.05)
        after, before = before, (client.count("camera", "not watched"), client.count("camera", "published"))
        return after and before[0] > after[0] and before[1] == after[1]

    wait_for(only_unwatched, "frames to go by unwatched")
    wait_for(
        lambda: client.send(image(client.now_ns())) or "nobody listens" in client.found("camera camera").message,
        "the diagnostics to say so",
    )


def test_live_parameters_work_and_others_are_refused_with_a_reason(client):
    masks = client.listen("segmentation/mask", "sensor_msgs/msg/Image")
    depth = client.listen("depth/image", "sensor_msgs/msg/Image")
    assert client.set(segmentation__enabled=False).successful
    published(client, depth)
    seen = len(masks)
    published(client, depth, 3)
    assert len(masks) == seen
    assert client.set(segmentation__enabled=True, max_age=30.0).successful
    published(client, masks)
    for values, reason in [
        ({"engine": "openvino"}, "takes effect only at configure time"),
        ({"max_age": -1.0}, "max_age"),
        ({"correspondences__reference": "last"}, "previous, keyframe"),
        ({"max_age": 9.0, "backbone": "x"}, "backbone"),
    ]:
        result = client.set(**values)
        assert not result.successful and reason in result.reason
    assert client.get("max_age") == 30.0


def test_a_slower_head_comes_less_often(client):
    masks = client.listen("segmentation/mask", "sensor_msgs/msg/Image")
    depth = client.listen("depth/image", "sensor_msgs/msg/Image")
    assert client.set(depth__rate=1.0).successful
    try:
        published(client, depth)
        published(client, masks)
        time.sleep(0.2)
        begin, stamp = (len(masks), len(depth)), client.now_ns()
        for number in range(1, 21):  # two seconds at 10 Hz, by the stamps
            client.send(image(stamp + number * 100_000_000))
            wait_for(lambda: len(masks) >= begin[0] + number, "a mask")
        assert len(depth) - begin[1] in (2, 3)
    finally:
        client.set(depth__rate=0.0)


def test_without_calibration_everything_but_points_comes_and_diagnostics_say_why(client):
    masks = client.listen("segmentation/mask", "sensor_msgs/msg/Image")
    points = client.listen("points", "sensor_msgs/msg/PointCloud2")
    infos = client.listen("depth/camera_info", "sensor_msgs/msg/CameraInfo")
    published(client, points)

    def send_uncalibrated():
        stamp = client.now_ns()
        nothing = info(stamp)
        nothing.k = np.zeros(9)
        client.send(image(stamp), nothing)
        time.sleep(0.1)
        return "not calibrated" in client.found("camera camera").message

    wait_for(send_uncalibrated, "the diagnostics to say why there are no points")
    assert not any(infos[-1].k) and (infos[-1].height, infos[-1].width) == (48, 64)
    seen = len(points)
    for _ in range(3):
        begin = len(masks)
        client.send(image(client.now_ns()))
        wait_for(lambda: len(masks) > begin, "a mask")
    assert len(points) == seen
    published(client, points)  # calibration comes back


def test_resolution_and_intrinsics_may_change_while_running(client):
    infos = client.listen("depth/camera_info", "sensor_msgs/msg/CameraInfo")
    for height, width, focal in ((96, 128, 100.0), (192, 256, 100.0), (96, 128, 80.0)):

        def send(height=height, width=width, focal=focal):
            stamp = client.now_ns()
            client.send(image(stamp, height, width), info(stamp, height, width, focal=focal))
            time.sleep(0.05)
            return infos and infos[-1].k[0] == pytest.approx(focal * 64 / width)

        wait_for(send, f"a camera_info scaled from {width} pixels and focal length {focal}")
    infos.clear()
    wait_for(lambda: client.send(image(client.now_ns(), 192, 256)) or time.sleep(0.05) or infos, "a camera_info")
    assert infos[-1].k[0] == pytest.approx(25.0)  # the calibration of this size is remembered from before


def test_tracks_are_reset_by_service(client):
    matches = client.listen("correspondences", "dino_perception/msg/Correspondences")
    first = published(client, matches, 3, seed=3)[-1]
    assert len(first.track_id)
    known = set(published(client, matches, 2, seed=3)[-1].track_id)
    assert known & set(published(client, matches, 2, seed=3)[-1].track_id)  # the same picture: tracks go on
    answer = client.call(Trigger, "reset_tracks")
    assert answer.success and answer.message
    after = set(published(client, matches, 3, seed=3)[-1].track_id)
    assert after and not known & after


def test_disabling_stops_the_outputs_and_enabling_brings_them_back(client):
    masks = client.listen("segmentation/mask", "sensor_msgs/msg/Image")
    published(client, masks)
    assert client.call(SetBool, "enable", data=False).success
    wait_for(lambda: not client.node.count_subscribers("/image"), "the node to let go of the images")
    wait_for(lambda: "disabled" in client.found("perception").message, "the diagnostics to say so")
    assert client.state() == "active"
    seen = len(masks)
    assert client.call(SetBool, "enable", data=True).success
    published(client, masks)
    assert len(masks) > seen


def test_diagnostics_tell_what_runs_and_how_fast(client):
    published(client, client.listen("segmentation/mask", "sensor_msgs/msg/Image"), 3)
    wait_for(lambda: "receipt to publish [ms].p99" in client.values("perception"), "latencies")
    values = client.values("perception")
    assert (values["state"], values["engine"], values["precision"]) == ("active", "torch", "float32")
    assert float(values["memory [MiB]"]) > 50
    for stage in ("receive", "wait", "decode", "backbone", "segmentation", "messages", "publish", "stamp to publish"):
        p50, p95, p99 = (float(values[f"{stage} [ms].{p}"]) for p in ("p50", "p95", "p99"))
        assert 0 <= p50 <= p95 <= p99
    camera = client.values("camera camera")
    assert camera["image topic"] == "/image" and camera["image"] == "128x96 rgb8"


@pytest.mark.parametrize(
    "spoil, reason",
    [
        (lambda m: setattr(m, "encoding", "32FC1"), "32FC1"),
        (lambda m: setattr(m, "step", 10), "step"),
        (lambda m: setattr(m, "data", m.data[:100]), "100 bytes"),
        (lambda m: (setattr(m, "height", 0), setattr(m, "data", m.data[:0])), "0 pixels"),
    ],
    ids=["a depth image", "a wrong step", "a truncated image", "an empty image"],
)
def test_a_bad_image_is_counted_and_named_and_the_node_lives(client, spoil, reason):
    masks = client.listen("segmentation/mask", "sensor_msgs/msg/Image")
    published(client, masks)
    before = client.count("camera", "dropped: not usable")

    def send_bad():
        bad = image(client.now_ns())
        spoil(bad)
        client.send(bad)
        time.sleep(0.1)
        status = client.found("camera camera")
        return client.count("camera", "dropped: not usable") > before and reason in status.message

    wait_for(send_bad, "the bad image in the diagnostics")
    published(client, masks)


def test_an_idle_node_uses_next_to_no_processor(live, client):
    node, _ = live

    def used_s() -> float:
        fields = Path(f"/proc/{node.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    time.sleep(0.5)
    before, begin = used_s(), time.monotonic()
    time.sleep(2.5)
    share = (used_s() - before) / (time.monotonic() - begin)
    assert share < 0.05  # a busy wait would use all of a core
