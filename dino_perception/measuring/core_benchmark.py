"""The measurement behind `dino-perception benchmark`.

Everything that is compared runs in turn within each round, so that a machine that warms up, slows down or is shared
treats all alike; medians over the rounds are what the ratios are made of.
"""

from __future__ import annotations

import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dino_perception import process_memory
from dino_perception.child_processes import end_with_parent
from dino_perception.engines.parity_pictures import FOLDER, read
from dino_perception.measuring.matrix_rate import MatrixRate
from dino_perception.messages.images import decode_image
from dino_perception.messages.intake import Intake
from dino_perception.messages.percepts import image
from dino_perception.messages.topics import TOPICS, of_kind, outputs
from dino_perception.models import catalog
from dino_perception.models.cost import flops
from dino_perception.perception.frame import CameraModel, Frame, Percept
from dino_perception.perception.perceiver import Perceiver
from dino_perception.perception.settings import Settings

WARM_UP = 3
TASKS = "single "
ON_THE_GROUND = ("odometry", "obstacles", "traversability")
"""Topics, and stages of their own, for which the pass is followed up frame by frame. No part of the pipeline's time."""


@dataclass
class Subject:
    """One backbone on one engine, and its times in milliseconds by what was timed."""

    settings: Settings
    batch: int
    perceiver: Perceiver
    rate: MatrixRate
    intake: Intake
    times: dict[str, list[float]] = field(default_factory=dict)

    def note(self, name: str, ms: float) -> None:
        self.times.setdefault(name, []).append(ms)

    def median(self, name: str) -> float:
        return statistics.median(self.times[name])


def measure(
    variants: Sequence[Settings],
    frames: Sequence[np.ndarray],
    *,
    batches: Sequence[int] = (1,),
    rounds: int = 20,
    cache: Path | None = None,
    memory: bool = True,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """All numbers: {the first run's keys, "runs": [a run's keys], "ratios": {A / B: {...}}, "machine": {...}}."""
    computer, types, subjects = machine(), _types(), []
    for settings in variants:
        for batch in batches:
            perceiver = Perceiver(settings, cache=cache, batch_sizes=[batch], report=say)
            about = perceiver.describe()
            rate = MatrixRate(about["engine"], about["precision"], settings.threads)
            subjects.append(Subject(settings, batch, perceiver, rate, Intake(perceiver, settings, types)))
    for round_ in range(-WARM_UP, rounds):
        say(f"round {max(0, round_ + 1)} of {rounds}")
        messages = [_message(types, frames[(round_ + WARM_UP) % len(frames)], camera) for camera in range(max(batches))]
        for subject in subjects:
            _round(subject, messages[: subject.batch], types)
            if round_ < 0:
                subject.times.clear()
                subject.rate.clear()
    runs = []
    for subject in subjects:
        say("measuring memory")
        runs.append(_row(subject, _memory(subject.settings, cache, subject.batch) if memory else None))
    ratios = {}
    for a in subjects:
        for b in subjects:
            same = _network(a) == _network(b)
            if a is not b and same and a.median("bare_backbone") < b.median("bare_backbone"):
                name = f"{_name(a)} / {_name(b)} ({a.settings.backbone}, batch {a.batch})"
                ratios[name] = {
                    "backbone": b.median("bare_backbone") / a.median("bare_backbone"),
                    "pipeline": b.median("pipeline") / a.median("pipeline"),
                }
    for subject in subjects:
        subject.perceiver.close()
    return {**runs[0], "runs": runs, "ratios": ratios, "machine": computer}


def _round(subject: Subject, messages: Sequence[Any], types: Any) -> None:
    """Each of: the bare backbone, the pipeline with all heads, one pipeline a head, the machine's matrix rate."""
    perceiver, device = subject.perceiver, subject.perceiver.device
    backbone = perceiver.graphs.graph("backbone", subject.batch)
    size = backbone.signature[0][0][1:3]
    pixels = torch.from_numpy(np.stack([resized(decode_image(m), size) for m in messages])).to(device)
    wait(device)
    start = time.perf_counter()
    backbone(pixels)
    wait(device)
    subject.note("bare_backbone", (time.perf_counter() - start) * 1e3)
    heads = list(perceiver.settings.heads)
    percepts, times = _pipeline(perceiver, messages, types, heads, "all")
    for name, ms in {**times, **_on_the_ground(subject.intake, percepts)}.items():
        subject.note(name, ms)
    if len(heads) > 1:
        for head in heads:
            subject.note(TASKS + head, _pipeline(perceiver, messages, types, [head], head)[1]["pipeline"])
    subject.rate.measure()


def _pipeline(
    perceiver: Perceiver, messages: Sequence[Any], types: Any, heads: Sequence[str], camera: str
) -> tuple[list[Percept], dict[str, float]]:
    """Image messages in, output messages out; what was seen, and milliseconds a stage and of the whole. `camera` keeps tracks apart.
    "perceive" is the wall time of the stages between decoding and messages, of which some run side by side."""
    topics = [
        name for name in of_kind("data") if set(TOPICS[name].heads) <= set(heads) and types.available(TOPICS[name].type)
    ]
    start = time.perf_counter()
    images = [decode_image(message) for message in messages]
    decoded = time.perf_counter()
    frames = [
        Frame(f"{camera}{i}", int(start * 1e9), "camera", picture, _camera(picture)) for i, picture in enumerate(images)
    ]
    percepts = perceiver.perceive(frames, [heads] * len(frames))
    perceived = time.perf_counter()
    for percept in percepts:
        outputs(types, percept, perceiver.settings, topics)
    done = time.perf_counter()
    return percepts, {
        "decode": (decoded - start) * 1e3,
        **percepts[0].stage_ms,
        "perceive": (perceived - decoded) * 1e3,
        "messages": (done - perceived) * 1e3,
        "pipeline": (done - start) * 1e3,
    }


def _on_the_ground(intake: Intake, percepts: Sequence[Percept]) -> dict[str, float]:
    """Milliseconds of what is made of the percepts for a robot that drives by them; nothing without depth and matches."""
    if any(percept.depth is None or percept.correspondences is None for percept in percepts):
        return {}
    for percept in percepts:
        intake.followed(percept, ON_THE_GROUND)
    ms = {name: percepts[0].stage_ms[name] for name in ON_THE_GROUND}  # percepts of one pass share theirs
    return {**ms, "these three": sum(ms.values())}


def _row(subject: Subject, rss_mb: float | None) -> dict[str, Any]:
    about, settings, batch = subject.perceiver.describe(), subject.settings, subject.batch
    bare, pipeline = subject.median("bare_backbone"), subject.median("pipeline")
    singles = [name for name in subject.times if name.startswith(TASKS)]
    work = flops(catalog.get(settings.backbone), settings.input_height, settings.input_width) * batch / 1e9
    return {
        "engine": about["engine"],
        "precision": about["precision"],
        "backbone": settings.backbone,
        "heads": _weights(settings),
        "head_precisions": {graph["name"]: graph["precision"] for graph in about["graphs"]},
        "trained": about["trained"],
        "input": about["input"],
        "batch": batch,
        "stages_ms": {name: _percentiles(ms) for name, ms in subject.times.items()},
        "bare_backbone_ms": bare,
        "pipeline_ms": pipeline,
        "overhead_ratio": pipeline / bare,
        "one_pass_speedup": sum(map(subject.median, singles)) / pipeline if singles else None,
        "gflops": work / bare * 1e3,
        "peak_gflops": subject.rate.gflops,
        "rss_mb": rss_mb,
    }


def _network(subject: Subject) -> tuple[Any, ...]:
    """What runs, whatever the engine."""
    return subject.settings.backbone, subject.batch, _weights(subject.settings)


def _weights(settings: Settings) -> dict[str, str]:
    """The heads, and of which weights, "" for the bundled ones."""
    return {kind: settings.head[kind].weights for kind in settings.heads}


def _percentiles(ms: Sequence[float]) -> dict[str, float]:
    return {name: float(np.percentile(ms, q)) for name, q in (("median", 50), ("p95", 95), ("p99", 99))}


def _name(subject: Subject) -> str:
    about = subject.perceiver.describe()
    return f"{about['engine']} {about['precision']}"


def frames(bag: Path | None, count: int) -> list[np.ndarray]:
    """The first frames of a bag's only or first camera, (H, W, 3) uint8 RGB: of `bag`, else of the sample drive, else
    the pictures that engines are checked on."""
    from dino_perception.share import share

    try:
        source = bag or share("data", "sample_drive")
    except FileNotFoundError:
        return [read(path) for path in sorted(FOLDER.glob("*.jpg"))]
    return _from_bag(source, count)


def _from_bag(source: Path, count: int) -> list[np.ndarray]:
    from dino_perception.bags.cameras import choose_cameras
    from dino_perception.bags.pictures import Pictures
    from dino_perception.bags.storage.reader import BagReader
    from dino_perception.messages.images import MAX_MEGAPIXELS

    found: list[np.ndarray] = []
    with BagReader(source) as bag:
        topic = choose_cameras(bag, [], ["camera"])[0].image
        pictures = Pictures(bag.topics[topic], MAX_MEGAPIXELS)
        for record in bag.messages([topic]):
            found.append(pictures.decode(bag.decode(record)))
            if len(found) == count:
                break
    return found


def _types() -> Any:
    """The live node's messages where ROS is installed, else those for bags."""
    from dino_perception.messages.types import RclpyTypes, RosbagsTypes

    live = RclpyTypes()
    needed = ("sensor_msgs/msg/Image", "dino_perception/msg/Correspondences")
    return live if all(map(live.available, needed)) else RosbagsTypes()


def _message(types: Any, picture: np.ndarray, camera: int) -> Any:
    """What a camera driver sends: bgr8. Each camera sees the scene from a little further on."""
    shifted = np.ascontiguousarray(np.roll(picture, 4 * camera, axis=1)[:, :, ::-1])
    return image(types, types.header(0, "camera"), shifted, "bgr8")


def _camera(picture: np.ndarray) -> CameraModel:
    height, width = picture.shape[:2]
    focal = 0.8 * width
    return CameraModel(
        width, height, np.array([[focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1.0]])
    )


def resized(picture: np.ndarray, size: Sequence[int]) -> np.ndarray:
    import cv2

    return cv2.resize(picture, (size[1], size[0]), interpolation=cv2.INTER_AREA)


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _memory(settings: Settings, cache: Path | None, batch: int) -> float:
    """Peak resident memory in MB (2**20 bytes) of a fresh process that loads the engines from the cache and looks."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_look, args=(sender, settings, cache, batch))
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        return float("nan")
    finally:
        process.join()


def _look(sender, settings: Settings, cache: Path | None, batch: int) -> None:
    end_with_parent()
    perceiver = Perceiver(settings, cache=cache, batch_sizes=[batch], report=lambda line: None)
    types = _types()
    for picture in [read(path) for path in sorted(FOLDER.glob("*.jpg"))]:
        _pipeline(
            perceiver,
            [_message(types, picture, camera) for camera in range(batch)],
            types,
            perceiver.settings.heads,
            "all",
        )
    sender.send(process_memory.peak() / 2**20)


def machine() -> dict[str, Any]:
    names = [
        line.split(":", 1)[1].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    return {
        "cpu": names[0] if names else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "gpu": gpu,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "load": os.getloadavg()[0],
    }


def about(machine: dict[str, Any]) -> str:
    """A machine in words."""
    gpu = f", {machine['gpu']}" if machine["gpu"] else ""
    return (
        f"{machine['cpu']}, {machine['cores']} cores{gpu}; torch {machine['torch']}; "
        f"load before the run {machine['load']:.1f}"
    )
