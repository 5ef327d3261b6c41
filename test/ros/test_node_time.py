"""Simulated time: ages by /clock alone, and a bag that starts again."""

import signal
import time

import pytest
from diagnostic_msgs.msg import DiagnosticStatus
from live_node import SMALL, TYPES, image, stamp_ns, wait_for
from rclpy.qos import QoSProfile


@pytest.fixture(scope="module")
def live(start):
    node, client = start({**SMALL, "use_sim_time": True, "max_age": 0.5}, name="simulated")
    client.wait_for_state("active")
    client.clock = client.node.create_publisher(TYPES.type("rosgraph_msgs/msg/Clock"), "/clock", QoSProfile(depth=10))
    wait_for(lambda: client.clock.get_subscription_count(), "the node to listen to /clock")
    yield node, client
    assert node.stop(signal.SIGTERM) == 0
    assert "Traceback" not in node.log()


def tick(client, seconds):
    stamp = TYPES.header(round(seconds * 1e9), "").stamp
    client.clock.publish(TYPES.make("rosgraph_msgs/msg/Clock", clock=stamp))


def send(client, seconds):
    client.send(image(round(seconds * 1e9)))


def test_before_the_clock_runs_frames_are_published(live):
    _, client = live
    masks = client.listen("segmentation/mask", "sensor_msgs/msg/Image")
    wait_for(lambda: send(client, 5.0) or time.sleep(0.05) or masks, "a mask")
    assert {stamp_ns(mask) for mask in masks} == {5_000_000_000}


def test_age_is_counted_in_simulated_time(live):
    _, client = live
    masks = client.listen("segmentation/mask", "sensor_msgs/msg/Image")

    def fresh():
        tick(client, 100.0)
        send(client, 99.8)
        time.sleep(0.05)
        return 99_800_000_000 in map(stamp_ns, masks)

    wait_for(fresh, "a frame of 0.2 s of simulated age to be published")

    def old():
        send(client, 99.0)
        time.sleep(0.05)
        return client.count("camera", "dropped: older than max_age") > 0

    wait_for(old, "a frame of 1 s of simulated age to be dropped")
    assert 99_000_000_000 not in map(stamp_ns, masks)


def test_when_time_starts_again_so_do_the_outputs_and_the_tracks(live):
    _, client = live
    matches = client.listen("correspondences", "dino_perception/msg/Correspondences")

    def round_from(start_s):
        matches.clear()

        def frame():
            round_from.now += 0.1
            tick(client, round_from.now)
            send(client, round_from.now)
            time.sleep(0.05)
            return len([m for m in matches if stamp_ns(m) >= start_s * 1e9]) >= 4

        round_from.now = start_s
        wait_for(frame, "correspondences")
        return [m for m in matches if stamp_ns(m) >= start_s * 1e9][1:]

    later = round_from(200.0)
    tick(client, 10.0)
    again = round_from(10.0)
    for match in again:
        reference = match.reference_header.stamp
        assert reference.sec * 1_000_000_000 + reference.nanosec <= stamp_ns(match) < 200e9
    assert not {int(track) for m in later for track in m.track_id} & {int(track) for m in again for track in m.track_id}


def test_stamps_that_do_not_belong_to_the_clock_are_named(live):
    _, client = live
    client.listen("segmentation/mask", "sensor_msgs/msg/Image")

    def strange():
        tick(client, 20000.0)
        send(client, 11.0)
        time.sleep(0.05)
        status = client.found("camera camera")
        return "do not belong together" in status.message and status.level == DiagnosticStatus.ERROR

    wait_for(strange, "the sentence about the clocks")
