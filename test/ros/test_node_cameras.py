"""Several cameras in one node, and inputs that do not come as they should."""

import itertools
import time

import numpy as np
import pytest
import rclpy
from diagnostic_msgs.msg import DiagnosticStatus
from live_node import SMALL, TYPES, image, info, stamp_ns, wait_for
from rclpy.qos import QoSProfile, ReliabilityPolicy

from dino_perception.messages.topics import offered
from dino_perception.perception.settings import Settings

TOPICS = offered(Settings().heads)

CAMERAS = ("front", "rear", "left")


@pytest.fixture(scope="module")
def client(start):
    node, client = start(
        {**SMALL, "cameras": list(CAMERAS), "qos_overrides./left/image.subscription.reliability": "reliable"},
        "-r",
        "front/image:=/boom/front/image_raw",
        "-r",
        "rear/image:=/boom/rear/image_raw",
        "-r",
        "rear/camera_info:=/calibration/rear",
        name="three_eyes",
    )
    client.wait_for_state("active")
    yield client
    assert node.alive(), node.log()


def send(client, camera, stamp, **picture):
    """Publish where this camera's topics were remapped to."""
    base = {"front": "/boom/front/image_raw", "rear": "/boom/rear/image_raw", "left": "/left/image"}[camera]
    calibration = {"front": "/boom/front/camera_info", "rear": "/calibration/rear", "left": "/left/camera_info"}[camera]
    picture["frame_id"] = f"{camera}_optical"
    client.send(image(stamp, **picture), info(stamp, **picture), base, calibration)


def test_every_camera_has_topics_of_its_own(client):
    for camera in CAMERAS:
        for name, topic in TOPICS.items():
            (offer,) = client.node.get_publishers_info_by_topic(client.topic(f"{camera}/{name}"))
            assert offer.topic_type == topic.type
    assert not client.node.count_publishers(client.topic("segmentation/mask"))


def test_camera_info_is_looked_for_beside_a_remapped_image(client):
    for topic in (
        "/boom/front/image_raw",
        "/boom/front/camera_info",
        "/boom/rear/image_raw",
        "/calibration/rear",
        "/left/image",
        "/left/camera_info",
    ):
        assert client.node.count_subscribers(topic) == 1, topic


def test_a_camera_that_never_spoke_is_reported_and_delays_nobody(client):
    masks = {camera: client.listen(f"{camera}/segmentation/mask", "sensor_msgs/msg/Image") for camera in CAMERAS}
    points = client.listen("front/points", "sensor_msgs/msg/PointCloud2")
    sent = {"front": [], "rear": []}
    for camera in sent:  # until the node has seen who listens
        wait_for(lambda: send(client, camera, client.now_ns()) or time.sleep(0.05) or masks[camera], "a first mask")
    time.sleep(0.2)
    for received in masks.values():
        received.clear()
    for number in range(6):
        for camera in sent:
            stamp = client.now_ns()
            sent[camera].append(stamp)
            send(client, camera, stamp, height=96 if camera == "front" else 64)
            wait_for(lambda: stamp in map(stamp_ns, masks[camera]), "the mask")
    for camera, stamps in sent.items():
        assert [stamp_ns(mask) for mask in masks[camera]] == stamps
        assert {mask.header.frame_id for mask in masks[camera]} == {f"{camera}_optical"}
    assert masks["rear"][0].height == 32 and masks["front"][0].height == 48  # each camera has its own shape
    wait_for(lambda: points, "points of the front camera")
    assert not masks["left"]
    wait_for(lambda: "nobody publishes /left/image" in client.found("camera left").message, "the silence to be named")
    assert client.found("camera left").level == DiagnosticStatus.WARN
    wait_for(lambda: client.found("camera front").level == DiagnosticStatus.OK, "the front camera to be well")


def test_a_camera_that_falls_silent_is_an_error_and_recovers(client):
    masks = client.listen("rear/segmentation/mask", "sensor_msgs/msg/Image")
    begin = time.monotonic()
    while time.monotonic() < begin + 1.0:
        send(client, "rear", client.now_ns())
        time.sleep(0.05)
    wait_for(lambda: masks, "masks")
    wait_for(lambda: client.found("camera rear").message.startswith("no image for"), "the silence to be noticed")
    assert client.found("camera rear").level == DiagnosticStatus.ERROR
    seen = len(masks)
    wait_for(
        lambda: send(client, "rear", client.now_ns()) or time.sleep(0.05) or len(masks) > seen,
        "the camera to come back",
    )

    def well():
        send(client, "rear", client.now_ns())
        time.sleep(0.2)  # seldom enough for a busy machine: frames that are replaced are a warning
        return client.found("camera rear").level == DiagnosticStatus.OK

    wait_for(well, "the diagnostics to see it")


def test_a_publisher_whose_qos_does_not_fit_is_named(client):
    publisher = client.node.create_publisher(
        type(image(0)), "/left/image", QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
    )
    try:
        wait_for(lambda: "do not agree on QoS" in client.found("camera left").message, "the mismatch to be named", 20)
        assert client.found("camera left").level == DiagnosticStatus.ERROR
        assert "best effort publisher and reliable subscription" in client.found("camera left").message
    finally:
        client.node.destroy_publisher(publisher)


def test_a_topic_of_another_type_is_named(client):
    context = rclpy.Context()  # a participant of its own: one participant cannot hold two types of one topic
    rclpy.init(context=context)
    other = rclpy.create_node("publishes_another_type", context=context)
    other.create_publisher(TYPES.type("sensor_msgs/msg/CompressedImage"), "/left/image", 1)
    expected = "carries sensor_msgs/msg/CompressedImage, this node reads sensor_msgs/msg/Image"
    try:
        wait_for(lambda: expected in client.found("camera left").message, "the wrong type to be named", 20)
    finally:
        other.destroy_node()
        rclpy.shutdown(context=context)


def test_announced_images_that_never_come_get_a_hint(client):
    publisher = client.node.create_publisher(type(image(0)), "/left/image", 1)
    try:
        hint = "is announced by 1 publisher(s) but nothing comes"
        wait_for(lambda: hint in client.found("camera left").message, "the hint")
        message = client.found("camera left").message
        assert "large_images.xml" in message and "qos_overrides./left/image.subscription.reliability" in message
    finally:
        client.node.destroy_publisher(publisher)


def test_images_that_come_less_often_than_their_camera_info_are_lost_on_the_way(client):
    beats = itertools.count()

    def thinned():
        stamp = client.now_ns()
        picture = image(stamp, frame_id="rear_optical") if next(beats) % 4 == 0 else None
        client.send(picture, info(stamp, frame_id="rear_optical"), "/boom/rear/image_raw", "/calibration/rear")
        time.sleep(0.05)
        return "images are lost on the way" in client.found("camera rear").message

    wait_for(thinned, "the loss to be noticed")
    status = client.found("camera rear")
    assert status.level == DiagnosticStatus.WARN and status.message.startswith("only ")


def test_compressed_images_are_read_below_the_images_name(start):
    large = {"output_height": 360, "output_width": 480}
    node, client = start(
        {**SMALL, **large, "image_transport": "compressed", "max_age": 0.5},
        "-r",
        "image:=/cam/image_raw",
        name="reads_jpeg",
    )
    import cv2

    masks = client.listen("segmentation/mask", "sensor_msgs/msg/Image")
    client.wait_for_state("active")
    pixels = np.full((96, 128, 3), 90, np.uint8)
    jpeg = cv2.imencode(".jpg", pixels)[1].reshape(-1)

    def shot(stamp, data=jpeg):
        return TYPES.make("sensor_msgs/msg/CompressedImage", header=TYPES.header(stamp, "c"), format="jpeg", data=data)

    def arrived():
        client.send(shot(client.now_ns()), None, "/cam/image_raw/compressed")
        time.sleep(0.05)
        return masks

    wait_for(arrived, "a mask of a compressed image")
    assert (masks[0].height, masks[0].width) == (360, 480)

    client.listen("depth/image", "sensor_msgs/msg/Image")
    warning = "/reads_jpeg/depth/image sends messages of 0.7 MB, which Fast DDS with its own settings loses"
    wait_for(lambda: arrived() and warning in node.log(), "the warning about large messages")
    wait_for(lambda: warning in client.values("perception").get("warnings", ""), "the warning in the diagnostics")
    assert node.log().count("sends messages of") == 1  # once, and not for the masks of 0.17 MB

    def too_old():
        client.send(shot(client.now_ns() - 10**9), None, "/cam/image_raw/compressed")
        time.sleep(0.05)
        status = client.found("camera camera")
        return status.level == DiagnosticStatus.ERROR and "max_age is 500 ms" in status.message

    wait_for(too_old, "the age to be named")

    def broken():
        client.send(shot(client.now_ns(), jpeg[:40]), None, "/cam/image_raw/compressed")
        time.sleep(0.05)
        return client.count("camera", "dropped: not usable") > 0

    wait_for(broken, "the broken picture to be counted")
    assert node.alive()
