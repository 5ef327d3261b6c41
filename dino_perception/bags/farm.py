"""Many perceivers at work on one bag: what needs no past is done in parallel, the tracks are followed in order.

A farm stands in for a `Perceiver` in a replay. Segments of consecutive frames go to workers, each with a perceiver of
its own; the replay takes their percepts in the order of the frames and follows the tracks itself. So the output has the
same bytes as that of a single process, whatever the number of workers.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import signal
import time
from collections.abc import Collection, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

import dino_perception
from dino_perception.bags.storage.problems import FAILED, USAGE, BagError
from dino_perception.child_processes import end_with_parent
from dino_perception.engines.runtimes import RUNTIMES
from dino_perception.perception.device.tracks import tracker_on
from dino_perception.perception.frame import Frame, Percept
from dino_perception.perception.geometry import Letterbox
from dino_perception.perception.head_answers import labels_of
from dino_perception.perception.perceiver import FrameError, Perceiver
from dino_perception.perception.settings import Settings
from dino_perception.perception.tracks import Tracker

SEGMENT = 8
"""Frames a worker takes at a time."""
_NO_PIXELS = np.zeros((0, 0, 3), np.uint8)


@dataclass(frozen=True)
class Untracked:
    """What a tracker needs of a frame that a worker looked at: descriptors (N, D) float32 and how they lie on the
    image."""

    descriptors: np.ndarray
    box: Letterbox
    stride: int


class _Keeper:
    """Takes a tracker's place in a worker."""

    def match(
        self, frame: Frame, box: Letterbox, descriptors: torch.Tensor, stride: int, settings: Any, picture: Any = None
    ) -> Untracked:
        return Untracked(descriptors.float().cpu().numpy().copy(), box, stride)


class Looker:
    """A worker's perceiver."""

    def __init__(self, settings: Settings):
        self._perceiver = Perceiver(settings, batch_sizes={1})

    def about(self) -> dict[str, Any]:
        p = self._perceiver
        return {
            "specs": p.specs,
            "trained": p.trained,
            "describe": p.describe(),
            "version": dino_perception.__version__,
        }

    def look(self, frames: Sequence[Frame]) -> list[Percept | FrameError]:
        """The percepts of all enabled heads, without the pixels, and `Untracked` instead of correspondences."""
        return [self._look(frame) for frame in frames]

    def _look(self, frame: Frame) -> Percept | FrameError:
        self._perceiver.trackers[frame.camera] = _Keeper()
        try:
            percept = self._perceiver.perceive([frame])[0]
        except FrameError as error:
            return error
        return dataclasses.replace(percept, frame=dataclasses.replace(frame, image=_NO_PIXELS))


class Workers(Protocol):
    """Where lookers run."""

    count: int

    def about(self) -> dict[str, Any]:
        """What `Looker.about` says."""

    def submit(self, frames: Sequence[Frame]) -> Any:
        """Something whose `result()` gives the percepts of the frames."""

    def close(self) -> None:
        """End them."""


class Farm:
    """Looks like a `Perceiver` to a replay."""

    def __init__(self, settings: Settings, workers: Workers):
        self.settings, self._workers = settings, workers
        about = workers.about()
        if about["version"] != dino_perception.__version__:
            raise BagError(
                f"a worker has dino_perception {about['version']}, this process {dino_perception.__version__}; "
                "install the same",
                USAGE,
            )
        self.specs, self.trained, self._about = about["specs"], about["trained"], about["describe"]
        self.labels = labels_of(self.specs.get("segmentation"))
        self.device = torch.device(
            "cuda" if "cuda" in str(self._about.get("device", "")) and torch.cuda.is_available() else "cpu"
        )
        self.trackers: dict[str, Tracker] = {}
        self.ahead = SEGMENT * (workers.count + 2)

    def describe(self) -> dict[str, Any]:
        return {**self._about, "workers": self._workers.count}

    def reset_tracks(self, camera: str | None = None) -> None:
        for name, tracker in self.trackers.items():
            if camera in (None, name):
                tracker.reset()

    def submit(self, frames: Sequence[Frame]) -> Any:
        return self._workers.submit(frames)

    def finish(self, frame: Frame, percept: Percept | FrameError, wanted: Collection[str]) -> Percept:
        """The percept of a frame from what a worker made of it: with its pixels, only the heads that are wanted, and
        its matches. Raises FrameError as the worker's perceiver did."""
        if isinstance(percept, FrameError):
            raise percept
        begun = time.perf_counter()
        answers = {head: held for head, held in percept.answers().items() if head in wanted}
        for head, held in answers.items():
            if isinstance(held, Untracked):
                descriptors = torch.from_numpy(np.array(held.descriptors)).to(self.device)
                tracker = self.trackers.setdefault(frame.camera, tracker_on(self.device))
                answers[head] = tracker.update(frame, held.box, descriptors, held.stride, self.settings.head[head])
        spent = {**percept.stage_ms, "matching": (time.perf_counter() - begun) * 1e3}
        return dataclasses.replace(percept.with_answers(answers), frame=frame, stage_ms=spent)

    def close(self) -> None:
        self._workers.close()


_looker: Looker | None = None  # of a worker process


def _begin(settings: Settings) -> None:
    global _looker
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process; the replay decides what follows
    torch.set_num_threads(settings.threads or 1)
    _looker = Looker(settings)


def _about() -> dict[str, Any]:
    return _looker.about()


def _look(frames: Sequence[Frame]) -> list[Percept]:
    return _looker.look(frames)


class LocalWorkers:
    """`count` processes of this machine."""

    def __init__(self, settings: Settings, count: int):
        self.count = count
        context = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(count, context, initializer=_begin, initargs=(settings,))

    def about(self) -> dict[str, Any]:
        try:
            return self._pool.submit(_about).result()
        except Exception as error:
            raise BagError(f"the workers cannot start: {error}", FAILED) from None

    def submit(self, frames: Sequence[Frame]) -> Any:
        return self._pool.submit(_look, frames)

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)


class RayWorkers:
    """`count` actors of a Ray cluster (0: as many as it has room for). `address` is what `ray.init` takes; "local"
    starts one on this machine. Every machine of the cluster needs this package and the weights at the same paths."""

    def __init__(self, settings: Settings, address: str, count: int):
        try:
            import ray
        except ImportError:
            raise BagError("--ray needs the package ray; install it with: pip install ray", USAGE) from None
        self._ray = ray
        if not ray.is_initialized():
            try:
                ray.init(
                    address=None if address == "local" else address,
                    num_cpus=count or None if address == "local" else None,
                    include_dashboard=False,
                    log_to_driver=False,
                )
            except (ConnectionError, ValueError, RuntimeError) as error:
                raise BagError(f"there is no Ray cluster at '{address}': {error}", USAGE) from None
        have = ray.cluster_resources()
        gpus, threads = have.get("GPU", 0), max(1, settings.threads)
        needs = (
            {"num_gpus": 1}
            if gpus and (settings.engine == "auto" or RUNTIMES[settings.engine].on_gpu)
            else {"num_cpus": threads}
        )
        self.count = count or max(1, int(gpus if "num_gpus" in needs else have.get("CPU", 1) // threads))
        self._actors = [ray.remote(**needs)(Looker).remote(settings) for _ in range(self.count)]
        self._next = 0

    def about(self) -> dict[str, Any]:
        try:
            return self._ray.get(self._actors[0].about.remote())
        except self._ray.exceptions.RayError as error:
            raise BagError(f"the Ray workers cannot start: {error}", FAILED) from None

    def submit(self, frames: Sequence[Frame]) -> Any:
        self._next = (self._next + 1) % self.count
        return _Promise(self._ray, self._actors[self._next].look.remote(list(frames)))

    def close(self) -> None:
        for actor in self._actors:
            self._ray.kill(actor)
        self._ray.shutdown()


@dataclass(frozen=True)
class _Promise:
    ray: Any
    reference: Any

    def result(self) -> list[Percept]:
        return self.ray.get(self.reference)
