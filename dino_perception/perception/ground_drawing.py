"""A picture of the local ground for people: its heights in grey, and what is in the way on it."""

from __future__ import annotations

import cv2
import numpy as np

from dino_perception.perception import obstacles
from dino_perception.perception.drawing import canvas, enlarged, legend
from dino_perception.perception.frame import Percept
from dino_perception.perception.settings import Settings

COLOURS = {
    obstacles.OVER: (213, 94, 0),
    obstacles.UNDER: (0, 114, 178),
    obstacles.STEEP: (240, 228, 66),
    obstacles.SOLID: (204, 121, 167),
    obstacles.HIDDEN: (86, 180, 233),
}
"""Of what is in the way; Okabe and Ito's, which people with any colour vision tell apart."""
DARK, LIGHT = 40, 215
"""Grey of what lies a step under the ground, and a step over it."""
LINE = 10.0
"""A line of equal height runs at every so many centimetres."""


def ground_overlay(percept: Percept, settings: Settings) -> np.ndarray:
    """(H, W, 3) uint8 RGB: grey by the height over the local ground, from a step under it, dark, to a step over it, light,
    with a dark line at every 10 cm of the surface's own height; in colour what is in the way; and the image, dimmed, where
    no ground is known. With `overlay.legend` how steep the near ground is, and the colours."""
    found, ground = percept.obstacles, percept.obstacles.ground
    picture, scale = canvas(percept)
    picture //= 3
    step = settings.robot.step
    with np.errstate(invalid="ignore"):
        grey = np.clip((ground.over / step + 1) / 2, 0, 1) * (LIGHT - DARK) + DARK
        height = (ground.z - ground.over) * (100 / LINE)
        line = np.floor(np.nan_to_num(height))
    edge = np.zeros(grey.shape, bool)
    edge[1:] |= line[1:] != line[:-1]
    edge[:, 1:] |= line[:, 1:] != line[:, :-1]
    colour = np.repeat(np.nan_to_num(grey).astype(np.uint8)[..., None], 3, 2)
    colour[edge] //= 2
    for kind, shade in COLOURS.items():
        colour[found.kind == kind] = shade
    known = (found.kind > 0).astype(np.uint8)
    known, colour = (_whole(values, percept) for values in (known, colour))
    cv2.copyTo(enlarged(colour, percept, picture, scale), enlarged(known, percept, picture, scale), picture)
    if settings.overlay.legend:
        seen = [(obstacles.NAMES[kind], shade) for kind, shade in COLOURS.items() if (found.kind == kind).any()]
        legend(picture, [(f"near ground {ground.slope:.0f} deg, step {step:g} m", None), *seen])
    return picture


def _whole(values: np.ndarray, percept: Percept) -> np.ndarray:
    """Values of the pixels that were looked at, for all pixels of the output."""
    ground = percept.obstacles.ground
    wide = np.repeat(values, ground.every, axis=1)[:, : percept.output_width]
    return np.concatenate([np.zeros((ground.top, *wide.shape[1:]), wide.dtype), wide])
