"""The measured ways of looking at the ground, as plain data and as tables."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from dino_perception.measuring.ground.score import (
    Count,
    MapCount,
    band_names,
    count,
    count_maps,
    over_local_ground,
    over_odom,
    without_classes,
)
from dino_perception.measuring.ground.worlds import Drive, drives
from dino_perception.perception.depth_scale import DepthScale
from dino_perception.perception.frame import Percept
from dino_perception.perception.obstacles import obstacles
from dino_perception.perception.perceiver import Perceiver

TRUE, MODEL = "true depth and classes", "the model's"


def measure(perceiver: Perceiver, seeds: Sequence[int], cache: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """What is found on the drives of these seeds' worlds, with the truth and with what the perceiver says."""
    settings = perceiver.settings
    shape = (settings.output_height, settings.output_width)
    worlds = list(drives(seeds, cache, settings.robot, shape, say))
    said = _said(perceiver, worlds, say)
    given = {TRUE: lambda seen: seen.percept, MODEL: lambda seen: said[id(seen)]}
    ways: dict[str, dict[str, Count]] = {}
    for name, percepts in given.items():
        say(f"judging {name}")
        ways[f"over the local ground, {name}"] = count(worlds, over_local_ground(settings), percepts)
        ways[f"over the local ground, {name}, no classes"] = count(
            worlds, over_local_ground(settings), without_classes(percepts)
        )
        ways[f"fixed height over odom, {name}"] = count(worlds, over_odom(settings), percepts)
    maps = {name: count_maps(worlds, settings, percepts) for name, percepts in given.items()}
    return {
        "seeds": list(seeds),
        "frames": sum(len(world.frames) for world in worlds),
        "obstacles": {way: {kind: _numbers(c) for kind, c in found.items()} for way, found in ways.items()},
        "map": {
            name: {kind: {key: int(value) for key, value in vars(c).items()} for kind, c in found.items()}
            for name, found in maps.items()
        },
        "ms": _time(worlds, perceiver),
    }


def tables(numbers: dict[str, Any]) -> list[Table]:
    """One table of obstacles by distance, one of the map."""
    first = Table("world", "found by", *[f"{name}: found / right" for name in band_names()], title="Places in the way")
    kinds = next(iter(numbers["obstacles"].values()))
    for kind in kinds:
        for way, found in numbers["obstacles"].items():
            row = found[kind]
            shares = [f"{_percent(r)} / {_percent(p)}" for r, p in zip(row["recall"], row["precision"])]
            first.add_row(kind, way, *shares)
        closed = numbers["obstacles"][f"over the local ground, {TRUE}"][kind]["closed"]
        first.add_row(kind, "cells truly closed", *map(str, closed))
    second = Table(
        "world", "map from", "closed cells found", "unknown", "open cells closed", "unknown ",
        title="The map at the end of a drive",
    )  # fmt: skip
    for kind in kinds:
        for name, found in numbers["map"].items():
            if kind in found:
                c = MapCount(**found[kind])
                second.add_row(
                    kind, name, f"{_percent(_share(c.closed_found, c.closed))} of {c.closed}",
                    _percent(_share(c.closed_unknown, c.closed)),
                    f"{100 * _share(c.open_closed, c.open_):.1f}% of {c.open_}", _percent(_share(c.open_unknown, c.open_)),
                )  # fmt: skip
    return [first, second]


def _said(perceiver: Perceiver, worlds: Sequence[Drive], say: Callable[[str], None]) -> dict[int, Percept]:
    """What the model says of every frame, by the frame's identity, with the true pose."""
    import dataclasses

    scale, told = DepthScale(), {}
    for number, world in enumerate(worlds):
        say(f"looking at drive {number + 1} of {len(worlds)}")
        for seen in world.frames:
            (percept,) = perceiver.perceive([seen.percept.frame], [{"segmentation", "depth"}])
            percept = scale.scaled(percept, perceiver.settings)
            told[id(seen)] = dataclasses.replace(percept, pose=seen.percept.pose)
        scale.reset()
    return told


def _time(worlds: Sequence[Drive], perceiver: Perceiver) -> float:
    """Median milliseconds of one look at the ground."""
    frames = [seen.percept for world in worlds for seen in world.frames][:40]
    spent = []
    for percept in frames:
        begun = time.perf_counter()
        obstacles(percept, perceiver.settings)
        spent.append((time.perf_counter() - begun) * 1e3)
    return sorted(spent)[len(spent) // 2]


def _numbers(c: Count) -> dict[str, Any]:
    bands = range(len(c.closed))
    return {
        "recall": [_known(c.recall(i)) for i in bands],
        "precision": [_known(c.precision(i)) for i in bands],
        "closed": c.closed.tolist(),
        "told": c.told.tolist(),
        "recall_all": _known(c.recall()),
        "precision_all": _known(c.precision()),
    }


def _known(value: float) -> float | None:
    return round(value, 4) if math.isfinite(value) else None


def _share(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")


def _percent(share: float | None) -> str:
    return "-" if share is None or math.isnan(share) else f"{share:.0%}"
