"""The thread that matches points, so that dense outputs need not wait for them."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor, wait

import torch

from dino_perception.perception.device.tracks import tracker_on
from dino_perception.perception.frame import Correspondences, Frame
from dino_perception.perception.geometry import Letterbox
from dino_perception.perception.matching import Picture
from dino_perception.perception.settings import CorrespondenceSettings
from dino_perception.perception.stage_clock import timed
from dino_perception.perception.tracks import Tracker


class MatchThread:
    """Matches the frames of all cameras one after another, in the order in which they are handed over.

    `stride` is the size in input pixels of the patch that a descriptor stands for, `device` the engine's.
    """

    def __init__(self, stride: int, device: torch.device):
        self.trackers: dict[str, Tracker] = {}
        """Camera -> what follows its points; made when the camera is first seen."""
        self._stride, self._device = stride, device
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="matching")
        self._last: Future | None = None

    def picture(self, frame: Frame, box: Letterbox) -> Future | None:
        """Begin with what needs the image alone, before there are descriptors; on a GPU that is not done here."""
        if self._device.type == "cuda":
            return None
        return self._thread.submit(timed, Picture.of, frame, box, self._stride)

    def match(
        self,
        frame: Frame,
        box: Letterbox,
        descriptors: torch.Tensor,
        settings: CorrespondenceSettings,
        picture: Future | None = None,
    ) -> Future:
        """The matches of a frame and how many milliseconds they took. `descriptors` (N, D) must stay as they are."""
        self._last = self._thread.submit(self._match, frame, box, descriptors, settings, picture)
        return self._last

    def prepare(self) -> None:
        """Make ready for the next frames what need not wait for them."""
        self._settle()
        for tracker in self.trackers.values():
            tracker.prepare()

    def reset(self, camera: str | None = None) -> None:
        """Forget the reference frame and the tracks of one camera or of all; ids are never given out again."""
        self._settle()
        for name, tracker in self.trackers.items():
            if camera in (None, name):
                tracker.reset()

    def close(self) -> None:
        self._thread.shutdown()
        self.trackers.clear()

    def _settle(self) -> None:
        """Trackers belong to the thread while it works."""
        if self._last is not None:
            wait([self._last])
            self._last = None

    def _match(self, frame, box, descriptors, settings, picture) -> tuple[Correspondences, float]:
        taken, before = picture.result() if picture else (None, 0.0)
        tracker = self.trackers.setdefault(frame.camera, tracker_on(self._device))
        found, took = timed(tracker.match, frame, box, descriptors, self._stride, settings, taken)
        return found, before + took
