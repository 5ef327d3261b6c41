"""The shipped drive through the whole path: an engine or a model that changes is noticed, and memory stays bounded."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import recorded
import yaml
from recorded import STORE, drive

from dino_perception.bags.compare import compare, parse_tolerances
from dino_perception.bags.job import Job, run
from dino_perception.bags.storage.topic import Record, Topic
from dino_perception.bags.storage.writer import BagWriter
from dino_perception.perception.perceiver import Perceiver
from dino_perception.perception.settings import Settings

DRIVE = Path(__file__).parents[2] / "data" / "sample_drive"
SETTINGS = {**recorded.SMALL, "input_height": 96, "input_width": 128, "output_height": 48, "output_width": 64}


def replayed(output, **settings):
    made = Settings.from_flat({**SETTINGS, **settings})
    return run(
        Job(DRIVE, output, made, duration=0.75, copy=("none",)), lambda: Perceiver(made, report=lambda line: None)
    )


def test_another_engine_is_equal_within_the_thresholds(tmp_path):
    """float32 in OpenVINO against float32 in torch, on 8 frames of the shipped drive."""
    pytest.importorskip("openvino", reason="openvino is not installed")
    first, second = replayed(tmp_path / "torch.mcap"), replayed(tmp_path / "openvino.mcap", engine="openvino")
    assert first.figures["frames_out"] == second.figures["frames_out"] == 8
    names = ["mask=0.005", "confidence=0.005", "depth=0.002", "points=0.05", "matches=0.05", "grid=0.001", "pose=0.001"]
    limits = parse_tolerances(names)
    different = [
        (d.topic, d.worst) for d in compare(tmp_path / "torch.mcap", tmp_path / "openvino.mcap", limits) if not d.passes
    ]
    assert different == []


def test_another_resolution_is_not(tmp_path):
    """The thresholds above can fail: what a smaller input does to the outputs is beyond them."""
    replayed(tmp_path / "one.mcap")
    replayed(tmp_path / "two.mcap", input_height=64, input_width=96)
    limits = parse_tolerances(["mask=0.005", "confidence=0.005", "depth=0.002", "points=0.05", "matches=0.05"])
    failed = {
        d.topic.rpartition("dino_perception/")[2]
        for d in compare(tmp_path / "one.mcap", tmp_path / "two.mcap", limits)
        if not d.passes
    }
    assert {"segmentation/mask", "depth/image"} <= failed


def test_peak_memory_does_not_follow_the_bags_size(tmp_path):
    """500 MB more in the bag, all of it read and copied, raise the peak by less than 150 MB."""
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"/**": {"ros__parameters": recorded.SMALL}}))
    bulk = Topic("/bulk", "std_msgs/msg/String", "string data\n", "ros2msg")
    peaks = []
    for name, size in (("small", 100), ("large", 6_000_000)):
        writer, data = BagWriter(tmp_path / f"{name}.mcap"), b"\0\1\0\0" + size.to_bytes(4, "little") + bytes(size)
        for topic, time, content in drive(84):
            kind = content.__msgtype__
            writer.write([Record(Topic(topic, kind), time, STORE.serialize_cdr(content, kind))])
            if topic.endswith("image_raw"):
                writer.write([Record(bulk, time, data)])
        writer.close()
        command = [
            sys.executable,
            "-m",
            "dino_perception.cli",
            "replay",
            str(tmp_path / f"{name}.mcap"),
            str(tmp_path / f"{name}_out.mcap"),
            "--config",
            str(tmp_path / "config.yaml"),
            "--every",
            "14",
            "--json",
            str(tmp_path / f"{name}.json"),
        ]
        assert subprocess.run(command, stdout=subprocess.DEVNULL).returncode == 0
        peaks.append(json.loads((tmp_path / f"{name}.json").read_text())["rss_peak_mb"])
        for path in (tmp_path / f"{name}.mcap", tmp_path / f"{name}_out.mcap"):
            path.unlink()
    assert peaks[1] - peaks[0] < 150, peaks
