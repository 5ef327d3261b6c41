"""How a command is shown a class in a recording: which frame, and where in it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

    from dino_perception.models.heads import Label
    from dino_perception.training.datasets import Sample

BACKGROUND = "background"


class ShownError(ValueError):
    """Nothing is shown by this; the message says why."""


def shown_at(samples: Sequence[Sample], time: float, bag: Path) -> Sample:
    """The frame nearest to `time` seconds after the first. Raises ShownError beyond a second."""
    begin, length = samples[0].stamp_ns, (samples[-1].stamp_ns - samples[0].stamp_ns) * 1e-9
    found = min(samples, key=lambda s: abs((s.stamp_ns - begin) * 1e-9 - time))
    if abs((found.stamp_ns - begin) * 1e-9 - time) > 1:
        raise ShownError(f"{bag} has no frame within a second of {time:g} s; its pictures last {length:.1f} s")
    return found


def given(shown: np.ndarray) -> np.ndarray:
    """What a sample reads as its classes where they were given on the command line."""
    return shown


def where_set(stored: np.ndarray) -> np.ndarray:
    """(H, W) uint8: 1 where a mask of ids, or of colours, is not 0."""
    return (stored if stored.ndim == 2 else stored.max(axis=2)).astype(bool).astype("uint8")


def one_class(name: str) -> tuple[Label, Label]:
    """The labels of a mask that knows one class and all else."""
    from dino_perception.models.heads import Label
    from dino_perception.models.palette import CLASSES, VERMILION

    return Label(0, BACKGROUND, (127, 127, 127)), Label(1, name, CLASSES.get(name, VERMILION))
