"""`dino-perception demo` as it is run, with a small input so that it takes seconds; all of it is real."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs a ROS 2 installation")

from dino_perception.bags.storage.reader import BagReader  # noqa: E402
from dino_perception.measuring.demo_run import NODE, output_topics  # noqa: E402
from dino_perception.messages.topics import offered  # noqa: E402
from dino_perception.perception.settings import Settings  # noqa: E402

TOPICS = [name for name, topic in offered(Settings().heads).items() if not topic.placed]

SMALL = {
    "engine": "torch",
    "threads": 1,
    "input_height": 96,
    "input_width": 128,
    "output_height": 48,
    "output_width": 64,
    "max_age": 60.0,
}


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The finished process and its folder."""
    out = tmp_path_factory.mktemp("demo") / "out"
    parameters = [part for name, value in SMALL.items() for part in ("--param", f"{name}:={value}")]
    done = subprocess.run(
        [sys.executable, "-m", "dino_perception.cli", "demo", "--out", str(out), *parameters],
        capture_output=True,
        text=True,
        timeout=300,
    )
    return done, out


def test_it_succeeds_and_says_what_it_measured(demo):
    done, out = demo
    assert done.returncode == 0, done.stdout + done.stderr + (out / "node.log").read_text()
    for word in ("mIoU", "AbsRel", "PCK@4", "p50 / p95 / p99", f"{NODE}/points"):
        assert word in done.stdout


def test_every_topic_came_and_everything_fits_together(demo):
    report = json.loads((demo[1] / "report.json").read_text())
    assert set(report["topics"]) == {f"{NODE}/{name}" for name in TOPICS} | {"/diagnostics"}
    assert all(topic["count"] for topic in report["topics"].values())
    assert (report["stamp_mismatches"], report["size_mismatches"]) == (0, 0)
    assert 0 < report["frames_out"] <= report["frames_in"] == 100
    assert report["engine"] == "torch" and isinstance(report["weights_trained"], bool)
    assert 0 <= report["miou"] <= 1 and 0 <= report["pck4"] <= 1 and report["abs_rel"] > 0
    assert 0 < report["latency_ms"]["p50"] <= report["latency_ms"]["p95"] <= report["latency_ms"]["p99"]


def test_the_output_bag_holds_what_was_played_and_what_came_of_it(demo):
    report = json.loads((demo[1] / "report.json").read_text())
    with BagReader(demo[1] / "drive") as bag:
        assert not bag.problems
        assert {name: bag.topics[name].count for name in output_topics()} == {
            name: topic["count"] for name, topic in report["topics"].items()
        }
        assert bag.topics["/camera/image_raw/compressed"].count == 100
        images = {record.time_ns for record in bag.messages(["/camera/image_raw/compressed"])}
        for record in bag.messages([f"{NODE}/depth/image"]):
            message = bag.decode(record)
            stamp = message.header.stamp.sec * 1_000_000_000 + message.header.stamp.nanosec
            assert stamp in images and (message.encoding, message.width, message.height) == ("32FC1", 64, 48)
            assert record.time_ns > stamp  # published after its image
            assert np.frombuffer(message.data, np.float32).size == 64 * 48


def test_there_is_a_picture(demo):
    import cv2

    height, width = cv2.imread(str(demo[1] / "pictures.png")).shape[:2]
    assert width > 1500 and height > 1000


def test_a_node_that_cannot_start_is_told_in_a_sentence(tmp_path):
    command = [
        sys.executable,
        "-m",
        "dino_perception.cli",
        "demo",
        "--out",
        str(tmp_path),
        "--param",
        "backbone:=no-such-model",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    assert (
        "the node is not configured" in done.stderr
        and "no-such-model" in done.stderr
        and "Traceback" not in done.stderr
    )
