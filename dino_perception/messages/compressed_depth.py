"""Depth as compressed_depth_image_transport sends it: a PNG or RVL behind a header of 12 bytes, or a PNG alone."""

from __future__ import annotations

import struct
from typing import Any

import cv2
import numpy as np

from dino_perception.messages.images import MAX_MEGAPIXELS, ImageError, check_picture_size

_HEADER = struct.Struct("<iff")
"""Of compressed_depth_image_transport (compression_common.h): the kind of compression, and a and b for 32FC1."""


def decode_compressed_depth(msg: Any, max_megapixels: float = MAX_MEGAPIXELS) -> np.ndarray:
    """The (H, W) float32 metres of a sensor_msgs/CompressedImage, 0 or not finite where nothing was measured.

    16UC1 holds millimetres. 32FC1 holds inverse depth in steps: metres = a / (value - b), with a and b from the header.
    Raises ImageError.
    """
    data, form = bytes(msg.data), str(msg.format)
    a = b = None
    if not data.startswith(b"\x89PNG"):
        if len(data) <= _HEADER.size:
            raise ImageError(f"the compressed depth (format '{form}') has {len(data)} bytes, no picture")
        _, a, b = _HEADER.unpack_from(data)
        data = data[_HEADER.size :]
    if data.startswith(b"\x89PNG"):
        octets = np.frombuffer(data, np.uint8)
        check_picture_size(octets, max_megapixels)
        raw = cv2.imdecode(octets, cv2.IMREAD_UNCHANGED)
    elif "rvl" in form.lower():
        raw = decode_rvl(data, max_megapixels)
    else:
        raise ImageError(f"the compressed depth has the format '{form}', but holds neither PNG nor RVL")
    if raw is None or raw.dtype != np.uint16 or raw.ndim != 2:
        raise ImageError(f"the compressed depth (format '{form}') is not a 16-bit PNG of depth")
    if a is not None and form.startswith("32FC1"):
        with np.errstate(divide="ignore"):
            return np.where(raw > 0, a / (raw.astype(np.float32) - b), 0).astype(np.float32)
    return raw / np.float32(1000)


def decode_rvl(data: bytes, max_megapixels: float = MAX_MEGAPIXELS) -> np.ndarray:
    """The (H, W) uint16 values of RVL (Wilson, "Fast Lossless Depth Image Compression", 2017) behind width and height
    as two int32.

    The stream is 32-bit words of eight 4-bit groups, the first group in the highest bits. A number is groups of three
    bits, lowest first, each with a bit that says whether more follow. Numbers come as: so many zeros, so many values,
    then each value as its difference from the value before, zigzag. Raises ImageError.
    """
    if len(data) < 8:
        raise ImageError(f"the RVL depth has {len(data)} bytes")
    width, height = struct.unpack_from("<ii", data)
    if min(width, height) < 1 or width * height > 1e6 * max_megapixels:
        raise ImageError(f"the RVL depth is {width} x {height} pixels; max_megapixels is {max_megapixels:g}")
    numbers = _numbers(data[8 : 8 + (len(data) - 8) // 4 * 4])
    values = np.zeros(width * height, np.uint16)
    at = done = last = 0
    while done < len(values):
        zeros, some = (int(number) for number in numbers[at : at + 2]) if at + 2 <= len(numbers) else (-1, -1)
        done, at = done + zeros, at + 2
        if zeros < 0 or at + some > len(numbers) or done + some > len(values) or not zeros + some:
            raise ImageError(f"the RVL depth of {width} x {height} pixels is damaged or cut off")
        coded = numbers[at : at + some]
        run = last + np.cumsum((coded >> 1) ^ -(coded & 1))
        if some:
            last = int(run[-1])
        values[done : done + some] = run.astype(np.uint16)  # modulo 2^16, as the sender's arithmetic
        done, at = done + some, at + some
    return values.reshape(height, width)


def _numbers(stream: bytes) -> np.ndarray:
    """Every number of a stream (int64), the unused groups of the last word among them."""
    octets = np.frombuffer(stream, "<u4").astype(">u4").view(np.uint8)
    groups = np.stack([octets >> 4, octets & 15], axis=1).reshape(-1).astype(np.int64)
    last = np.flatnonzero(groups < 8)  # the group that ends a number
    if not len(last):
        return np.zeros(0, np.int64)
    groups = groups[: last[-1] + 1]
    first = np.concatenate([[0], last[:-1] + 1])
    place = np.arange(len(groups)) - np.repeat(first, last - first + 1)
    if place.max() > 10:
        raise ImageError("the RVL depth holds a number of more than 32 bits; it is damaged")
    return np.add.reduceat((groups & 7) << (3 * place), first)
