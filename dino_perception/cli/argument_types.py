"""The kinds of values that arguments take: each says what is wrong with one before any work begins."""

from __future__ import annotations

import argparse
import math
import re

MOST = 2**31
LARGEST_SIDE = 2048
"""Of a network's input, in pixels (perception/settings.py): attention takes memory by the fourth power of a side."""
NAME = r"[A-Za-z_~/][A-Za-z0-9_~/]*"


def whole(text: str) -> int:
    """1, 2, ..."""
    if not text.isdecimal() or not 1 <= _int(text) < MOST:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number above 0")
    return int(text)


def count(text: str) -> int:
    """0, 1, 2, ..., where 0 has a meaning of its own."""
    if not text.isdecimal() or _int(text) >= MOST:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number, 0 or more")
    return int(text)


def threads(text: str) -> int:
    """CPU threads, as many as the setting of that name accepts."""
    if not text.isdecimal() or _int(text) > 1024:
        raise argparse.ArgumentTypeError(f"'{text}' is no number of threads; accepted is 0 (all cores) to 1024")
    return int(text)


def positive(text: str) -> float:
    value = _float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value


def at_least_0(text: str) -> float:
    value = _float(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number, 0 or more")
    return value


def seconds(text: str) -> float:
    """A time within any recording, also once it is nanoseconds in 64 bits."""
    value = _float(text)
    if not 0 <= value < 1e9:
        raise argparse.ArgumentTypeError(f"'{text}' is no time in seconds; accepted is 0 to a thousand million")
    return value


def share(text: str) -> float:
    """0 up to, but not with, 1."""
    value = _float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is no share; accepted is 0 to below 1")
    return value


def size(text: str) -> tuple[int, int]:
    """(height, width) of HxW, within what the settings of that name accept."""
    sides = text.lower().split("x")
    if len(sides) != 2 or not all(side.isdecimal() and 1 <= _int(side) <= LARGEST_SIDE for side in sides):
        raise argparse.ArgumentTypeError(
            f"'{text}' is no size; accepted is HEIGHTxWIDTH, such as 480x640, of at most {LARGEST_SIDE} each"
        )
    return int(sides[0]), int(sides[1])


def numbers(text: str) -> list[int]:
    """Whole numbers with commas between."""
    parts = text.split(",")
    if not all(part.isdecimal() and _int(part) < MOST for part in parts):
        raise argparse.ArgumentTypeError(f"'{text}' is no list of numbers, such as 5,20,100")
    return [int(part) for part in parts]


def device(text: str) -> str:
    if not re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?", text):
        raise argparse.ArgumentTypeError(f"'{text}' is no device; accepted are auto, cpu, cuda and cuda:N")
    return text


def remap(text: str) -> str:
    """FROM:=TO, two names of topics."""
    if not re.fullmatch(f"{NAME}:={NAME}", text):
        raise argparse.ArgumentTypeError(f"'{text}' is no FROM:=TO of two topic names, such as /image:=/camera/image")
    return text


def _int(text: str) -> int:
    return int(text) if len(text) < 20 else MOST


def _float(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
