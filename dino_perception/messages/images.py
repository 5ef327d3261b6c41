"""Camera images of any encoding to RGB, for the messages of rclpy and of rosbags alike."""

from __future__ import annotations

import logging
import re
from typing import Any

import cv2
import numpy as np

from dino_perception.messages.picture_files import jpeg_fault, picture_kind, picture_size, png_cut_off
from dino_perception.messages.strict_jpeg import decode_strictly

MAX_MEGAPIXELS = 64.0
"""Larger pictures are refused before they are decoded, unless the caller says otherwise."""


log = logging.getLogger(__name__)
_WARNED: set[str] = set()  # encodings


class ImageError(ValueError):
    """An image message that cannot be used; the message says why in one sentence."""


# encoding -> (bytes of one sample, samples a pixel, OpenCV conversion to RGB; None: it is RGB already).
# ROS names a Bayer pattern by its first 2x2 block. OpenCV's names that every version has (BayerBG for RGGB) mean the
# block one row and one column further on; those that agree with ROS came with 4.5.5, after Ubuntu 22.04's.
_ENCODINGS: dict[str, tuple[int, int, int | None]] = {
    "rgb8": (1, 3, None),
    "bgr8": (1, 3, cv2.COLOR_BGR2RGB),
    "8UC3": (1, 3, cv2.COLOR_BGR2RGB),
    "rgba8": (1, 4, cv2.COLOR_RGBA2RGB),
    "bgra8": (1, 4, cv2.COLOR_BGRA2RGB),
    "8UC4": (1, 4, cv2.COLOR_BGRA2RGB),
    "mono8": (1, 1, cv2.COLOR_GRAY2RGB),
    "8UC1": (1, 1, cv2.COLOR_GRAY2RGB),
    "rgb16": (2, 3, None),
    "bgr16": (2, 3, cv2.COLOR_BGR2RGB),
    "rgba16": (2, 4, cv2.COLOR_RGBA2RGB),
    "bgra16": (2, 4, cv2.COLOR_BGRA2RGB),
    "mono16": (2, 1, cv2.COLOR_GRAY2RGB),
    "yuv422": (1, 2, cv2.COLOR_YUV2RGB_UYVY),
    "uyvy": (1, 2, cv2.COLOR_YUV2RGB_UYVY),
    "yuv422_yuy2": (1, 2, cv2.COLOR_YUV2RGB_YUYV),
    "yuyv": (1, 2, cv2.COLOR_YUV2RGB_YUYV),
    "nv12": (1, 1, cv2.COLOR_YUV2RGB_NV12),
    "nv21": (1, 1, cv2.COLOR_YUV2RGB_NV21),
}
for _pattern, _theirs in (
    ("rggb", cv2.COLOR_BayerBG2RGB),
    ("bggr", cv2.COLOR_BayerRG2RGB),
    ("gbrg", cv2.COLOR_BayerGR2RGB),
    ("grbg", cv2.COLOR_BayerGB2RGB),
):
    for _bits in (8, 16):
        _ENCODINGS[f"bayer_{_pattern}{_bits}"] = (_bits // 8, 1, _theirs)

ENCODINGS = tuple(_ENCODINGS)
"""Every encoding that `decode_image` takes without help."""

_DEPTH = re.compile(r"^(16UC1|32FC1)\b|compressedDepth", re.IGNORECASE)


def decode_image(msg: Any, max_megapixels: float = MAX_MEGAPIXELS, bits: int = 16) -> np.ndarray:
    """The (H, W, 3) uint8 RGB pixels of a sensor_msgs/Image, C-contiguous and writable.

    Rows may be padded (`step`), 16-bit samples may be of either byte order. Samples of 16 bits, of which the camera uses `bits`,
    become 8 by round(v * 255 / (2^bits - 1)),
    YUV is ITU-R BT.601 in studio range, both as OpenCV has them. Where the encoding is rgb8 without padding and the
    message's buffer is writable, the result shares it. An encoding beyond `ENCODINGS` is handed to cv_bridge where
    that is installed. Raises ImageError.
    """
    height, width, step = int(msg.height), int(msg.width), int(msg.step)
    encoding = str(msg.encoding)
    if height <= 0 or width <= 0:
        raise ImageError(f"the image is {width} x {height} pixels")
    _check_size(width, height, max_megapixels)
    if encoding not in _ENCODINGS:
        return _by_cv_bridge(msg, encoding)
    sample_bytes, samples, conversion = _ENCODINGS[encoding]
    row_bytes = width * sample_bytes * samples
    rows = _rows(encoding, width, height)
    data = np.frombuffer(msg.data, np.uint8)
    if step < row_bytes:
        raise ImageError(f"the image's step is {step} bytes, but a row of {width} {encoding} pixels takes {row_bytes}")
    needed = (rows - 1) * step + row_bytes
    if data.size < needed:
        raise ImageError(
            f"the image holds {data.size} bytes, but {width} x {height} {encoding} with step {step} takes {needed}"
        )
    pixels = np.lib.stride_tricks.as_strided(data, (rows, row_bytes), (step, 1), writeable=data.flags.writeable)
    if sample_bytes == 2:
        pixels = np.ascontiguousarray(pixels).view(">u2" if msg.is_bigendian else "<u2").astype(np.uint16, copy=False)
    if samples > 1:
        pixels = np.ascontiguousarray(pixels).reshape(rows, width, samples)
    return _rgb(pixels, conversion, bits, encoding)


def decode_compressed(msg: Any, max_megapixels: float = MAX_MEGAPIXELS, bits: int = 16) -> np.ndarray:
    """The (H, W, 3) uint8 RGB pixels of a sensor_msgs/CompressedImage that holds a JPEG, PNG, TIFF or WebP.

    The format string is read as image_transport writes it: "jpeg", "rgb8; jpeg compressed bgr8", "bayer_rggb8; png
    compressed ". What the bytes are is read from the bytes. An orientation tag inside the file is not applied, since
    the intrinsics belong to the pixels as they are. Raises ImageError.
    """
    form = str(msg.format)
    if _DEPTH.search(form):
        raise ImageError(f"the compressed image's format is '{form}': a depth image, not a camera picture")
    data = np.frombuffer(msg.data, np.uint8)
    kind = picture_kind(data.data)
    if not kind:
        raise ImageError(
            f"the compressed image (format '{form}', {data.size} bytes) is neither JPEG nor PNG, TIFF or WebP"
        )
    if kind in ("TIFF", "WebP") and not picture_size(data.data):
        raise ImageError(f"the {kind} (format '{form}', {data.size} bytes) does not state its size; it is cut off")
    check_picture_size(data, max_megapixels)
    original = form.partition(";")[0].strip()
    mosaic = original.startswith("bayer_") and original in _ENCODINGS
    depth = cv2.IMREAD_ANYDEPTH | cv2.IMREAD_IGNORE_ORIENTATION
    decode = lambda octets: cv2.imdecode(octets, depth | (cv2.IMREAD_ANYCOLOR if mosaic else cv2.IMREAD_COLOR))
    try:
        pixels, fault = decode_strictly(data) if kind == "JPEG" and not mosaic else (None, "")
        if pixels is not None:
            fault = jpeg_fault(data.data, pixels)
        elif not fault:
            pixels = decode(data)
            fault = "its pixels cannot be read" if pixels is None else ""
            if kind == "JPEG" and not fault:
                fault = jpeg_fault(data.data, pixels, lambda octets: decode(np.frombuffer(octets, np.uint8)))
    except cv2.error as error:
        raise ImageError(f"the {kind} of {data.size} bytes cannot be decoded: {error.err}") from None
    if fault:
        raise ImageError(f"the {kind} of {data.size} bytes is damaged or cut off: {fault}")
    if mosaic and pixels.ndim == 2:
        return _rgb(pixels, _ENCODINGS[original][2], bits, form)
    if mosaic or "compressed rgb" not in form:  # else the sender handed RGB to an encoder that takes BGR
        pixels = cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB, pixels)
    return _rgb(pixels, None, bits, form)


def _rows(encoding: str, width: int, height: int) -> int:
    """Rows of samples in the buffer; refuses sizes that the encoding cannot have."""
    if encoding.startswith(("yuv", "uyvy", "yuyv")) and width % 2:
        raise ImageError(f"the image is {width} pixels wide, but {encoding} stores pixels in pairs")
    if encoding in ("nv12", "nv21"):
        if width % 2 or height % 2:
            raise ImageError(f"the image is {width} x {height} pixels, but {encoding} stores blocks of 2 x 2")
        return height * 3 // 2
    if encoding.startswith("bayer") and min(width, height) < 4:
        raise ImageError(f"the image is {width} x {height} pixels; a {encoding} mosaic needs at least 4 x 4")
    return height


def _rgb(pixels: np.ndarray, conversion: int | None, bits: int = 16, encoding: str = "") -> np.ndarray:
    if pixels.dtype == np.uint16 and bits == 16:
        _warn_of_few_bits(pixels, encoding)
    if conversion is not None:
        pixels = cv2.cvtColor(pixels, conversion)
    if pixels.dtype == np.uint16:
        pixels = cv2.convertScaleAbs(pixels, alpha=255.0 / (2**bits - 1))
    elif pixels.dtype != np.uint8:
        raise ImageError(
            f"the image (format '{encoding}') has samples of type {pixels.dtype}; accepted are 8 and 16 bits"
        )
    pixels = np.ascontiguousarray(pixels)
    return pixels if pixels.flags.writeable else pixels.copy()


def _warn_of_few_bits(pixels: np.ndarray, encoding: str) -> None:
    """Say once an encoding that a picture is nearly black because its camera uses fewer bits than the encoding has."""
    brightest = int(pixels.max())
    if 0 < brightest < 4096 and encoding not in _WARNED:
        _WARNED.add(encoding)
        log.warning(
            "the brightest sample of a '%s' image is %d of 65535, as of a camera of %d bits, and it is seen nearly black; "
            "set image_bits to the camera's bits",
            encoding,
            brightest,
            next(bits for bits in (8, 10, 12) if brightest < 2**bits),
        )


def check_picture_size(data: Any, max_megapixels: float = MAX_MEGAPIXELS) -> None:
    """Raises ImageError for the bytes of a picture file whose header states a size beyond the limit, or none."""
    size = picture_size(memoryview(data))
    if size is None or min(size) < 1:
        kind = picture_kind(memoryview(data)) or "picture"
        raise ImageError(f"the {kind} of {len(data)} bytes does not state its size; it is damaged or cut off")
    if picture_kind(memoryview(data)) == "PNG" and png_cut_off(memoryview(data)):
        raise ImageError(f"the PNG of {len(data)} bytes is damaged or cut off: it has no end")
    _check_size(*size, max_megapixels)


def _check_size(width: int, height: int, max_megapixels: float) -> None:
    if width * height > 1e6 * max_megapixels:
        raise ImageError(
            f"the image is {width} x {height} pixels, {width * height / 1e6:.1f} megapixels; max_megapixels is "
            f"{max_megapixels:g}"
        )


def _by_cv_bridge(msg: Any, encoding: str) -> np.ndarray:
    known = ", ".join(ENCODINGS)
    try:
        from cv_bridge import CvBridge
    except Exception:  # not installed, or built for another NumPy, which fails in more ways than ImportError
        raise ImageError(f"the image's encoding is '{encoding}'; accepted are {known}") from None
    try:
        return _rgb(np.asarray(CvBridge().imgmsg_to_cv2(msg, "rgb8")), None)
    except Exception as error:
        raise ImageError(
            f"the image's encoding is '{encoding}', which cv_bridge cannot turn into rgb8 ({error}); "
            f"accepted are {known}"
        ) from None
