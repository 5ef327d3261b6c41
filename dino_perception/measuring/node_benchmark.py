"""The measurement behind `dino-perception benchmark --node`: the node itself, over real ROS 2, as a rover runs it.

Cameras, node and listener are processes of their own on a ROS domain of their own on this machine. A latency is the time
from an image's stamp, set when the camera sends it, until the node sends the last of that frame's data (mask, confidence,
depth, camera_info, points, correspondences), both by the system's clock.
"""

from __future__ import annotations

import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from dino_perception import process_memory
from dino_perception.child_processes import ends_with_parent
from dino_perception.messages.topics import TOPICS, offered, waiting
from dino_perception.perception.settings import Settings
from dino_perception.ros.large_messages import large_message_profile
from dino_perception.ros.rig.isolation import isolated
from dino_perception.ros.rig.node_process import NODE, STATUS, NodeProcess, stop
from dino_perception.ros.rig.watcher import Watcher

DATA = tuple(name for name, topic in offered(Settings().heads).items() if topic.kind == "data")
THREE = {"front": 10.0, "left": 15.0, "rear": 5.0}
KILLED = "left"
SETTLE_S = 3.0
HEADER_BYTES = 64
MEDIAN = " [ms].p50"
"""What the diagnostics call the median of a stage."""
PARTS = {
    "receive": "receive: from the stamp to the node's callback",
    "wait": "hand-over to the thread that looks",
    "decode": "decode",
    "preprocess": "preprocess",
    "copy": "outputs out of the engine's memory",
    "messages": "build messages",
    "publish": "send messages",
    "matching": "matching",
}
"""What the node does beside its graphs: stage in the diagnostics -> what the table calls it."""

Say = Callable[[str], None]


class NodeBenchmarkError(RuntimeError):
    """Nothing can be measured; the message says why."""


@dataclass(frozen=True)
class Span:
    """A stretch of time by the system's clock, in nanoseconds."""

    begin_ns: int
    end_ns: int

    @property
    def seconds(self) -> float:
        return (self.end_ns - self.begin_ns) / 1e9


class Bench:
    """A node with cameras and a listener; a context manager that leaves nothing running.

    `settings` are the node's. `listen` are the output topics (relative names) that are subscribed to.
    """

    def __init__(self, settings: Settings, pictures: np.ndarray, listen: Sequence[str], say: Say):
        self._settings, self._say, self._listen = settings, say, listen
        self._pictures = pictures
        self._cameras: dict[str, subprocess.Popen] = {}

    def __enter__(self) -> Bench:
        with ExitStack() as stack:
            stack.enter_context(isolated())
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            np.save(folder / "pictures.npy", self._pictures)
            self._file = folder / "pictures.npy"
            parameters = folder / "node.yaml"
            values = {p.name: p.value if p.value != [] else [""] for p in self._settings.parameters()}
            parameters.write_text(yaml.safe_dump({"/**": {"ros__parameters": values}}))
            several = len(self._settings.cameras) > 1
            self._prefix = {camera: f"{camera}/" if several else "" for camera in self._settings.cameras}
            self._source = {camera: f"/{camera}/" if several else "/" for camera in self._settings.cameras}
            topics = {
                f"{NODE}/{prefix}{name}": TOPICS[name].type for prefix in self._prefix.values() for name in self._listen
            }
            topics.update({f"{source}camera_info": "sensor_msgs/msg/CameraInfo" for source in self._source.values()})
            self.watcher = Watcher(topics, most_bytes=HEADER_BYTES)
            stack.callback(self.watcher.close)
            remaps = [
                part
                for camera, source in self._source.items()
                if several
                for name in ("image", "camera_info")
                for part in ("-r", f"{NODE}/{camera}/{name}:={source}{name}")
            ]
            begun = time.time()
            self.node = NodeProcess(["--params-file", str(parameters), *remaps], folder / "node.log")
            stack.callback(self.node.close)
            self.node.wait_until_active(self.watcher, self._say)
            ready = re.search(r"\[(\d+\.\d+)\] \[dino_perception\]: ready", self.node.log())
            self.ready_s = float(ready.group(1)) - begun if ready else float("nan")
            stack.callback(lambda: [stop(camera) for camera in self._cameras.values()])
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_) -> None:
        self._stack.close()

    def start(self, camera: str, hz: float) -> None:
        """Switch a camera on, and wait until it is heard. Raises NodeBenchmarkError."""
        name = camera if len(self._settings.cameras) > 1 else ""
        heard = self.watcher.heard[f"{self._source[camera]}camera_info"]
        before = len(heard)
        self._cameras[camera] = subprocess.Popen(
            [sys.executable, "-m", "dino_perception.ros.rig.sender", name, str(hz), str(self._file)],
            env={**os.environ, **large_message_profile()},
            start_new_session=True,
            **ends_with_parent(),
        )
        until = time.monotonic() + 30
        while len(heard) == before:
            if time.monotonic() > until:
                raise NodeBenchmarkError(f"nothing is heard of camera '{camera}', 30 s after its start")
            time.sleep(0.02)

    def kill(self, camera: str) -> None:
        """Take a camera away without a word, as a pulled plug does."""
        process = self._cameras.pop(camera)
        process.kill()
        process.wait()

    def end(self, camera: str) -> None:
        """Switch a camera off."""
        stop(self._cameras.pop(camera))

    def watch(self, seconds: float, what: str) -> Span:
        """Let time pass."""
        begin, until = time.time_ns(), time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self._say(f"{what}: {left:.0f} s")
            self.node.check()
            time.sleep(min(left, 0.5))
        return Span(begin, time.time_ns())

    def sent(self, camera: str, span: Span) -> float:
        """Images a second that the camera sent. Each is followed by its camera_info, which is counted."""
        heard = self.watcher.heard[f"{self._source[camera]}camera_info"]
        return sum(span.begin_ns <= h.sent_ns < span.end_ns for h in heard) / span.seconds

    def latencies(self, camera: str, span: Span, without: Collection[str] = ()) -> np.ndarray:
        """Milliseconds from stamp to the last of the frame's data, `without` some topics, of frames that were published
        within the span."""
        done: dict[int, int] = {}
        for name in (name for name in self._listen if name not in without):
            for heard in self.watcher.heard[f"{NODE}/{self._prefix[camera]}{name}"]:
                done[heard.stamp_ns] = max(done.get(heard.stamp_ns, 0), heard.sent_ns)
        return np.array(
            [(sent - stamp) / 1e6 for stamp, sent in sorted(done.items()) if span.begin_ns <= sent < span.end_ns]
        )

    def status(self, name: str = STATUS) -> Mapping[str, str]:
        """The newest values of a status on /diagnostics."""
        return self.watcher.diagnostics.get(name, ("", {}))[1]

    def rss_mb(self) -> float:
        """The node's resident memory in MB (2**20 bytes)."""
        return process_memory.resident(self.node.pid) / 2**20

    def cpu_s(self) -> float:
        """Processor time that the node has used, in seconds."""
        fields = Path(f"/proc/{self.node.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def cameras(settings: Settings, pictures: np.ndarray, seconds: float, say: Say) -> dict[str, Any]:
    """Three cameras at 10, 15 and 5 Hz in one node; the fastest is killed and comes back."""
    settings = settings.changed({"cameras": list(THREE)})
    with Bench(settings, pictures, DATA, say) as bench:
        for camera, hz in THREE.items():
            bench.start(camera, hz)
        bench.watch(_settling(seconds), "settling")
        rows = []
        for phase in ("before", "killed", "back"):
            if phase == "killed":
                bench.kill(KILLED)
            elif phase == "back":
                bench.start(KILLED, THREE[KILLED])
            bench.watch(_settling(seconds) if phase != "before" else 0, "settling")
            span = bench.watch(seconds, f"three cameras, {KILLED} {phase}")
            for camera, hz in THREE.items():
                late = bench.latencies(camera, span)
                rows.append(
                    {
                        "phase": phase,
                        "camera": camera,
                        "sent_hz": bench.sent(camera, span),
                        "published_hz": len(late) / span.seconds,
                        **_spread(late),
                    }
                )
        return {"input": _input(settings), "rows": rows, "killed": KILLED, "rates": THREE, "seconds": seconds}


def overload(settings: Settings, pictures: np.ndarray, seconds: float, say: Say) -> dict[str, Any]:
    """One camera at twice what the node can process, which is found first by sending far more than it can take."""
    camera = settings.cameras[0]
    with Bench(settings.changed({"cameras": [camera]}), pictures, DATA, say) as bench:
        bench.start(camera, 2.0)
        bench.watch(SETTLE_S, "settling")
        light = bench.latencies(camera, bench.watch(10, "two images a second"))
        bench.end(camera)
        bench.start(camera, 60.0)
        bench.watch(SETTLE_S, "settling")
        span = bench.watch(10, "as many as it takes")
        processing_ms = 1e3 * span.seconds / len(_some(bench.latencies(camera, span), settings))
        bench.end(camera)
        hz = 2e3 / processing_ms
        bench.start(camera, hz)
        bench.watch(SETTLE_S, "settling")
        memory, spans = [], []
        for part in range(6):
            spans.append(bench.watch(seconds / 6, f"overload, part {part + 1} of 6"))
            memory.append(bench.rss_mb())
        span = Span(spans[0].begin_ns, spans[-1].end_ns)
        late = _some(bench.latencies(camera, span), settings)
        status = bench.status(f"dino_perception: camera {camera}")
        return {
            "input": _input(settings),
            "processing_ms": processing_ms,
            "light": _spread(light),
            "camera_hz": hz,
            "sent_hz": bench.sent(camera, span),
            "published_hz": len(late) / span.seconds,
            **_spread(late),
            "max_ms": float(late.max()),
            "limit_ms": 1e3 / hz + 1.3 * processing_ms,
            "max_age_ms": 1e3 * settings.max_age,
            "rss_mb": memory,
            "seconds": span.seconds,
            "replaced": int(status.get("dropped: newer came", 0)),
            "too_old": int(status.get("dropped: older than max_age", 0)),
        }


def demand(settings: Settings, pictures: np.ndarray, seconds: float, say: Say) -> dict[str, Any]:
    """One camera of two images a second; everything, only the mask, or nothing is subscribed to."""
    camera = settings.cameras[0]
    rows = []
    for who, listen in (("all data topics", DATA), ("segmentation/mask", ("segmentation/mask",)), ("nothing", ())):
        with Bench(settings.changed({"cameras": [camera]}), pictures, listen, say) as bench:
            bench.start(camera, 2.0)
            bench.watch(_settling(seconds), "settling")
            before = bench.cpu_s()
            span = bench.watch(seconds, f"{who} watched")
            used = bench.cpu_s() - before
            rows.append(
                {
                    "watched": who,
                    "stages_ms": _stages(bench.status()),
                    "cpu_share": used / span.seconds,
                    "sent_hz": bench.sent(camera, span),
                    "ready_s": bench.ready_s,
                    **_spread(bench.latencies(camera, span)),
                }
            )
    return {"input": _input(settings), "rows": rows}


def overhead(settings: Settings, pictures: np.ndarray, rounds: int, say: Say) -> dict[str, Any]:
    """The node's latency at a leisurely rate against the compiled graphs alone, in turns of a few seconds each.

    While the graphs run here, the camera is off and the node sleeps; while the node works, this process sleeps.
    """
    import torch

    from dino_perception.measuring.core_benchmark import resized
    from dino_perception.perception.perceiver import Perceiver

    camera = settings.cameras[0]
    settings = settings.changed({"cameras": [camera]})
    perceiver = Perceiver(settings, report=say)
    size = (settings.input_height, settings.input_width)
    pixels = [torch.from_numpy(resized(picture, size)[None].copy()).to(perceiver.device) for picture in pictures]
    times: dict[str, list[float]] = {}
    late: list[float] = []
    dense: list[float] = []
    stages: list[dict[str, float]] = []
    with Bench(settings, pictures, DATA, say) as bench:
        for turn in range(-1, rounds):
            say(f"round {max(0, turn + 1)} of {rounds}")
            times_now = _graphs(perceiver, pixels, 12)
            alone = statistics.median(times_now["all"])
            bench.start(camera, min(5.0, 400 / alone))
            bench.watch(1.0, f"round {turn + 1}")
            span = bench.watch(max(4.0, 15 * alone / 400), f"round {turn + 1}")
            stages.append(_stages(bench.status()))
            bench.end(camera)
            if turn < 0:
                stages.clear()
                continue
            late += list(bench.latencies(camera, span))
            dense += list(bench.latencies(camera, span, without=waiting({"correspondences"})))
            for name, ms in times_now.items():
                times.setdefault(name, []).extend(ms)
    about = perceiver.describe()
    perceiver.close()
    graphs = {name: statistics.median(ms) for name, ms in times.items()}
    node, first = (statistics.median(_some(ms, settings)) for ms in (late, dense))
    middle = {name: statistics.median(s[name] for s in stages if name in s) for s in stages for name in s}
    return {
        "backbone": settings.backbone,
        "engine": about["engine"],
        "precision": about["precision"],
        "input": about["input"],
        "image": list(pictures.shape[1:3]),
        "graphs_ms": graphs,
        "node_ms": node,
        "dense_ms": first,
        "frames": len(late),
        "ratio": node / graphs["backbone"],
        "above_ms": node - graphs["all"],
        "dense_ratio": first / graphs["backbone"],
        "dense_above_ms": first - graphs["all"],
        "parts_ms": parts(node, graphs, middle),
    }


def parts(node_ms: float, graphs: Mapping[str, float], stages: Mapping[str, float]) -> dict[str, float]:
    """What the node's latency above all graphs is made of, in milliseconds: `PARTS`, how much longer the graphs take within
    the node than alone, and what is left, which nobody has measured. Medians of each, so they add up to about the whole."""
    named = {what: stages[name] for name, what in PARTS.items() if name in stages}
    within = sum(stages.get(name, 0.0) for name in graphs if name != "all")
    named["graphs within the node, above the graphs alone"] = within - graphs["all"]
    return {**named, "between the parts": node_ms - graphs["all"] - sum(named.values())}


def _settling(seconds: float) -> float:
    """How long a node is left to itself before it is measured for so many seconds."""
    return min(SETTLE_S, seconds)


def _stages(status: Mapping[str, str]) -> dict[str, float]:
    """Median milliseconds a stage from the node's diagnostics."""
    medians = {name.removesuffix(MEDIAN): float(value) for name, value in status.items() if name.endswith(MEDIAN)}
    return {name: ms for name, ms in medians.items() if "to publish" not in name}


def _graphs(perceiver: Any, pixels: Sequence[Any], count: int) -> dict[str, list[float]]:
    """Milliseconds of each compiled graph, one after another: backbone, every head, and their sum as "all"."""
    import torch

    heads = list(perceiver.settings.heads)
    times: dict[str, list[float]] = {}
    with torch.inference_mode():
        for i in range(-2, count):
            sample: dict[str, float] = {}
            start = time.perf_counter()
            maps = perceiver.graphs.graph("backbone")(pixels[i % len(pixels)])
            sample["backbone"] = _since(start, perceiver.device)
            for head in heads:
                start = time.perf_counter()
                perceiver.graphs.graph(head)(*perceiver.graphs.inputs(head, maps))
                sample[head] = _since(start, perceiver.device)
            sample["all"] = sum(sample.values())
            if i >= 0:
                for name, ms in sample.items():
                    times.setdefault(name, []).append(ms)
    return times


def _input(settings: Settings) -> str:
    return f"{settings.backbone}, input {settings.input_height}x{settings.input_width}"


def _since(start: float, device: Any) -> float:
    from dino_perception.measuring.core_benchmark import wait

    wait(device)
    return (time.perf_counter() - start) * 1e3


def _some(latencies: Sequence[float], settings: Settings) -> Sequence[float]:
    """The latencies, of which there must be some. Raises NodeBenchmarkError."""
    if not len(latencies):
        raise NodeBenchmarkError(
            f"the node published nothing: 'max_age' is {settings.max_age:g} s, and all was older when it "
            "was done; raise it with --set max_age=10, or take a smaller backbone or input"
        )
    return latencies


def _spread(ms: np.ndarray) -> dict[str, float | None]:
    names = ("p50_ms", "p95_ms", "p99_ms")
    return dict(zip(names, map(float, np.percentile(ms, (50, 95, 99))))) if len(ms) else dict.fromkeys(names)
