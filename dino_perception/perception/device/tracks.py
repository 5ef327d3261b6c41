"""Tracks where matching runs on the engine's device: the bookkeeping is `Tracker`'s, what it asks of images is computed there.

A frame goes to the device as its grey image, its points and their turns, and comes back as one small array: positions,
correlations, doubts and similarities of all points. Where the device cannot do that, the CPU does it from then on.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable

import cv2
import numpy as np
import torch
from torch import Tensor

from dino_perception.perception.descriptors import joined
from dino_perception.perception.device import windows
from dino_perception.perception.device.captured import CapturedFunction
from dino_perception.perception.device.look import PatchGrid, ViewBatch, look
from dino_perception.perception.frame import Correspondences, Frame
from dino_perception.perception.geometry import Letterbox
from dino_perception.perception.matching import NODE, Field, Picture, View
from dino_perception.perception.refine import Refiner
from dino_perception.perception.settings import CorrespondenceSettings
from dino_perception.perception.tracks import SPARE, SPARE_FAR, Tracker

TURNS = round(SPARE_FAR / SPARE)
"""Most turns of points."""

log = logging.getLogger(__name__)


def tracker_on(device: torch.device) -> Tracker:
    """A new tracker for descriptors on that device."""
    return DeviceTracker() if device.type == "cuda" else Tracker()


class _Aligner(Refiner):
    """What aligns windows: `captured` on the device, `refine` where that was given up."""

    def __init__(self, function: Callable) -> None:
        super().__init__()
        self.captured = CapturedFunction(function)


class DeviceTracker(Tracker):
    """A `Tracker` whose views hold tensors, for a camera of an engine that is not on the CPU.

    Where anything fails there (memory, a capture, a kernel that this torch has not), it says so, tracking starts anew with the
    frame at hand, and it is a `Tracker` on the CPU for the rest of its life.
    """

    def __init__(self) -> None:
        self._given_up = False
        super().__init__()
        self._refiner = _Aligner(self._whole)
        self._score = np.zeros(0, np.float32)

    def match(
        self,
        frame: Frame,
        box: Letterbox,
        descriptors: Tensor,
        stride: int,
        settings: CorrespondenceSettings,
        picture: Picture | None = None,
    ) -> Correspondences:
        if not self._given_up:
            try:
                return super().match(frame, box, descriptors, stride, settings, picture)
            except Exception as error:
                self._give_up(error)
        return super().match(frame, box, descriptors.float().cpu(), stride, settings, picture)

    def prepare(self) -> None:
        try:
            super().prepare()
        except Exception as error:
            if self._given_up:
                raise
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        _say(f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}")
        self._given_up = True
        self._refiner = _Aligner(self._whole)  # lets go of the device's memory
        self._ahead = None
        self.reset()

    def _make_ready(self, view: View) -> None:
        if self._given_up:
            super()._make_ready(view)

    def _view(self, frame: Frame, box: Letterbox, descriptors: Tensor, stride: int, picture: Picture | None) -> View:
        if self._given_up:
            return super()._view(frame, box, descriptors, stride, picture)
        grey = cv2.cvtColor(np.ascontiguousarray(frame.image), cv2.COLOR_RGB2GRAY)
        height, width = grey.shape
        rows, columns = (max(1, round(side / stride)) for side in (box.content_height, box.content_width))
        patch = tuple(stride / side for side in box.input_scale)
        own = descriptors.view(-1, box.input_width // stride, descriptors.shape[-1])[:rows, :columns]
        own = own.reshape(rows * columns, -1).float()
        levels, codes = _sight(torch.from_numpy(grey).to(own.device), own, rows, columns, patch)
        return View(frame.stamp_ns, frame.frame_id, width, height, levels, own.clone(), codes, rows, columns, patch)

    def _corners(self, view: View, cells: int) -> tuple[np.ndarray, np.ndarray]:
        if self._given_up:
            return super()._corners(view, cells)
        x, y, strength = windows.corners([level[None] for level in view.levels], cells)[0].cpu().numpy().T
        keep = strength > 0
        return np.stack([x, y], axis=1)[keep].astype(np.float64), strength[keep]

    def _similarity(self, reference: View, view: View, found: np.ndarray, position: np.ndarray) -> np.ndarray:
        if self._given_up:
            return super()._similarity(reference, view, found, position)
        return self._score[found]

    def _match(self, reference: View, previous: View, view: View, most: int):
        if self._given_up:
            return super()._match(reference, previous, view, most)
        count, device = len(self._xy), view.descriptors.device
        turns = max(1, round(count / max(1.0, SPARE * most)))
        # Places for all that a reference may hold, so that shapes stay: with fewer matches wanted than before, for all there are.
        slots = next((s for spare in (SPARE, SPARE_FAR) if (s := round(spare * most)) >= count), count)
        points = np.zeros((slots, 5), np.float32)
        points[:count, :2], points[:count, 2:4] = self._xy, self._last
        points[:, 4] = np.where(np.arange(slots) < count, np.arange(slots) % turns, -1)
        asked = torch.from_numpy(points).to(device)[None]
        rows, columns = (-(-n // NODE) for n in (view.rows, view.columns))
        bend = torch.eye(2, device=device).expand(1, rows, columns, 2, 2)
        bend = bend if self._flow is None else torch.as_tensor(self._flow.jacobian, device=device)[None].float()
        about = torch.tensor([[reference is previous, most]]).to(device)
        grid = PatchGrid(view.rows, view.columns, view.patch)
        seen = [t for v in (reference, previous, view) for t in (*v.levels, v.descriptors, v.codes)]
        packed, flow, bent = self._refiner.captured(
            (grid, max(turns, TURNS), len(view.levels)), [*(t[None] for t in seen), asked, bend, about]
        )
        back = packed[0].cpu().numpy()  # the one wait
        (had, agreed), back = back[-1, :2], back[:count]
        spacing = NODE * np.array(view.patch)
        self._flow = Field(spacing, flow[0].cpu().numpy(), bent[0].cpu().numpy()) if agreed else None
        self._score = np.ascontiguousarray(back[:, 4])
        return back[:, :2].astype(np.float64), back[:, 2].copy(), back[:, 3].copy(), int(had)

    @staticmethod
    def _whole(static: tuple[PatchGrid, int, int], tensors: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """`look` with all its arguments in one list, and what comes back in one array: (B, N + 1, 5)."""
        grid, turns, levels = static
        each = levels + 2
        sights = [
            ViewBatch(tensors[i * each : i * each + levels], *tensors[i * each + levels : (i + 1) * each])
            for i in range(3)
        ]
        asked, bend, about = tensors[3 * each :]
        points, numbers, flow, bent = look(
            grid,
            turns,
            *sights,
            asked[..., :2],
            asked[..., 2:4],
            asked[..., 4].long(),
            bend,
            about[:, 0] > 0,
            about[:, 1],
        )
        last = torch.nn.functional.pad(numbers.float(), (0, 3))[:, None]
        return torch.cat([points, last], dim=1), flow, bent


@functools.lru_cache(maxsize=8)
def _say(reason: str) -> None:
    """Once for every reason, however many cameras there are."""
    log.warning("Points are matched on the CPU, which takes longer, because the device cannot: %s", reason)


def _sight(grey: Tensor, descriptors: Tensor, rows: int, columns: int, patch) -> tuple[list[Tensor], Tensor]:
    """A view's pyramid and codes."""
    levels = windows.pyramid(grey[None])
    return [level[0] for level in levels], joined(descriptors, windows.histograms(levels, rows, columns, patch)[0])
