"""Messages and requests of any type, with nonsense in every field."""

from __future__ import annotations

import importlib

NASTY = (
    "",
    "\x1b[31m red",
    "../../etc",
    "\u202e",
    "a" * 5000,
    "nonsense/*",
    "~/{x}",
    "use_sim_time",
    "points.max_range",
)
NUMBERS = (0, 1, 10, 99, 127, 200, 255)


def fill(message, random_, depth=0):
    """Put nonsense into every field of a message, whatever it is."""
    for name, kind in message.get_fields_and_field_types().items():
        if kind.endswith("]"):  # of fixed length, as a calibration's K
            inner, _, length = kind[:-1].partition("[")
            setattr(message, name, [value(inner, random_, depth) for _ in range(int(length))])
            continue
        inner, many = (kind[9:-1], True) if kind.startswith("sequence<") else (kind, False)
        values = [value(inner, random_, depth) for _ in range(random_.choice((0, 1, 7)) if many else 1)]
        try:
            setattr(message, name, values if many else values[0])
        except (AssertionError, TypeError, UnicodeEncodeError):  # what rclpy does not send
            pass
    return message


def value(kind, random_, depth):
    if "/" in kind:
        package, name = kind.split("/")
        return fill(getattr(importlib.import_module(f"{package}.msg"), name)(), random_, depth + 1)
    if kind.startswith("string"):
        return random_.choice(NASTY)
    if kind == "boolean":
        return random_.random() < 0.5
    if kind in ("float", "double"):
        return random_.choice((float("nan"), float("inf"), -1e300, 0.0))
    return random_.choice(NUMBERS)
