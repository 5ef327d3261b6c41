"""What a head's file says about itself, checked field by field before anything is built from it: the file may lie."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from dino_perception.models.palette import CLASSES

NEAREST, FARTHEST = 1e-4, 1e5
"""Metres that a depth range may reach: from a tenth of a millimetre to the horizon from an aircraft."""
LARGEST_OPTION = 2048
"""Of a whole number among the options: widths and counts become memory before the tensors can contradict."""
MOST_TAPS = 64


def check_spec(data: Mapping[str, Any]) -> None:
    """Raises ValueError that names the field, its value and what is accepted. Fields that are not there are not its
    business, nor are those it does not know."""
    for name, (fits, accepted) in _FIELDS.items():
        if name in data and not fits(data[name]):
            raise ValueError(f"its '{name}' is {_short(data[name])}; accepted is {accepted}")


def _text(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= 200 and value.isprintable()


def _whole(value: Any, low: int, high: int) -> bool:
    return type(value) is int and low <= value <= high


def _number(value: Any, low: float = -1e12, high: float = 1e12) -> bool:
    return type(value) in (int, float) and low <= value <= high  # NaN is in no range


def _list(value: Any, item: Callable[[Any], bool], low: int, high: int) -> bool:
    return isinstance(value, (list, tuple)) and low <= len(value) <= high and all(map(item, value))


def _tap(value: Any) -> bool:
    if isinstance(value, Mapping):
        return (
            set(value) <= {"layer", "norm", "cls"}
            and _whole(value.get("layer"), 0, 1000)
            and all(type(value.get(name, True)) is bool for name in ("norm", "cls"))
        )
    return _whole(value, 0, 1000)


def _normalisation(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and set(value) == {"mean", "std"}
        and _list(value["mean"], _number, 3, 3)
        and _list(value["std"], lambda std: _number(std, 1e-6), 3, 3)
    )


def _label(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and set(value) == {"id", "name", "colour"}
        and _whole(value["id"], 0, 254)
        and _text(value["name"])
        and (
            _list(value["colour"], lambda c: _whole(c, 0, 255), 3, 3)
            or (value["colour"] is None and value["name"] in CLASSES)  # the palette's
        )
    )


def _depth_range(value: Any) -> bool:
    return value is None or (_list(value, lambda m: _number(m, NEAREST, FARTHEST), 2, 2) and value[0] < value[1])


def _options(value: Any) -> bool:
    def option(entry: Any) -> bool:
        return (
            entry is None
            or type(entry) is bool
            or _whole(entry, 0, LARGEST_OPTION)
            or (type(entry) is float and math.isfinite(entry) and abs(entry) <= 1e6)
            or _text(entry)
            or _list(entry, option, 0, MOST_TAPS)
        )

    return (
        isinstance(value, Mapping) and len(value) <= 64 and all(map(_text, value)) and all(map(option, value.values()))
    )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


_FIELDS: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    **{name: (_text, "a short text") for name in ("kind", "arch", "backbone", "backbone_hash")},
    "version": (lambda value: _whole(value, 0, 10**6), "a whole number"),
    "taps": (lambda value: _list(value, _tap, 1, MOST_TAPS), "a list of layers of the backbone"),
    "channels": (lambda value: _list(value, lambda n: _whole(n, 1, 65536), 1, MOST_TAPS), "a list of whole numbers"),
    "normalisation": (_normalisation, "a mean and a standard deviation of three numbers each"),
    "labels": (lambda value: _list(value, _label, 0, 255), "a list of labels, each an id, a name and a colour of three numbers 0 to 255"),
    "depth_range": (_depth_range, f"two distances in metres, the nearer first, from {NEAREST:g} to {FARTHEST:g}"),
    "worth": (
        lambda value: _list(value, lambda n: _whole(n, 0, 255), 0, 256) and len(value) in (0, 256),
        "256 whole numbers from 0 to 255, or none",
    ),
    "options": (_options, f"names with plain values, whole numbers up to {LARGEST_OPTION}"),
    **{name: (lambda value: isinstance(value, Mapping), "names with values") for name in ("training", "metrics")},
}  # fmt: skip
