"""The compiled part of matching (src/matching), where it was built: by colcon as a library of the package's, by pip beside
this file. Without it the same is computed by arrays, several times slower."""

from __future__ import annotations

import ctypes
import functools
import logging
import os
import platform
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

VERSION = 5
"""The version of the library's interface."""

log = logging.getLogger(__name__)


class _Image(ctypes.Structure):
    _fields_ = [("pixels", ctypes.c_void_p), ("rows", ctypes.c_int), ("columns", ctypes.c_int)]


@functools.cache
def library() -> ctypes.CDLL | None:
    """The library, None where there is none of this version."""
    prefixes = [Path(prefix) for prefix in os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep) if prefix]
    if platform.machine() in ("x86_64", "AMD64") and not torch.backends.cpu.get_cpu_capability().startswith("AVX"):
        return None  # it is built for AVX2, which every x86 processor since 2013 has
    for path in [
        *sorted(Path(__file__).parent.glob("_matching*.so")),
        *(prefix / "lib" / "libdino_perception_matching.so" for prefix in prefixes),
    ]:
        if path.is_file():
            try:
                found = ctypes.CDLL(str(path))
                if found.dino_perception_matching_version() == VERSION:
                    return found
            except (OSError, AttributeError) as error:
                log.debug("%s cannot be loaded: %s", path, error)
    log.warning(
        "The compiled part of matching is not built, so that matching takes twice as long; colcon builds it, and pip does "
        "where there is a C++ compiler."
    )
    return None


def refine(
    made: ctypes.CDLL,
    reference: Sequence[np.ndarray],
    image: Sequence[np.ndarray],
    plan: Sequence[tuple[int, int, int]],
    xy: np.ndarray,
    seed: np.ndarray,
    shape: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`Refiner.refine` by the steps of a plan."""
    n = len(xy)
    xy, shape = np.ascontiguousarray(xy, np.float64), np.ascontiguousarray(shape, np.float32)
    position = np.array(seed, np.float64, order="C")
    steps = np.array(plan, np.int32)
    score, doubt = np.empty(n, np.float32), np.empty(n, np.float32)
    levels = [_levels(reference), _levels(image)]  # kept until the call is over
    made.dino_perception_refine(
        *(pointers for pointers, _ in levels), _at(steps), ctypes.c_int(len(steps)), ctypes.c_int(n), _at(xy), _at(shape),
        _at(position), _at(score), _at(doubt),
    )  # fmt: skip
    return position, score, doubt


def similarity(
    made: ctypes.CDLL, first: np.ndarray, at: np.ndarray, second: np.ndarray, to: np.ndarray, rows: int, columns: int
) -> np.ndarray:
    """Cosines (N,) float32, 0 to 1, of descriptors (rows * columns, D) float32 of two views at cells `at` and `to` (N, 2)."""
    at, to = np.ascontiguousarray(at, np.float64), np.ascontiguousarray(to, np.float64)
    cosine = np.empty(len(at), np.float32)
    made.dino_perception_similarity(
        _at(first),
        _at(at),
        _at(second),
        _at(to),
        *map(ctypes.c_int, (rows, columns, first.shape[1], len(at))),
        _at(cosine),
    )
    return cosine


def codes(made: ctypes.CDLL, parts: Sequence[tuple[np.ndarray, float]], step: float) -> np.ndarray:
    """Vectors (N, D) int8 from parts (N, D') float32, each without what all its rows share, at a length of its own, in steps of
    `step`."""
    out = np.empty((len(parts[0][0]), sum(part.shape[1] for part, _ in parts)), np.int8)
    column = 0
    for part, length in parts:
        n, size = part.shape
        mean = np.empty(size, np.float32)
        made.dino_perception_codes(
            _at(part), ctypes.c_int(n), ctypes.c_int(size), ctypes.c_float(length), ctypes.c_float(step),
            _at(mean), ctypes.c_void_p(out.ctypes.data + column), ctypes.c_int(out.shape[1]),
        )  # fmt: skip
        column += size
    return out


def histograms(made: ctypes.CDLL, cells: np.ndarray, offsets: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Histograms (rows * columns, 64) float32 from half cells (height, width, 4) float32."""
    offsets = np.ascontiguousarray(offsets, np.int32)
    out = np.empty((rows * columns, 64), np.float32)
    height, width = cells.shape[:2]
    made.dino_perception_histograms(
        _at(cells),
        ctypes.c_int(height),
        ctypes.c_int(width),
        _at(offsets),
        ctypes.c_int(rows),
        ctypes.c_int(columns),
        _at(out),
    )
    return out


def mutual(
    made: ctypes.CDLL, similar: np.ndarray, asked: np.ndarray, rows: int, columns: int
) -> tuple[np.ndarray, np.ndarray]:
    """The patches (M,) that have a mutual nearest neighbour, and where it is (M, 2), in patches. `similar` (A, rows *
    columns) int32 or float32 are the similarities of the patches `asked` (A,) int32."""
    n, patches = similar.shape
    most, nearest = np.empty(patches, similar.dtype), np.empty(n + patches, np.int32)
    chosen, to = np.empty(n, np.int32), np.empty((n, 2))
    call = made.dino_perception_mutual_int if similar.dtype == np.int32 else made.dino_perception_mutual_float
    count = call(
        _at(similar), _at(asked), *map(ctypes.c_int, (n, rows, columns)), _at(most), _at(nearest), _at(chosen), _at(to)
    )
    return chosen[:count], to[:count]


def field(
    made: ctypes.CDLL, at: np.ndarray, moved: np.ndarray, rows: int, columns: int, spacing: int
) -> tuple[np.ndarray, np.ndarray] | None:
    """Displacements (rows * columns, 2) and gradients (rows * columns, 2, 2) at nodes, of votes (M, 2) float32 in patches; None
    when they agree on none."""
    m = len(at)
    room, displacement, gradient = (
        np.empty(m * (m + 20), np.float32),
        np.empty((rows * columns, 2)),
        np.empty((rows * columns, 4)),
    )
    agreed = made.dino_perception_field(
        _at(at),
        _at(moved),
        *map(ctypes.c_int, (m, rows, columns, spacing)),
        _at(room),
        _at(displacement),
        _at(gradient),
    )
    return (displacement, gradient.reshape(-1, 2, 2)) if agreed else None


def _levels(pyramid: Sequence[np.ndarray]):
    arrays = [np.ascontiguousarray(level, np.float32) for level in pyramid]
    return (_Image * len(arrays))(*(_Image(a.ctypes.data, *a.shape) for a in arrays)), arrays


def _at(array: np.ndarray) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)
