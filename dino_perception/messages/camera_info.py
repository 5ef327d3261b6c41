"""sensor_msgs/CameraInfo to and from `CameraModel`."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from dino_perception.perception.frame import CameraModel
from dino_perception.perception.geometry import scale_camera
from dino_perception.perception.lens import COEFFICIENTS, GeometryError, check_camera


class CameraInfoError(ValueError):
    """A CameraInfo that cannot be used; the message says why in one sentence."""


def camera_model(msg: Any) -> CameraModel | None:
    """The model of the image that belongs to this CameraInfo (ROS 2's field names or ROS 1's).

    None when the camera is not calibrated (K all zero). Binning and region of interest are applied, so that the result
    describes the pixels as they arrive. Raises CameraInfoError.
    """
    d, k, r, p = (np.asarray(getattr(msg, name, getattr(msg, name.upper(), ())), np.float64) for name in "dkrp")
    if not k.any():
        return None
    width, height = int(msg.width), int(msg.height)
    if width <= 0 or height <= 0:
        raise CameraInfoError(f"the CameraInfo is for an image of {width} x {height} pixels")
    k = k.reshape(3, 3)
    model = str(msg.distortion_model)
    if not d.any():  # no distortion, whatever the driver calls it
        model, d = (model if model in COEFFICIENTS else "plumb_bob"), np.zeros(0)
    r = r.reshape(3, 3) if r.size == 9 and r.any() else np.eye(3)
    p = p.reshape(3, 4) if p.size == 12 and p.any() else None
    camera = CameraModel(width, height, k, d, model, r, p)
    try:
        check_camera(camera)
    except GeometryError as error:
        raise CameraInfoError(f"the CameraInfo cannot be used: {error}") from None
    return _as_captured(camera, msg)


def camera_info(types: Any, model: CameraModel | None, header: Any, *, width: int = 0, height: int = 0) -> Any:
    """A CameraInfo message. A camera without a model gives the convention for "not calibrated", K all zero, for an
    image of `width` x `height`."""
    if model is None:
        return types.make("sensor_msgs/msg/CameraInfo", header=header, height=height, width=width)
    p = model.p
    if p is None:
        p = np.zeros((3, 4))
        p[:, :3] = model.k
    flat = {
        name: np.ascontiguousarray(value, np.float64).reshape(-1)
        for name, value in (("d", model.d), ("k", model.k), ("r", model.r), ("p", p))
    }
    return types.make(
        "sensor_msgs/msg/CameraInfo",
        header=header,
        height=model.height,
        width=model.width,
        distortion_model=model.model,
        **flat,
    )


def _as_captured(model: CameraModel, msg: Any) -> CameraModel:
    """K and P describe the full sensor; the image is the region of interest, then binned (CameraInfo.msg)."""
    roi = msg.roi
    bin_x, bin_y = max(int(msg.binning_x), 1), max(int(msg.binning_y), 1)
    width, height = int(roi.width) or model.width, int(roi.height) or model.height
    if (bin_x, bin_y, width, height) == (1, 1, model.width, model.height):
        return model
    k, p = model.k.copy(), None if model.p is None else model.p.copy()
    for matrix in (k,) if p is None else (k, p):
        matrix[:2, :3] -= np.outer([int(roi.x_offset), int(roi.y_offset)], matrix[2, :3])
    cropped = dataclasses.replace(model, k=k, p=p)
    return scale_camera(cropped, (1 / bin_x, 1 / bin_y), width // bin_x, height // bin_y)
