"""The worker for an engine that is not on the CPU: while frame n is on the device, frame n + 1 is decoded and frame n - 1 is
sent."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from dino_perception.perception.frame import Frame
from dino_perception.perception.sight import Sight
from dino_perception.ros.handover import Handover
from dino_perception.ros.worker import Batch, Worker


class OverlappedWorker(Worker):
    """A `Worker` of three threads, one a stage: decode, pass, send. On a CPU they would fight for the engine's cores.

    Frames of a camera stay in order, for every stage has one thread and hands over one batch at a time. A frame is taken
    from the mailbox when the one before is on the device; so at most one waits decoded, and under overload it is out later
    than it would be without overlap by at most what the slowest stage takes. One that is too old when its turn comes is
    dropped. The perceiver's settings and tracks change while no pass is under way, after the frames taken before.
    """

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        self._looking = threading.RLock()
        """Held by whoever uses the perceiver, but for `complete` and `prepare`, which go on beside a pass."""
        self._decoded, self._seen = Handover(), Handover()
        self._took = {"decode": 0.0, "pass": 0.0, "send": 0.0}
        """Seconds that each stage took last."""
        stages = {"decode": self._decode_ahead, "pass": self._pass_on, "send": self._send_behind}
        self._threads = [
            threading.Thread(target=run, name=f"perception {stage}", daemon=True) for stage, run in stages.items()
        ]

    def stop(self) -> bool:
        self._mailbox.close()  # first, so that nothing is published any more
        self._decoded.close()
        self._seen.close()
        return super().stop()

    def _between_passes(self, change: Callable[[], Any]) -> Any:
        """Change what a pass uses when all frames that were taken before have been looked at."""
        self._decoded.settle()
        with self._looking:
            return change()

    def _sights(self, frames: list[Frame], wanted: list[set[str]]) -> list[Sight]:
        with self._looking:
            return super()._sights(frames, wanted)

    def _decode_ahead(self) -> None:
        while self._admits():
            batch = self._taken()
            try:
                self._obey()
                begun = time.monotonic()
                self._decode(batch)
                batch.ready_s = time.monotonic()
                self._took["decode"] = batch.ready_s - begun
            except Exception as error:
                self._fail(batch.letters, error)
                continue
            if batch.frames:
                self._decoded.put(batch)

    def _admits(self) -> bool:
        """Wait until a frame may be taken, which is when the one before is on the device. Where sending takes longer than
        all the rest it is when only one is left to be sent: taken earlier, a frame would only grow old on the way."""
        took = self._took
        if took["send"] > took["decode"] + took["pass"] and not (self._decoded.settle() and self._seen.room()):
            return False
        return self._decoded.room()

    def _pass_on(self) -> None:
        while self._seen.room() and (batch := self._decoded.take()) is not None:
            try:
                with self._looking:
                    sights = self._looked(batch)
                if sights:
                    self._seen.put((batch, sights))
            except Exception as error:
                self._fail([frame.camera for frame in batch.frames], error)
            finally:
                self._decoded.done()

    def _looked(self, batch: Batch) -> list[Sight]:
        """What is seen in the frames that are still worth it now that it is their turn."""
        begun = time.monotonic()
        if self._mailbox.closed or batch.era != self._era:
            return []
        self._account.spent({"turn": (begun - batch.ready_s) * 1e3})
        kept = [
            (frame, heads)
            for frame, heads in zip(batch.frames, batch.wanted)
            if not self._delivery.too_old(frame.camera, frame.stamp_ns, late=False)
        ]
        if not kept:
            return []
        frames, wanted = map(list, zip(*kept))
        try:
            under_way = self._perceiver.queue(frames, wanted)
            self._decoded.begun()
            sights = self._perceiver.collect(under_way)
        except Exception as error:
            sights = self._each_alone(frames, wanted, error)
        self._took["pass"] = time.monotonic() - begun
        return sights

    def _send_behind(self) -> None:
        while (seen := self._seen.take()) is not None:
            self._seen.begun()
            begun = time.monotonic()
            try:
                self._send(*seen)
            except Exception as error:
                self._fail([sight.percept.frame.camera for sight in seen[1]], error)
            self._took["send"] = time.monotonic() - begun
