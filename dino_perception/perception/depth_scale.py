"""Metres of a depth head that learnt them with another lens or at another height: scaled by the focal length, or by how
high the camera stands over the ground. Both are off unless asked for.

By focal length: a head that learnt with the focal length F (pixels of its input) sees an object of this camera, of focal
length f, as large as one F / f times as far, so depth = d f / F (Metric3D, Yin et al. 2023, sec. 3.2, the transformation
of labels; Depth Anything 3 gives d f / 300). By height: the ground that is seen lies at the height at which the camera
stands, so depth = d times that height over the height by depth (`ground_plane`), the median over recent frames.
"""

from __future__ import annotations

import collections
import dataclasses
import statistics
from collections.abc import Mapping
from typing import Any

from dino_perception.models.label_sets import group
from dino_perception.perception import geometry
from dino_perception.perception.frame import Percept
from dino_perception.perception.ground_plane import GROUND, ground_plane
from dino_perception.perception.settings import SettingError, Settings

LOOK_NS = 200_000_000
"""The ground is looked at no more often, by the frames' stamps."""
KEPT, LEAST = 15, 5
"""Scales of which the median is taken, and how many there must be: one view may see a slope or a step."""
BOUNDS = (0.5, 2.0)
"""A scale outside is a wrong plane or a wrong height, and is not taken."""


def check_scaling(settings: Settings) -> None:
    """Raises SettingError for what cannot be scaled."""
    wanted = settings.head.get("depth")
    if wanted is None or not wanted.camera_height_scaling:
        return
    if wanted.focal_length_scaling > 0:
        raise SettingError(
            f"'depth.focal_length_scaling' is {wanted.focal_length_scaling:g} and 'depth.camera_height_scaling' is true; the "
            "height sets the scale whatever the lens, so set one of them"
        )
    if not (settings.camera_height or settings.ground_frame):
        raise SettingError(
            "'depth.camera_height_scaling' is true and 'camera_height' is 0; set it to the height of the camera over the "
            "ground in metres, or 'ground_frame' to the TF frame whose origin lies on the ground"
        )
    if "segmentation" not in settings.heads:
        raise SettingError(
            f"'depth.camera_height_scaling' is true and 'heads' are {', '.join(settings.heads)}; it needs segmentation, "
            "which tells what is ground"
        )


class DepthScale:
    """Scales the depth of every camera's frames, in the order in which they come. A stamp that goes back begins anew."""

    def __init__(self) -> None:
        self._stamps: dict[str, int] = {}
        self._unknown: set[str] = set()
        self._scales: dict[str, collections.deque[float]] = {}
        self._looked: dict[str, int] = {}
        self._refused: dict[str, int] = {}

    def scaled(self, percept: Percept, settings: Settings, height: float | None = None) -> Percept:
        """The percept with its depth as the settings ask; `height` is the camera's over the ground in metres, where
        `settings.camera_height` is 0 and something else says it. Depth is NaN where the camera's focal length is asked for
        and not known: metres that are wrong by an unknown factor are worse than none."""
        wanted = settings.head.get("depth")
        if percept.depth is None or wanted is None:
            return percept
        size = settings.input_height, settings.input_width
        if wanted.focal_length_scaling > 0:
            return _times(percept, geometry.focal_scale(percept, *size, wanted.focal_length_scaling))
        if wanted.camera_height_scaling:
            self._look(percept, settings.camera_height or height or 0.0)
            scale = self.scale(percept.frame.camera)
            return percept if scale is None else _times(percept, scale)
        return percept

    @staticmethod
    def asks(settings: Settings) -> bool:
        """Whether it wants to be told the camera's height, which the settings ask for and do not say."""
        depth = settings.head.get("depth")
        return bool(depth and depth.camera_height_scaling and not settings.camera_height)

    def scale(self, camera: str) -> float | None:
        """By what the camera's depth is multiplied for its height; None while too little ground was seen."""
        scales = self._scales.get(camera, ())
        return statistics.median(scales) if len(scales) >= LEAST else None

    def health(self, camera: str) -> str:
        """How far the scale by height can be believed, in words."""
        scales, refused = self._scales.get(camera, ()), self._refused.get(camera, 0)
        if camera in self._unknown:
            return (
                "depth is as the head says: the camera's height is not known; set camera_height, or have fixed transforms of "
                "TF lead to ground_frame"
            )
        if refused >= LEAST:
            return f"the last {refused} heights are off by more than {BOUNDS[1]:g} times and are not taken"
        if len(scales) < LEAST:
            return f"depth is as the head says: {len(scales)} of {LEAST} views of the ground"
        return f"spread {(max(scales) - min(scales)) / statistics.median(scales):.0%} of {len(scales)} views"

    def reset(self) -> None:
        """Forget what was seen."""
        for memory in self._memories():
            memory.clear()

    def memory(self) -> dict[str, Any]:
        """What it remembers, as plain data."""
        scales = {camera: list(kept) for camera, kept in self._scales.items()}
        rest = {"looked": dict(self._looked), "refused": dict(self._refused), "stamps": dict(self._stamps)}
        return {"scales": scales, **rest}

    def recall(self, memory: Mapping[str, Any]) -> None:
        """Take up again what `memory` gave."""
        scales = memory.get("scales", {})
        self._scales = {camera: collections.deque(kept, maxlen=KEPT) for camera, kept in scales.items()}
        self._looked, self._refused, self._stamps = (dict(memory.get(n, {})) for n in ("looked", "refused", "stamps"))

    def _memories(self) -> tuple[dict[str, Any], ...]:
        return self._scales, self._looked, self._refused, self._stamps

    def _look(self, percept: Percept, height: float) -> None:
        camera, stamp_ns = percept.frame.camera, percept.frame.stamp_ns
        if stamp_ns < self._stamps.get(camera, stamp_ns):
            for memory in self._memories():
                memory.pop(camera, None)
        self._stamps[camera] = stamp_ns
        if not height:
            self._unknown.add(camera)
            return
        self._unknown.discard(camera)
        last = self._looked.get(camera)
        if percept.segmentation is None or (last is not None and stamp_ns - last < LOOK_NS):
            return
        self._looked[camera] = stamp_ns
        names = {l.name for l in percept.segmentation.labels if group(l.name) == "traversable"}
        plane = ground_plane(percept, {*GROUND, *names})
        if plane is None:
            return
        scale = height / plane.height
        if BOUNDS[0] <= scale <= BOUNDS[1]:
            self._scales.setdefault(camera, collections.deque(maxlen=KEPT)).append(scale)
            self._refused[camera] = 0
        else:
            self._refused[camera] = self._refused.get(camera, 0) + 1


def _times(percept: Percept, scale: float) -> Percept:
    metres = (percept.depth.metres * scale).astype(percept.depth.metres.dtype)
    return dataclasses.replace(percept, depth=dataclasses.replace(percept.depth, metres=metres))
