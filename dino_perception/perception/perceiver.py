"""Frames in, percepts out: one backbone pass a batch, and of the heads those that somebody wants."""

from __future__ import annotations

import dataclasses
import functools
import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from dino_perception import engines
from dino_perception.engines import Compiled
from dino_perception.engines.parity_pictures import parity_inputs
from dino_perception.models.backbone import Backbone
from dino_perception.models.checkpoints import load_backbone
from dino_perception.models.heads.base import Head, load_head
from dino_perception.perception.frame import Depth, Frame, Label, Percept, Segmentation
from dino_perception.perception.geometry import Letterbox, letterbox, rectified
from dino_perception.perception.lens import GeometryError, check_camera
from dino_perception.perception.matching import Picture
from dino_perception.perception.preprocess import Preprocessor
from dino_perception.perception.settings import SettingError, Settings
from dino_perception.perception.tracks import Tracker
from dino_perception.perception.untrained import refuse_untrained

log = logging.getLogger(__name__)


class FrameError(ValueError):
    """A frame that cannot be looked at; the message names its camera and says why."""


class Perceiver:
    """The perception core: construct it once (slow: it loads weights and builds or loads engines), then `perceive`.

    `cache` is the folder of built engines, by default the one of the settings. `report` is given one line a step of
    the start. `batch_sizes` are the batches that get an engine of their own: by default one frame, and on a GPU one
    frame of every camera. `frames` are picture files to check the engines on instead of the bundled ones.

    Raises SettingError, CheckpointError, HeadError or EngineError, each with one sentence.

    A batch between two sizes runs padded in the larger one on a GPU, where an empty place costs little. A CPU gains
    nothing by batching (three frames of the bundled model: 250 ms one by one, 270 ms in one batch), so there the frames
    run one by one. No engine is built after the start. Matching runs on the CPU in a thread of its own: beside the other
    heads where these run on a GPU, and else after them, beside what `early` does; for the same cores they would hold one
    another up. `stage_ms["matching"]` is what it takes there. One caller at a time.
    """

    def __init__(
        self, settings: Settings, *, cache: str | Path | None = None, report: Callable[[str], None] = log.info,
        batch_sizes: Collection[int] | None = None, frames: Sequence[str | Path] | None = None,
    ):  # fmt: skip
        start = time.perf_counter()
        self.settings = settings
        self._report = report
        self._cache = Path(cache or settings.engine_cache or engines.default_folder())
        backbone = load_backbone(settings.backbone, settings.weights)
        heads = {kind: load_head(kind, backbone, settings.head[kind].weights) for kind in settings.heads}
        if not heads:
            raise SettingError("'heads' is empty; name at least one of segmentation, depth, correspondences")
        self._parts = _describe_parts(backbone, heads)
        self.trained: bool = all(part["trained"] for part in self._parts.values())
        """Whether the backbone and every head have weights from a file; if not, outputs mean nothing."""
        if not settings.allow_untrained:
            refuse_untrained(backbone.spec, {name: part["trained"] for name, part in self._parts.items()})
        if not self.trained:
            untrained = ", ".join(name for name, part in self._parts.items() if not part["trained"])
            report(f"untrained, for trying things out only: {untrained}")
        segmentation = heads.get("segmentation")
        self.labels: tuple[Label, ...] = tuple(
            Label(label.id, label.name, tuple(label.colour))
            for label in (segmentation.spec.labels if segmentation else ())
        )
        self._taps = tuple(sorted({tap for head in heads.values() for tap in head.spec.taps}))
        self._head_taps = {kind: [self._taps.index(tap) for tap in head.spec.taps] for kind, head in heads.items()}
        self._stride = (
            backbone.spec.tap_stride(heads["correspondences"].spec.taps[0]) if "correspondences" in heads else 0
        )
        self._build(backbone, heads, batch_sizes, frames)
        one = next(iter(self._backbone.values())).info
        if self.device.type == "cpu":
            # OpenCV's and torch's threads would fight with the engine's for the cores; their small jobs here are quicker
            # without (torch's wait busily after each: they cost the head that comes next 2.5 ms of two cores).
            cv2.setNumThreads(1)
            if one.engine != "torch":
                torch.set_num_threads(1)
        mean = [255 * m for m in backbone.spec.normalisation.mean]
        self._preprocess = Preprocessor(settings.input_height, settings.input_width, mean, self.device)
        self.trackers: dict[str, Tracker] = {}
        """Camera -> what follows its points; made when the camera is first seen."""
        self._beside = ThreadPoolExecutor(1, thread_name_prefix="matching")
        self._off_cpu = self.device.type != "cpu"
        self.start_s = time.perf_counter() - start

    def perceive(
        self,
        frames: Sequence[Frame],
        wanted: Sequence[Collection[str]] | None = None,
        early: Callable[[list[Percept]], None] | None = None,
    ) -> list[Percept]:
        """One percept a frame, in the same order. `wanted[i]` names the heads that run for `frames[i]`; by default every
        enabled one.

        `early` is called, while points are matched, with the percepts of frames for which that is wanted, as far as they
        are: all but the correspondences. Several calls may bring the frames one after another.

        A frame whose heads are all unwanted costs nothing. Raises FrameError, before anything has run, for an image that
        is not (H, W, 3) uint8 or too thin to fit.
        """
        if wanted is None:
            enabled = {kind for kind in self._heads if self.settings.head[kind].enabled}
            wanted = [enabled] * len(frames)
        boxes = [self._box(frame) for frame in frames]
        clock = _Clock(self.device)
        percepts = [self._percept(frame, box, {}, clock.ms) for frame, box in zip(frames, boxes)]
        watched = [i for i, names in enumerate(wanted) if not self._heads.keys().isdisjoint(names)]
        for chunk, size in self._chunks(watched):
            looked = self._look(
                [frames[i] for i in chunk], [boxes[i] for i in chunk], [wanted[i] for i in chunk], size, clock, early
            )
            for i, percept in zip(chunk, looked):
                percepts[i] = percept
        return percepts

    def prepare(self) -> None:
        """Make ready for the next frames what need not wait for them: for when the outputs are on their way. What is left
        undone, the next `perceive` does."""
        for tracker in self.trackers.values():
            tracker.prepare()

    def update(self, settings: Settings) -> None:
        """Take changed settings. Raises SettingError for one that needs a new perceiver."""
        now = {p.name: p.value for p in self.settings.parameters()}
        changed = {p.name: p.value for p in settings.parameters() if now.get(p.name) != p.value}
        self.settings = self.settings.changed(changed, live_only=True)

    def reset_tracks(self, camera: str | None = None) -> None:
        """Forget the reference frame and the tracks of one camera or of all; ids are never given out again."""
        for name, tracker in self.trackers.items():
            if camera in (None, name):
                tracker.reset()

    @property
    def most_at_once(self) -> int:
        """How many frames are worth looking at together. Where it is one, frames of several cameras had better come one by
        one, so that each is done as soon as it can be."""
        return max(self._backbone, default=1)

    def alive(self) -> bool:
        """Whether the device still answers. After some errors (an illegal access, a GPU that fell off the bus) CUDA fails
        every later call of the process, and only a new process helps."""
        try:
            return torch.ones(1, device=self.device).add_(1).item() == 2
        except RuntimeError:
            return False

    def close(self) -> None:
        """Free the engines and their memory; the perceiver cannot be used afterwards."""
        self._beside.shutdown()
        for graphs in (self._backbone, *self._heads.values()):
            for graph in graphs.values():
                graph.close()
            graphs.clear()
        self.trackers.clear()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def graph(self, name: str = "backbone", batch: int = 1) -> Compiled:
        """The compiled graph of the backbone or of a head, for measuring it alone. It shares its buffers with
        `perceive`. Raises KeyError."""
        return {"backbone": self._backbone, **self._heads}[name][batch]

    def head_taps(self) -> dict[str, list[int]]:
        """Which of the backbone graph's outputs go into each head's graph, in order."""
        return {kind: list(taps) for kind, taps in self._head_taps.items()}

    def describe(self) -> dict[str, Any]:
        """What runs: plain data for diagnostics, reports and logs."""
        one = next(iter(self._backbone.values())).info
        graphs = {"backbone": self._backbone, **self._heads}
        return {
            "engine": one.engine, "precision": one.precision, "device": one.device, "reason": one.reason,
            "overridden": [name for name, sizes in graphs.items() if any(g.info.overridden for g in sizes.values())],
            "parity": {name: next(iter(sizes.values())).info.parity for name, sizes in graphs.items()},
            "graphs": [{"name": name, "batch": batch, **dataclasses.asdict(graph.info)}
                       for name, sizes in graphs.items() for batch, graph in sizes.items()],
            "from_cache": all(g.info.from_cache for sizes in graphs.values() for g in sizes.values()),
            "batch_sizes": sorted(self._backbone), "start_s": self.start_s, "trained": self.trained,
            "parts": self._parts, "backbone": self.settings.backbone, "heads": list(self._heads),
            "input": [self.settings.input_height, self.settings.input_width],
            "output": [self.settings.output_height, self.settings.output_width],
            "device_memory_mb": torch.cuda.memory_reserved() / 2**20 if self.device.type == "cuda" else 0.0,
        }  # fmt: skip

    def _build(self, backbone: Backbone, heads: Mapping[str, Head], batch_sizes, pictures) -> None:
        s = self.settings
        try:
            module = backbone.at(s.input_height, s.input_width, self._taps)
        except ValueError as error:
            raise SettingError(f"'input_height' and 'input_width' cannot be used: {error}") from None
        options = dict(precision=s.precision, threads=s.threads, cache=self._cache, override=s.parity_override,
                       report=self._report)  # fmt: skip
        self._backbone: dict[int, Compiled] = {}
        self._heads: dict[str, dict[int, Compiled]] = {kind: {} for kind in heads}
        engine = s.engine
        sizes = sorted(batch_sizes or {1})
        for size in sizes:
            example = module.example(size)
            graph = self._backbone[size] = engines.build(
                module, (example,), engine=engine, name="backbone",
                parity_inputs=parity_inputs((example,), pictures) if pictures else None, **options,
            )  # fmt: skip
            self.device = graph.device
            if batch_sizes is None and size == 1 and self.device.type == "cuda" and len(s.cameras) > 1:
                sizes.append(len(s.cameras))
            if s.engine == "auto" and not s.parity_override:
                engine = graph.info.engine  # the heads and other sizes belong on the same device
            inputs = functools.cache(functools.partial(_head_inputs, graph, example, pictures))
            for kind, head in heads.items():
                features = tuple(self._map_zeros(backbone, size, tap) for tap in head.spec.taps)
                # Asked for only when the head must be built; given at once when the user's own pictures are to judge it.
                maps = lambda kind=kind: [tuple(f[i] for i in self._head_taps[kind]) for f in inputs()]  # noqa: E731
                self._heads[kind][size] = engines.build(
                    head.at(s.output_height, s.output_width), features, engine=engine, name=kind,
                    parity_inputs=maps() if pictures else maps, **options,
                )  # fmt: skip

    def _map_zeros(self, backbone: Backbone, size: int, tap: int) -> torch.Tensor:
        stride = backbone.spec.tap_stride(tap)
        shape = (
            size,
            backbone.spec.channels(tap),
            self.settings.input_height // stride,
            self.settings.input_width // stride,
        )
        return torch.zeros(shape, device=self.device)

    def _chunks(self, frames: Sequence[int]) -> list[tuple[Sequence[int], int]]:
        """Which frames run together, and in the graph of which batch size."""
        sizes = sorted(self._backbone)
        chunks, start = [], 0
        while start < len(frames):
            left = len(frames) - start
            fits = [size for size in sizes if size <= left]
            larger = [size for size in sizes if size > left]
            size = (
                left if left in sizes else larger[0] if larger and self.device.type == "cuda" else (fits or larger)[-1]
            )
            chunks.append((frames[start : start + size], size))
            start += size
        return chunks

    def _look(self, frames, boxes, wanted, size, clock: _Clock, early) -> list[Percept]:
        """The percepts of the frames of one pass."""
        results: list[dict[str, Any]] = [{} for _ in frames]
        chosen = {
            kind: slots for kind in self._heads if (slots := [i for i, names in enumerate(wanted) if kind in names])
        }
        matched = chosen.get("correspondences", [])
        pictures: dict[int, Future] = {}
        matches: dict[int, Future] = {}
        with torch.inference_mode():
            pixels = self._preprocess([frame.image for frame in frames], boxes, size)
            clock.stage("preprocess")
            if self._off_cpu:
                pictures = {slot: self._beside.submit(_timed, Picture.of, frames[slot], boxes[slot], self._stride)
                            for slot in matched}  # fmt: skip
            maps = self._backbone[size](pixels)
            clock.stage("backbone")
            # Where the heads run on a GPU points are matched beside them, so correspondences come first. For the cores of a
            # CPU the two would hold one another up, for longer than either takes.
            for kind in sorted(chosen, key=lambda kind: (kind == "correspondences") != self._off_cpu):
                arrays = self._run_head(kind, maps, chosen[kind], size)
                clock.stage(kind)
                for slot, own in zip(chosen[kind], arrays):
                    if kind == "correspondences":
                        matches[slot] = self._beside.submit(
                            self._match, frames[slot], boxes[slot], own[0].clone(), pictures.get(slot)
                        )
                    else:
                        self._keep(kind, boxes[slot], own, results[slot])
                clock.stage("copy")
        percepts = [self._percept(*each, clock.ms) for each in zip(frames, boxes, results)]
        try:
            if early and matched:
                early([percepts[slot] for slot in matched])
        finally:
            wait(matches.values())
        for slot, match in matches.items():
            correspondences, took = match.result()
            percepts[slot] = dataclasses.replace(percepts[slot], correspondences=correspondences)
            clock.add("matching", took)
        return percepts

    def _match(self, frame: Frame, box: Letterbox, descriptors: torch.Tensor, picture: Future | None):
        """The matches of a frame and how many milliseconds they took, with the `picture` that was taken ahead."""
        taken, before = picture.result() if picture else (None, 0.0)
        tracker = self.trackers.setdefault(frame.camera, Tracker())
        found, took = _timed(
            tracker.match, frame, box, descriptors, self._stride, self.settings.head["correspondences"], taken
        )
        return found, before + took

    def _run_head(self, kind: str, maps, chosen: list[int], size: int) -> list[list[torch.Tensor]]:
        """For each chosen slot of the batch its arrays, valid until the head runs again.

        Where one frame wants the head, the single-frame graph runs on its part of the maps; else that of the batch.
        """
        graphs = self._heads[kind]
        features = [maps[i] for i in self._head_taps[kind]]
        if len(chosen) == 1 and 1 in graphs:
            return [[t[0] for t in graphs[1](*(f[chosen[0] : chosen[0] + 1] for f in features))]]
        out = graphs[size](*features)
        return [[t[i] for t in out] for i in chosen]

    def _keep(self, kind: str, box: Letterbox, arrays, result: dict[str, Any]) -> None:
        if kind == "segmentation":
            result[kind] = Segmentation(*(_own(box, t) for t in arrays), self.labels)
        elif kind == "depth":
            result[kind] = Depth(_own(box, arrays[0]))
        else:
            grid = (box.grid_height, box.grid_width)
            result.setdefault("extra", {})[kind] = tuple(
                _own(box, t) if tuple(t.shape[-2:]) == grid else t.to("cpu", copy=True).numpy() for t in arrays
            )

    def _box(self, frame: Frame) -> Letterbox:
        image = frame.image
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise FrameError(
                f"camera '{frame.camera}' gave an image of {image.dtype} {image.shape}; (H, W, 3) uint8 is needed"
            )
        s = self.settings
        try:
            return _letterbox(*image.shape[:2], s.input_height, s.input_width, s.output_height, s.output_width)
        except GeometryError as error:
            raise FrameError(f"camera '{frame.camera}': {error}") from None

    def _percept(self, frame: Frame, box: Letterbox, result: dict[str, Any], ms: Mapping[str, float]) -> Percept:
        camera, problem = _usable_camera(frame, self.settings.rectified)
        return Percept(
            frame, box.output_height, box.output_width, box.output_camera(camera) if camera else None,
            stage_ms=ms, output_scale=box.output_scale, camera_problem=problem, **result,
        )  # fmt: skip


_letterbox = functools.lru_cache(maxsize=64)(letterbox)


class _Clock:
    """Wall time a stage, in milliseconds; on a GPU a stage ends when its work is done, not when it is queued."""

    def __init__(self, device: torch.device):
        self._device = device
        self._last = time.perf_counter()
        self.ms: dict[str, float] = {}

    def add(self, name: str, ms: float) -> None:
        """Count what was measured elsewhere."""
        self.ms[name] = self.ms.get(name, 0.0) + ms

    def stage(self, name: str) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        now = time.perf_counter()
        self.add(name, (now - self._last) * 1e3)
        self._last = now


def _timed(function: Callable, *arguments) -> tuple[Any, float]:
    """What a function returns, and how many milliseconds it took."""
    start = time.perf_counter()
    result = function(*arguments)
    return result, (time.perf_counter() - start) * 1e3


def _own(box: Letterbox, grid: torch.Tensor) -> np.ndarray:
    """The image's part of a head's array, as memory of its own on the host."""
    return box.crop(grid).to("cpu", copy=True).contiguous().numpy()


def _usable_camera(frame: Frame, is_rectified: bool):
    """The camera model to use and, when there is none, one sentence why."""
    camera = frame.camera_model
    if camera is None:
        return None, "no camera_info, or one without calibration (K is all zero)"
    height, width = frame.image.shape[:2]
    if (camera.height, camera.width) != (height, width):
        return None, f"camera_info is for {camera.width}x{camera.height} pixels and the image has {width}x{height}"
    if is_rectified:
        camera = rectified(camera)
    try:
        check_camera(camera)
    except GeometryError as error:
        return None, str(error)
    return camera, ""


def _head_inputs(graph: Compiled, example: torch.Tensor, pictures) -> list[tuple[torch.Tensor, ...]]:
    """What the heads see on the parity pictures: the backbone's maps, copied."""
    return [tuple(t.clone() for t in graph(*inputs)) for inputs in parity_inputs((example,), pictures)]


def _describe_parts(backbone: Backbone, heads: Mapping[str, Head]) -> dict[str, dict[str, Any]]:
    parts = {"backbone": {"id": backbone.spec.id, "hash": backbone.weights_hash, "trained": backbone.trained}}
    for kind, head in heads.items():
        parts[kind] = {"id": head.spec.arch, "trained": head.trained, "metrics": dict(head.spec.metrics)}
    return parts
