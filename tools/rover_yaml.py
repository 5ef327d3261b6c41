"""Writes config/rover.yaml from the settings: `python tools/rover_yaml.py > config/rover.yaml`."""

from __future__ import annotations

import dataclasses
import json
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dino_perception.perception.settings import Settings  # noqa: E402

WIDTH = 118
HEAD = """\
Every parameter of the node with its default; delete what you do not change. "live": `ros2 param set` changes it
while the node runs; the others take effect when the node is configured. `ros2 param describe` tells the same.
The name and namespace of the node are yours: /** fits them all."""
GROUPS = {
    "points": "~/points",
    "robot": "What YOUR robot can do: ~/obstacles, ~/ground and ~/traversability go by it.",
    "obstacles": "~/obstacles and the ground below them",
    "traversability": "~/traversability, the map that any Nav2 reads",
    "domain": "Whether a frame looks like what a head was trained on.",
    "odometry": "~/odometry, by what is seen",
    "overlay": "The pictures for people; each is drawn only while somebody watches it.",
    "segmentation": "Heads: one group for each name in `heads`.",
}


def text() -> str:
    """The file."""
    lines = [f"# {line}" for line in HEAD.splitlines()]
    lines += ["/**:", "  ros__parameters:"]
    lines += _group(Settings(), 4)
    return "\n".join(lines) + "\n"


def _group(group: Any, indent: int) -> Iterator[str]:
    space = " " * indent
    for field in dataclasses.fields(group):
        value = getattr(group, field.name)
        nested = (
            value.items() if field.name == "head" else [(field.name, value)] if dataclasses.is_dataclass(value) else ()
        )
        for name, inner in nested:
            yield ""
            if name in GROUPS:
                yield f"{space}# {GROUPS[name]}"
            yield f"{space}{name}:"
            yield from _group(inner, indent + 2)
        if not nested:
            yield from textwrap.wrap(
                _comment(field), WIDTH, initial_indent=f"{space}# ", subsequent_indent=f"{space}# "
            )
            yield f"{space}{field.name}: {json.dumps(value)}"


def _comment(field: dataclasses.Field) -> str:
    low, high, choices, live = (field.metadata[key] for key in ("low", "high", "choices", "live"))
    notes = ["one of " + ", ".join(choices)] if choices and not isinstance(_default(field), list) else []
    notes += [f"{low:g} to {high:g}"] if low is not None else []
    notes += ["live"] if live else []
    return field.metadata["description"] + (f" [{'; '.join(notes)}]" if notes else "")


def _default(field: dataclasses.Field) -> Any:
    return field.default if field.default is not dataclasses.MISSING else field.default_factory()


if __name__ == "__main__":
    sys.stdout.write(text())
