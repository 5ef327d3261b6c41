"""Boxes in the picture as boxes in space: how far away is what a box shows, and how large?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dino_perception.models.label_sets import Label
from dino_perception.perception import geometry
from dino_perception.perception.frame import Percept
from dino_perception.perception.settings import Settings

WINDOW = 0.12
"""How much farther than its nearest point what stands in a box may reach, as a share: wide enough for a rock and for the
errors of monocular depth, narrow enough to leave out the ground behind it."""
FEWEST = 6
"""Depths that must agree before anything is said."""
LEAST_SHARE = 0.1
"""Of a box's pixels that must be of its class for the others to be left out."""
QUANTILES = (0.02, 0.98)
"""Of the points, for the extent."""


@dataclass(frozen=True)
class LiftedBox:
    """`row` of the detections' boxes; `position` (3,) and `size` (3,) in metres in the camera's optical frame: the middle
    and the extent of what is seen of the object. Its far side is not seen, so along z it is the depth of its face."""

    row: int
    position: np.ndarray
    size: np.ndarray


def lifted_boxes(percept: Percept, settings: Settings) -> list[LiftedBox] | None:
    """What each box of the percept's detections shows, in space. A box whose depth is unknown, or spread such that no
    `FEWEST` depths agree, is left out. None without depth or a usable camera model.

    Depths count up to `points.max_range`, from `points.min_depth_confidence` on, and where a tenth of the box or more has
    a class of the box's name in the segmentation, only there.
    """
    if percept.depth is None or percept.output_camera is None:
        return None
    answer = percept.answer("detection")
    depth, camera = percept.depth.metres, percept.output_camera
    with np.errstate(invalid="ignore"):
        valid = (depth > 0) & (depth <= geometry.reach(camera, settings.points.max_range))
    if percept.depth.confidence is not None:
        valid &= percept.depth.confidence >= settings.points.min_depth_confidence * 255
    names = {label.id: label.name for label in answer.labels}
    rays, found = geometry.rays(camera), []
    corners = geometry.resized(answer["boxes"][:, :4].reshape(-1, 2), percept.output_scale).reshape(-1, 4)
    for row, (box, number) in enumerate(zip(corners, answer["boxes"][:, 5])):
        part = pixels_in(box, depth.shape)
        inside = valid[part]
        if percept.segmentation is not None:
            ids = ids_of(names.get(int(number), ""), percept.segmentation.labels)
            of_class = np.isin(percept.segmentation.mask[part], ids)
            if of_class.sum() >= max(FEWEST, LEAST_SHARE * of_class.size):
                inside = inside & of_class
        metres = depth[part][inside]
        mode = dominant(metres)
        if mode is None:
            continue
        near, far, middle = mode
        group = (metres >= near) & (metres <= far)
        points = metres[group][:, None] * rays[part][inside][group]
        low, high = np.quantile(points, QUANTILES, axis=0)
        position = np.array([(low[0] + high[0]) / 2, (low[1] + high[1]) / 2, middle])
        if np.isfinite(position).all():
            found.append(LiftedBox(row, position, high - low))
    return found


def dominant(metres: np.ndarray) -> tuple[float, float, float] | None:
    """(nearest, farthest, median) of the most depths (N,) that lie within a `WINDOW` of one another: the mode of their
    logarithms, whatever else is in the box. Of equally many the nearer. None where there are fewer than `FEWEST`."""
    metres = np.sort(metres[np.isfinite(metres)])
    if len(metres) < FEWEST:
        return None
    ends = np.searchsorted(metres, metres * (1 + WINDOW), side="right")
    counts = ends - np.arange(len(metres))
    first = int(counts.argmax())
    if counts[first] < FEWEST:
        return None
    group = metres[first : ends[first]]
    return float(group[0]), float(group[-1]), float(np.median(group))


def pixels_in(box: Sequence[float], shape: tuple[int, int]) -> tuple[slice, slice]:
    """Rows and columns of the pixels whose middles lie in a box (left, top, right, bottom), for an array of that shape;
    at least one of each."""
    slices = []
    for low, high, count in ((box[1], box[3], shape[0]), (box[0], box[2], shape[1])):
        first = min(max(math.ceil(low), 0), count - 1)
        slices.append(slice(first, max(first + 1, min(math.floor(high) + 1, count))))
    return slices[0], slices[1]


def ids_of(name: str, labels: Sequence[Label]) -> list[int]:
    """The classes of a segmentation that show what a detector calls `name`: those of that name, with or without a word
    before it ("rock" is a "big_rock" and a "rock")."""
    wanted = _words(name)
    return [label.id for label in labels if wanted and _words(label.name)[-len(wanted) :] == wanted]


def _words(name: str) -> list[str]:
    return name.lower().replace("_", " ").replace("-", " ").split()
