"""Pictures of percepts for people: drawn only when somebody looks."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import cv2
import numpy as np

from dino_perception.models.label_sets import Label
from dino_perception.perception.feature_colours import COMPONENTS, MAP, Covariance
from dino_perception.perception.frame import Percept
from dino_perception.perception.geometry import letterbox, patch_matrix, pixels_under, touched_patches
from dino_perception.perception.settings import Settings

WIDEST = 640
"""Pictures are at most this many pixels on their longer side: enough to judge by, small enough to send."""
NEAREST = 0.5
"""Metres at the near end of the depth colours."""
FONT = cv2.FONT_HERSHEY_SIMPLEX


def overlay(percept: Percept, head: str, settings: Settings) -> np.ndarray:
    """The picture (H, W, 3) uint8 RGB of what a head says of a frame: its own, or that of what its first array means."""
    if head in OVERLAYS:
        return OVERLAYS[head](percept, settings)
    answer = percept.answer(head)
    first = answer.outputs[0]
    return BY_MEANING[first.meaning](percept, settings, answer, answer[first.name])


def segmentation_overlay(percept: Percept, settings: Settings) -> np.ndarray:
    """(H, W, 3) uint8 RGB: the image with the class colours over it at `overlay.alpha`, fainter where the head is unsure,
    class borders full, and with `overlay.legend` the names and shares of the classes that are in sight."""
    said = percept.segmentation
    return _tinted(percept, settings, said.mask, said.confidence, said.labels)


def _tinted(percept: Percept, settings: Settings, mask: np.ndarray, confidence, labels: Sequence[Label]) -> np.ndarray:
    """Class ids (h, w) over the image; `confidence` (h, w) uint8, or one for all."""
    picture, scale = canvas(percept)
    colours = np.zeros((256, 3), np.uint8)
    known = np.zeros(256, bool)
    for label in labels:
        colours[label.id], known[label.id] = label.colour, True
    border = np.zeros(mask.shape, bool)
    border[:, 1:] |= mask[:, 1:] != mask[:, :-1]
    border[1:] |= mask[1:] != mask[:-1]
    alpha = settings.overlay.alpha
    strength = np.where(border, min(1.0, alpha + 0.4), alpha * (0.4 + 0.6 / 255 * confidence))
    strength[~known[mask]] = 0
    strength = enlarged(strength.astype(np.float32), percept, picture, scale)
    picture = cv2.blendLinear(picture, enlarged(colours[mask], percept, picture, scale), 1 - strength, strength)
    if settings.overlay.legend:
        count = np.bincount(mask.ravel(), minlength=256)
        seen = [label for label in labels if count[label.id]]
        legend(picture, [(f"{label.name} {100 * count[label.id] / count.sum():.0f}%", label.colour) for label in seen])
    return picture


def depth_overlay(percept: Percept, settings: Settings) -> np.ndarray:
    """(H, W, 3) uint8 RGB: depth in viridis (even to the eye, also to a colour-blind one) on a logarithmic scale from
    0.5 m, bright, to `points.max_range`, dark, with a scale in metres. What is unknown or farther shows the image, grey
    and dimmed."""
    return _ramped(percept, settings, percept.depth.metres)


def _ramped(percept: Percept, settings: Settings, metres: np.ndarray) -> np.ndarray:
    picture, scale = canvas(percept)
    far = max(settings.points.max_range, 2 * NEAREST)
    colours, known = depth_colours(metres, far)
    grey = cv2.cvtColor(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB) // 3
    picture = enlarged(colours, percept, picture, scale)
    cv2.copyTo(grey, enlarged((~known).astype(np.uint8), percept, picture, scale), picture)
    if settings.overlay.legend:
        _depth_scale(picture, far)
    return picture


def depth_colours(metres: np.ndarray, far: float) -> tuple[np.ndarray, np.ndarray]:
    """Metres (h, w) as (h, w, 3) uint8 RGB in viridis, logarithmic from 0.5 m, bright, to `far`, dark; and where they are
    known, (h, w) bool: not NaN, not 0 and not farther."""
    with np.errstate(invalid="ignore", divide="ignore"):
        shade = 1 - np.log(metres / NEAREST) / np.log(far / NEAREST)
        known = np.isfinite(metres) & (metres > 0) & (metres <= far)
    return _viridis()[(np.clip(np.where(known, shade, 0), 0, 1) * 255).astype(np.uint8)], known


def correspondences_overlay(percept: Percept, settings: Settings) -> np.ndarray:
    """(H, W, 3) uint8 RGB: the image in grey, and for each match a line from where the point was in the reference to
    where it is, coloured by its score (dark 0.5 and less, bright 1)."""
    matches = percept.correspondences
    picture, scale = canvas(percept)
    picture = cv2.cvtColor(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    picture = (picture * np.float32(0.7)).astype(np.uint8)
    shift = 4  # OpenCV draws at fractions of a pixel: integers with `shift` fractional bits
    points = [
        ((np.stack(xy, axis=1) + 0.5) * scale - 0.5) * 2**shift
        for xy in ((matches.reference_x, matches.reference_y), (matches.x, matches.y))
    ]
    start, end = (p.round().astype(int) for p in points)
    colours = _viridis()[(np.clip(2 * matches.score - 1, 0, 1) * 255).astype(int)].tolist()
    for a, b, colour in zip(start.tolist(), end.tolist(), colours):
        cv2.line(picture, a, b, colour, 1, cv2.LINE_AA, shift)
    for b, colour in zip(end.tolist(), colours):
        cv2.circle(picture, b, round(1.6 * 2**shift), colour, -1, cv2.LINE_AA, shift)
    if settings.overlay.legend:
        age = (percept.frame.stamp_ns - matches.reference_stamp_ns) * 1e-9
        legend(picture, [(f"{len(matches.x)} matches with {age:.2f} s ago", None)])
    return picture


def _barred(percept: Percept, settings: Settings, vector: np.ndarray) -> np.ndarray:
    """A vector (D,) as bars from left to right on a dark plate at the lower edge, up for above zero."""
    picture, _ = canvas(percept)
    height, width = picture.shape[:2]
    plate = picture[height - height // 4 :]
    plate //= 4
    bars = cv2.resize(vector[None].astype(np.float32), (width, 1), interpolation=cv2.INTER_AREA)[0]
    level = (len(plate) - 1) / 2 * (1 - bars / max(float(np.abs(bars).max()), 1e-12))
    rows, middle = np.arange(len(plate))[:, None], (len(plate) - 1) / 2
    plate[(rows >= np.minimum(level, middle)) & (rows <= np.maximum(level, middle))] = _viridis()[-1]
    return picture


def _boxed(percept: Percept, settings: Settings, boxes: np.ndarray, labels: Sequence[Label]) -> np.ndarray:
    """Boxes (N, 6) in pixels of the image, each with its class and score."""
    picture, scale = canvas(percept)
    known = {label.id: label for label in labels}
    for left, top, right, bottom, score, number in boxes.tolist():
        label = known.get(int(number))
        colour = label.colour if label else (255, 255, 255)
        corners = ((np.array([[left, top], [right, bottom]]) + 0.5) * scale - 0.5).round().astype(int).tolist()
        cv2.rectangle(picture, *corners, colour, 2, cv2.LINE_AA)
        if settings.overlay.legend:
            text = f"{label.name if label else int(number)} {score:.2f}"
            cv2.putText(picture, text, (corners[0][0], max(12, corners[0][1] - 4)), FONT, 0.45, colour, 1, cv2.LINE_AA)
    return picture


def features_overlay(percept: Percept, settings: Settings) -> np.ndarray:
    """(H, W, 3) uint8 RGB: the three components of the features, 0 as middle grey, by the sigmoid of twice their standard
    deviations (the picture of the DINOv3 notebooks). A percept without components gets those of its own features."""
    answer, scale = percept.others["features"], canvas(percept)[1]
    components = answer.arrays.get(COMPONENTS)
    if components is None:
        alone = Covariance()
        alone.add(answer[MAP])
        components = alone.basis().project(answer[MAP])
    height, width = percept.frame.image.shape[:2]
    box = letterbox(
        height, width, settings.input_height, settings.input_width, settings.output_height, settings.output_width
    )
    rows, columns = touched_patches(box, *components.shape[1:])
    with np.errstate(over="ignore"):
        colours = 255 / (1 + np.exp(-2 * np.nan_to_num(components[:, :rows, :columns])))
    size = round(width * scale[0]), round(height * scale[1])
    return cv2.warpAffine(
        np.ascontiguousarray(colours.round().astype(np.uint8).transpose(1, 2, 0)),
        patch_matrix(box, *components.shape[1:], scale), size,
        flags=cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_REPLICATE,
    )  # fmt: skip


OVERLAYS = {
    "features": features_overlay,
    "segmentation": segmentation_overlay,
    "depth": depth_overlay,
    "correspondences": correspondences_overlay,
}
"""Heads with a picture of their own."""
BY_MEANING = {
    "labels": lambda percept, settings, answer, mask: _tinted(percept, settings, mask, 255, answer.labels),
    "metres": lambda percept, settings, answer, metres: _ramped(percept, settings, metres),
    "vector": lambda percept, settings, answer, vector: _barred(percept, settings, vector),
    "boxes": lambda percept, settings, answer, boxes: _boxed(percept, settings, boxes, answer.labels),
}
"""The pictures of all others, by what their first array means (models/outputs.py)."""


def canvas(percept: Percept) -> tuple[np.ndarray, np.ndarray]:
    """The image at the pictures' size, and the scale (x, y) from image to picture pixels."""
    image = percept.frame.image
    height, width = image.shape[:2]
    factor = min(1.0, WIDEST / max(height, width))
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    picture = cv2.resize(image, size, interpolation=cv2.INTER_AREA) if factor < 1 else np.array(image)
    return picture, np.array([size[0] / width, size[1] / height])


def enlarged(grid: np.ndarray, percept: Percept, picture: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """The output pixel that each picture pixel lies in."""
    output = percept.output_scale or (grid.shape[1] / percept.frame.image.shape[1],
                                      grid.shape[0] / percept.frame.image.shape[0])  # fmt: skip
    columns, rows = map(pixels_under, picture.shape[1::-1], grid.shape[1::-1], output, scale)
    return np.ascontiguousarray(grid[rows][:, columns])


@functools.cache
def _viridis() -> np.ndarray:
    """(256, 3) uint8 RGB."""
    bgr = cv2.applyColorMap(np.arange(256, dtype=np.uint8)[:, None], cv2.COLORMAP_VIRIDIS)
    return np.ascontiguousarray(bgr[:, 0, ::-1])


def legend(picture: np.ndarray, entries: list[tuple[str, tuple[int, int, int] | None]]) -> None:
    """Writes lines of text, each with a swatch of its colour, on a dark plate in the lower left corner."""
    if not entries:
        return
    size = max(0.35, min(0.5, picture.shape[1] / 1200))
    line = round(40 * size)
    pad = round(0.35 * line)
    swatch = line if any(colour for _, colour in entries) else 0
    width = max(cv2.getTextSize(text, FONT, size, 1)[0][0] for text, _ in entries) + swatch + 3 * pad
    top = max(0, picture.shape[0] - line * len(entries) - 2 * pad)
    plate = picture[top:, : min(width, picture.shape[1])]
    plate[:] = plate // 4
    for i, (text, colour) in enumerate(entries):
        y = top + pad + line * i
        if colour:
            cv2.rectangle(picture, (pad, y + line // 5), (pad + 3 * swatch // 4, y + line - line // 5), colour, -1)
        cv2.putText(picture, text, (pad + swatch, y + round(0.75 * line)), FONT, size, (255, 255, 255), 1, cv2.LINE_AA)


def _depth_scale(picture: np.ndarray, far: float) -> None:
    """Draws the bar of depth colours with round metres on a dark plate at the right edge."""
    height, width = picture.shape[:2]
    size = max(0.35, min(0.5, width / 1200))
    bar = max(6, width // 60)
    plate = round(95 * size) + bar
    picture[:, width - plate :] //= 4
    top, bottom = height // 16, height - height // 16
    shade = np.linspace(0, 255, bottom - top).astype(np.uint8)  # far above, near below, as in the image
    picture[top:bottom, width - plate + bar // 2 : width - plate + bar // 2 + bar] = _viridis()[shade][:, None]
    ticks = [m * 10.0**e for e in range(-1, 5) for m in (1, 2, 5) if NEAREST <= m * 10.0**e <= far]
    for metres in ticks:
        y = bottom - 1 - (bottom - 1 - top) * np.log(metres / NEAREST) / np.log(far / NEAREST)
        place = (width - plate + 2 * bar, round(y) + round(10 * size))
        cv2.putText(picture, f"{metres:g} m", place, FONT, size, (255, 255, 255), 1, cv2.LINE_AA)
