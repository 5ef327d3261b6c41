"""Depth, colour and class of a percept as an organised cloud."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import cv2
import numpy as np

from dino_perception.models.label_sets import group
from dino_perception.perception import geometry
from dino_perception.perception.frame import IGNORE, Percept
from dino_perception.perception.settings import PointSettings, Settings

_FIELDS = {"rgb": np.float32, "label": np.uint32, "confidence": np.float32}


def perceive_points(percept: Percept, settings: Settings) -> np.ndarray | None:
    """The cloud of a percept: a structured array (output_height, output_width), one point a pixel, row by row.

    Fields are x y z (float32, metres, optical frame: x right, y down, z forward) and those of `points.fields`, in this
    order and packed: rgb (float32 whose bits are 0x00RRGGBB, as PCL and RViz read it), label (uint32 class id, 255
    where no class is known) and confidence (float32, 0..1, 1 where no segmentation ran). x, y and z are NaN where the
    depth or the ray is unknown, the point lies farther than `points.max_range` from the camera, the confidence is
    below `points.min_confidence`, that of the depth is below `points.min_depth_confidence`, or the class or its group is in `points.exclude`. None when there is no depth or no usable
    camera model.
    """
    if percept.depth is None or percept.output_camera is None:
        return None
    wanted = settings.points
    cloud = np.empty((percept.output_height, percept.output_width), point_type(wanted.fields))
    depth, camera = percept.depth.metres, percept.output_camera
    # NaN compares false, which is what it should do here.
    valid = (depth > 0) & (depth <= geometry.reach(camera, wanted.max_range))
    if percept.segmentation is not None:
        valid &= _wanted_class(percept, wanted)
    if wanted.min_depth_confidence > 0 and percept.depth.confidence is not None:
        valid &= percept.depth.confidence >= wanted.min_depth_confidence * 255
    depth, ray = np.where(valid, depth, np.float32(np.nan)), geometry.rays(camera)
    for i, axis in enumerate("xyz"):  # three long loops instead of many of three steps
        np.multiply(depth, ray[..., i], out=cloud[axis])
    if "rgb" in wanted.fields:
        cloud["rgb"] = _packed_colour(percept)
    if "label" in wanted.fields:
        cloud["label"] = IGNORE if percept.segmentation is None else percept.segmentation.mask
    if "confidence" in wanted.fields:
        cloud["confidence"] = 1.0
        if percept.segmentation is not None:
            np.multiply(percept.segmentation.confidence, np.float32(1 / 255), out=cloud["confidence"])
    return cloud


def point_type(fields: Sequence[str]) -> np.dtype:
    """The packed numpy type of a point with these fields beside x y z; 20 bytes with rgb and label."""
    return _point_type(tuple(name for name in _FIELDS if name in fields))


@functools.cache
def _point_type(fields: tuple[str, ...]) -> np.dtype:
    return np.dtype([(axis, np.float32) for axis in "xyz"] + [(name, _FIELDS[name]) for name in fields])


def _wanted_class(percept: Percept, wanted: PointSettings) -> np.ndarray:
    segmentation = percept.segmentation
    keep = np.ones(256, bool)
    keep[[l.id for l in segmentation.labels if {l.name, group(l.name)} & set(wanted.exclude)]] = False
    chosen = keep[segmentation.mask]
    if wanted.min_confidence > 0:
        chosen &= segmentation.confidence >= wanted.min_confidence * 255
    return chosen


def _packed_colour(percept: Percept) -> np.ndarray:
    image = percept.frame.image
    size = (percept.output_width, percept.output_height)
    scale = percept.output_scale or (size[0] / image.shape[1], size[1] / image.shape[0])
    # The image that exactly fills whole output pixels; all of it when the two grids divide.
    used = image[: round(size[1] / scale[1]), : round(size[0] / scale[0])]
    shrinks = used.shape[0] >= size[1] and used.shape[1] >= size[0]
    small = cv2.resize(used, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    argb = cv2.cvtColor(small, cv2.COLOR_RGB2BGRA)  # little-endian bytes B G R A are 0xAARRGGBB
    argb[..., 3] = 0
    return argb.view(np.float32)[..., 0]
