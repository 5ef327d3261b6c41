"""What a replay remembers of every percept, for its report: a few numbers a frame, and a picture now and then."""

from __future__ import annotations

import base64
from collections.abc import Collection
from dataclasses import dataclass, field

import cv2
import numpy as np

from dino_perception import process_memory
from dino_perception.bags.report.figures import Figure, figures
from dino_perception.bags.report.pictures import tiles
from dino_perception.models.label_sets import Label
from dino_perception.perception.frame import IGNORE, Percept
from dino_perception.perception.settings import Settings

PICTURES = 36
"""At most this many pictures are kept, evenly spaced over the frames."""
_WIDTH = 300


@dataclass
class Row:
    """One frame: record time and stamp (ns), camera, milliseconds in the perceiver, in all and in each stage, the share
    of each class in 0..1 (`ignored`: of no class), mean confidence, share of the pixels below the sky that have a depth
    and its 5th, 50th and 95th percentile in metres, matches and their mean score and median length in pixels, resident
    memory in MB. What a head did not say is None. `figures` are those of all other heads."""

    time_ns: int
    stamp_ns: int
    camera: str
    ms: float
    stages: dict[str, float] = field(default_factory=dict)
    classes: dict[int, float] | None = None
    ignored: float | None = None
    confidence: float | None = None
    known: float | None = None
    depth: tuple[float, float, float] | None = None
    matches: int | None = None
    score: float | None = None
    moved: float | None = None
    rss_mb: float = 0.0
    figures: dict[Figure, float] = field(default_factory=dict)


@dataclass
class ReportPicture:
    """Some frame's pictures by name, as JPEG in base64."""

    number: int
    time_ns: int
    camera: str
    tiles: dict[str, str]


class FrameLog:
    """Call it with every percept, its record time and the milliseconds it took."""

    def __init__(self, settings: Settings, labels: tuple[Label, ...], *, pictures: bool = True):
        self.rows: list[Row] = []
        self.pictures: list[ReportPicture] = []
        self._settings, self._labels, self._with_pictures = settings, labels, pictures
        self._stride = 1
        self._before: dict[str, Percept] = {}

    def __call__(self, percept: Percept, time_ns: int, ms: float) -> None:
        number = len(self.rows)
        row = _row(percept, time_ns, ms, self._settings.points.exclude)
        before = self._before.get(row.camera)
        for head, answer in percept.others.items():
            row.figures.update(figures(head, answer, before.others.get(head) if before else None))
        if percept.others:
            self._before[row.camera] = percept
        self.rows.append(row)
        if self._with_pictures and number % self._stride == 0:
            self.pictures.append(self._picture(percept, number, time_ns))
            if len(self.pictures) > PICTURES:
                self._stride *= 2
                self.pictures = [picture for picture in self.pictures if picture.number % self._stride == 0]

    def _picture(self, percept: Percept, number: int, time_ns: int) -> ReportPicture:
        packed = {}
        for name, image in tiles(percept, self._settings).items():
            height = max(1, round(image.shape[0] * _WIDTH / image.shape[1]))
            small = cv2.resize(image, (_WIDTH, height), interpolation=cv2.INTER_AREA)
            ok, jpeg = cv2.imencode(".jpg", small[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 80])
            packed[name] = base64.b64encode(jpeg).decode() if ok else ""
        return ReportPicture(number, time_ns, percept.frame.camera, packed)


def _row(percept: Percept, time_ns: int, ms: float, far: Collection[str]) -> Row:
    frame = percept.frame
    row = Row(
        time_ns, frame.stamp_ns, frame.camera, ms, dict(percept.stage_ms), rss_mb=(process_memory.resident() or 0) / 1e6
    )
    if percept.segmentation is not None:
        mask = percept.segmentation.mask
        shares = np.bincount(mask.reshape(-1), minlength=256) / mask.size
        row.classes = {label.id: float(shares[label.id]) for label in percept.segmentation.labels}
        row.ignored = float(shares[IGNORE])
        row.confidence = float(percept.segmentation.confidence.mean() / 255)
    if percept.depth is not None:
        metres = percept.depth.metres
        near = _near(percept, far)
        row.known = float(np.isfinite(metres[near]).mean()) if near.any() else None
        some = metres[::2, ::2][near[::2, ::2]]
        some = np.sort(some[np.isfinite(some)])
        if some.size:
            row.depth = tuple(float(some[int(q * (some.size - 1))]) for q in (0.05, 0.5, 0.95))
    if percept.correspondences is not None:
        matches = percept.correspondences
        row.matches = len(matches.x)
        if row.matches:
            row.score = float(matches.score.mean())
            row.moved = float(np.median(np.hypot(matches.x - matches.reference_x, matches.y - matches.reference_y)))
    return row


def _near(percept: Percept, far: Collection[str]) -> np.ndarray:
    """(H, W) bool: the pixels of depth that are of no class named in `far`. The sky is at no distance, and half a
    picture of it would drown what the depth says of the ground."""
    metres, segmentation = percept.depth.metres, percept.segmentation
    if segmentation is None or segmentation.mask.shape != metres.shape:
        return np.ones(metres.shape, bool)
    return ~np.isin(segmentation.mask, [label.id for label in segmentation.labels if label.name in far])
