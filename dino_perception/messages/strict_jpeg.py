"""What libjpeg only warns of: a JPEG that is damaged within a scan decodes all the same, in the wrong colours and places.

OpenCV keeps the warnings to itself (they go to stderr). simplejpeg, where it is installed, brings the same libjpeg-turbo and
raises them; its pixels are OpenCV's, bit for bit.
"""

from __future__ import annotations

import functools
import re
from types import ModuleType

import numpy as np

HARMLESS = re.compile(r"unknown JFIF revision|Unknown Adobe")
LEFT_OVER = re.compile(r"(\d+) extraneous bytes before marker 0xd9")


@functools.cache
def decoder() -> ModuleType | None:
    """simplejpeg, None where it is not installed."""
    try:
        import simplejpeg
    except Exception:  # not installed, or built for another NumPy, which fails in more ways than ImportError
        return None
    return simplejpeg


def decode_strictly(data: np.ndarray) -> tuple[np.ndarray | None, str]:
    """((H, W, 3) uint8 BGR, "") of a whole JPEG; (None, libjpeg's warning) of a damaged one; (None, "") where simplejpeg
    is not there, or does not say. `data` is (N,) uint8."""
    made = decoder()
    if made is None:
        return None, ""
    octets = data.tobytes()
    try:
        if made.decode_jpeg_header(octets, strict=False)[2] not in ("Gray", "YCbCr", "RGB"):
            return None, ""  # four inks: OpenCV knows how to mix them
    except Exception:  # its tables have no place for what a damaged header may hold (KeyError)
        return None, ""
    try:
        return made.decode_jpeg(octets, "BGR", strict=True), ""
    except ValueError as error:
        said = str(error)
    if HARMLESS.search(said) or _padded(octets, said):
        return None, ""
    return None, said.replace("Corrupt JPEG data: ", "")


def _padded(octets: bytes, said: str) -> bool:
    """Whether all that is amiss are equal bytes before the end, which some cameras leave; damage leaves what was code."""
    left = LEFT_OVER.search(said)
    if not left:
        return False
    end = octets.rfind(b"\xff\xd9")
    return len(set(octets[end - int(left.group(1)) : end])) == 1
