"""`dino-perception benchmark --node`: what its tables are made of, and that it measures a real node."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

from dino_perception.measuring.node_page import page

pytest.importorskip("rclpy", reason="needs a ROS 2 installation")

from dino_perception.measuring.node_benchmark import Bench, NodeBenchmarkError, Span, _some, parts  # noqa: E402
from dino_perception.perception.settings import Settings  # noqa: E402
from dino_perception.ros.rig.watcher import Heard  # noqa: E402

SMALL = (
    "engine=torch",
    "threads=1",
    "input_height=96",
    "input_width=128",
    "output_height=48",
    "output_width=64",
    "max_age=60.0",
)


def cdr(stamp_s: int) -> bytes:
    return b"\x00\x01\x00\x00" + stamp_s.to_bytes(4, "little") + bytes(16)


class Ears:
    """What a listener heard, made by hand."""

    def __init__(self, **topics):
        self.heard = {
            topic: [Heard(topic, "", round(sent * 1e9), cdr(stamp)) for stamp, sent in messages]
            for topic, messages in topics.items()
        }


def bench_of(**topics) -> Bench:
    bench = Bench.__new__(Bench)
    bench.watcher = Ears(**{f"/dino_perception/{name}": heard for name, heard in topics.items()})
    bench._listen, bench._prefix = tuple(topics), {"front": ""}
    return bench


def test_a_frame_is_as_late_as_the_last_of_its_messages_and_counts_where_it_was_sent():
    bench = bench_of(mask=[(10, 10.1), (11, 11.1), (12, 12.1)], points=[(10, 10.2), (11, 11.3)])
    assert np.allclose(bench.latencies("front", Span(10_000_000_000, 12_000_000_000)), [200, 300])
    assert np.allclose(bench.latencies("front", Span(11_000_000_000, 13_000_000_000)), [300, 100])


def test_it_measures_three_cameras_of_a_running_node_and_writes_a_page(tmp_path):
    out, target = tmp_path / "node.json", tmp_path / "page.md"
    target.write_text("<!-- node cameras -->\n<!-- end -->\n<!-- node demand -->\n<!-- end -->\n")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "dino_perception.cli",
            "benchmark",
            "--node",
            "cameras,demand",
            "--seconds",
            "1.5",
            "--json",
            out,
            "--page",
            target,
            *(part for text in SMALL for part in ("--set", text)),
        ],
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    measured = json.loads(out.read_text())
    rows = {(row["camera"], row["phase"]): row for row in measured["cameras"][0]["rows"]}
    assert rows["left", "killed"]["sent_hz"] == 0 and rows["left", "killed"]["published_hz"] == 0
    for camera, phase in rows.keys() - {("left", "killed")}:
        row = rows[camera, phase]
        assert 0 < row["published_hz"] <= row["sent_hz"] + 1 and 0 < row["p50_ms"] <= row["p95_ms"]
    everything, one, nothing = measured["demand"][0]["rows"]
    assert {"backbone", "segmentation", "depth", "matching"} <= everything["stages_ms"].keys()
    assert {"backbone", "segmentation"} <= one["stages_ms"].keys() and "depth" not in one["stages_ms"]
    assert nothing["stages_ms"] == {} and nothing["p50_ms"] is None
    assert "| left | killed | 0.0 | 0.0 | none | none |" in target.read_text()
    assert "| depth | " in target.read_text() and "not run | not run |" in target.read_text()


def test_an_unknown_part_is_refused_with_what_there_is():
    done = subprocess.run(
        [sys.executable, "-m", "dino_perception.cli", "benchmark", "--node", "warp"], text=True, capture_output=True
    )
    assert done.returncode == 1
    assert "--node warp is not known; accepted are all, cameras, overload, demand, overhead" in done.stderr


def test_a_node_that_is_too_slow_to_publish_anything_is_a_sentence():
    with pytest.raises(NodeBenchmarkError, match="published nothing: 'max_age' is 0.5 s"):
        _some(np.array([]), Settings())


def test_what_the_pages_say_is_what_was_measured():
    spread = {"p50_ms": 100.4, "p95_ms": 150.0, "p99_ms": 160.0}
    run = {
        "input": "rover-tiny, input 480x640",
        "processing_ms": 90.0,
        "light": spread,
        "camera_hz": 22.2,
        "sent_hz": 22.1,
        "published_hz": 11.0,
        **spread,
        "max_ms": 170.0,
        "limit_ms": 162.0,
        "max_age_ms": 500.0,
        "rss_mb": [400.2] * 6,
        "seconds": 30.0,
    }
    text = "\n".join(page("overload", [run]))
    assert "100 / 150 / 160 / 170 ms" in text and "162 ms" in text and "400, 400" in text


def test_what_is_above_the_graphs_is_named_part_by_part_and_nothing_is_left_out():
    graphs = {"backbone": 80.0, "segmentation": 5.0, "all": 85.0}
    stages = {
        "receive": 2.0,
        "wait": 0.5,
        "decode": 0.5,
        "preprocess": 1.0,
        "messages": 2.0,
        "publish": 1.5,
        "matching": 7.0,
    }
    split = parts(104.0, graphs, {**stages, "backbone": 82.0, "segmentation": 4.0})
    assert sum(split.values()) == pytest.approx(104.0 - 85.0)
    assert split["matching"] == 7.0 and split["graphs within the node, above the graphs alone"] == 1.0
    assert split["between the parts"] == pytest.approx(3.5)
    for said in ("receive", "hand-over", "decode", "preprocess", "build", "send", "matching"):
        assert sum(said in name for name in split) == 1
