"""Heads run when they are enabled, due and listened to, and not otherwise."""

import dataclasses
import json

import pytest

from dino_perception.messages.demand import Demand
from dino_perception.perception.settings import default_heads

HEADS = default_heads(["segmentation", "depth", "correspondences"])


def with_head(name: str, **changes):
    return {**HEADS, name: dataclasses.replace(HEADS[name], **changes)}


def seconds(value: float) -> int:
    return round(value * 1e9)


def test_nobody_listens_so_nothing_runs():
    assert Demand().decide("front", 0, set(), HEADS) == (set(), set())


@pytest.mark.parametrize(
    "topic, heads",
    [
        ("segmentation/mask", {"segmentation"}),
        ("segmentation/overlay", {"segmentation"}),
        ("depth/image", {"depth"}),
        ("points", {"depth", "segmentation"}),
        ("correspondences/overlay", {"correspondences"}),
        ("depth/camera_info", set()),
    ],
)
def test_a_topic_needs_the_heads_that_it_shows(topic, heads):
    assert Demand().decide("front", 0, {topic}, HEADS) == ({topic}, heads)


def test_a_disabled_head_never_runs_and_its_topics_rest():
    heads = with_head("depth", enabled=False)
    assert Demand().decide("front", 0, {"depth/image", "points", "segmentation/mask"}, heads) == (
        {"segmentation/mask"},
        {"segmentation"},
    )


def test_points_do_without_a_segmentation_that_is_disabled_or_not_loaded():
    for heads in (with_head("segmentation", enabled=False), default_heads(["depth"])):
        assert Demand().decide("front", 0, {"points"}, heads) == ({"points"}, {"depth"})


@pytest.mark.parametrize(
    "rate, camera_hz, expected", [(5.0, 10.0, 50), (4.0, 10.0, 40), (3.0, 30.0, 30), (20.0, 10.0, 100)]
)
def test_a_rate_is_kept_on_average_although_stamps_jitter(rate, camera_hz, expected):
    demand, heads = Demand(), with_head("depth", rate=rate)
    runs = 0
    for number in range(int(10 * camera_hz)):
        jitter = 0.2 / camera_hz * (1, -1, 0.5, -0.5)[number % 4]
        _, wanted = demand.decide("front", seconds(1 + number / camera_hz + jitter), {"depth/image"}, heads)
        runs += "depth" in wanted
    assert runs == pytest.approx(expected, abs=1)


def test_points_come_at_the_rate_of_their_slower_head():
    demand, heads = Demand(), with_head("segmentation", rate=1.0)
    seen = [demand.decide("front", seconds(number / 10), {"points", "depth/image"}, heads) for number in range(20)]
    assert [number for number, (topics, _) in enumerate(seen) if "points" in topics] == [0, 10]
    assert all("depth/image" in topics for topics, _ in seen)


def test_each_camera_has_its_own_rate():
    demand, heads = Demand(), with_head("depth", rate=1.0)
    for camera in ("front", "rear"):
        assert demand.decide(camera, seconds(5), {"depth/image"}, heads)[1] == {"depth"}
        assert demand.decide(camera, seconds(5.5), {"depth/image"}, heads)[1] == set()
    demand.reset("front")
    assert demand.decide("front", seconds(5.6), {"depth/image"}, heads)[1] == {"depth"}
    assert demand.decide("rear", seconds(5.6), {"depth/image"}, heads)[1] == set()


def test_after_a_pause_the_rate_starts_anew_without_catching_up():
    demand, heads = Demand(), with_head("depth", rate=1.0)
    stamps = [0.0, 60.0, 60.1, 60.2, 60.9, 61.0]
    runs = [stamp for stamp in stamps if demand.decide("front", seconds(stamp), {"depth/image"}, heads)[1]]
    assert runs == [0.0, 60.0, 61.0]


def test_time_that_jumps_back_does_not_stop_a_head():
    demand, heads = Demand(), with_head("depth", rate=1.0)
    assert demand.decide("front", seconds(1000), {"depth/image"}, heads)[1] == {"depth"}
    assert demand.decide("front", seconds(10), {"depth/image"}, heads)[1] == {"depth"}
    assert demand.decide("front", seconds(10.5), {"depth/image"}, heads)[1] == set()


def test_rates_go_on_from_what_was_remembered():
    heads = with_head("depth", rate=3.0)
    whole, first, second = Demand(), Demand(), Demand()
    stamps = [seconds(1 + number / 10) for number in range(40)]
    expected = [whole.decide("front", stamp, {"depth/image"}, heads) for stamp in stamps]
    for stamp in stamps[:17]:
        first.decide("front", stamp, {"depth/image"}, heads)
    second.recall(json.loads(json.dumps(first.memory())))
    assert [second.decide("front", stamp, {"depth/image"}, heads) for stamp in stamps[17:]] == expected[17:]
