"""What travels: a frame goes in, a percept comes out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class CameraModel:
    """Pinhole intrinsics with distortion, as a calibrated `sensor_msgs/CameraInfo` carries them.

    `k` (3, 3) and `p` (3, 4) are float64, in pixels of a `width` x `height` image whose pixel centres are at
    integers. `model` is "plumb_bob", "rational_polynomial" or "equidistant"; `d` holds its coefficients
    (empty: no distortion). `r` (3, 3) is the rectification rotation.
    """

    width: int
    height: int
    k: np.ndarray
    d: np.ndarray = field(default_factory=lambda: np.zeros(0))
    model: str = "plumb_bob"
    r: np.ndarray = field(default_factory=lambda: np.eye(3))
    p: np.ndarray | None = None


@dataclass(frozen=True)
class Frame:
    """One image of one camera.

    `image` is (H, W, 3) uint8 RGB. `stamp_ns` is the acquisition time in nanoseconds of whatever clock the camera
    uses; it is copied to every output and never compared with the wall clock here. `camera_model` is None when the
    camera is not calibrated.
    """

    camera: str
    stamp_ns: int
    frame_id: str
    image: np.ndarray
    camera_model: CameraModel | None = None


@dataclass(frozen=True)
class Label:
    """A class a segmentation head knows: its id in the mask, its name and its overlay colour (RGB, 0..255)."""

    id: int
    name: str
    colour: tuple[int, int, int]


IGNORE = 255
"""The mask value of a pixel that carries no class; it is in no label list."""


@dataclass(frozen=True)
class Segmentation:
    """`mask` (h, w) uint8 class ids, `confidence` (h, w) uint8, 255 = probability 1."""

    mask: np.ndarray
    confidence: np.ndarray
    labels: tuple[Label, ...]


@dataclass(frozen=True)
class Depth:
    """`metres` (h, w) float32 along the optical axis (REP 118), NaN where unknown."""

    metres: np.ndarray


@dataclass(frozen=True)
class Correspondences:
    """Matches of this frame with a reference frame of the same camera, one row a match.

    Coordinates are float32 pixels of the input images, pixel centres at integers. `track_id` (N,) uint64 stays the
    same while a point stays tracked; `score` (N,) float32 is the cosine similarity of the descriptors, 0..1.
    """

    reference_stamp_ns: int
    reference_frame_id: str
    width: int
    height: int
    track_id: np.ndarray
    x: np.ndarray
    y: np.ndarray
    reference_x: np.ndarray
    reference_y: np.ndarray
    score: np.ndarray


@dataclass(frozen=True)
class Percept:
    """Everything one pass says about one frame; a head nobody wanted is None.

    `output_camera` is the frame's camera model scaled to the output size (None when the frame had none); mask,
    confidence, depth and points all have that size. `output_scale` (x, y) is output pixels per image pixel.
    `stage_ms` holds the wall time of each stage of the batch that this frame was part of. `camera_problem` is one
    sentence when the frame's camera model is missing or cannot be used, so that there will be no points. `extra` holds
    the arrays of heads of other kinds, by name; those of the size of the output grid are cut to the image's part.
    """

    frame: Frame
    output_height: int
    output_width: int
    output_camera: CameraModel | None = None
    segmentation: Segmentation | None = None
    depth: Depth | None = None
    correspondences: Correspondences | None = None
    stage_ms: Mapping[str, float] = field(default_factory=dict)
    output_scale: tuple[float, float] | None = None
    camera_problem: str = ""
    extra: Mapping[str, tuple[np.ndarray, ...]] = field(default_factory=dict)
