"""What a report tells of an answer that it has no charts of its own for: figures by what the answer's arrays mean."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from dino_perception.perception.frame import IGNORE, Answer


class Figure(NamedTuple):
    """What a chart over time shows: its title and unit."""

    title: str
    unit: str


def figures(head: str, answer: Answer, before: Answer | None) -> dict[Figure, float]:
    """The figures of one answer; `before` is what the head said of the same camera's frame before."""
    found: dict[Figure, float] = {}
    for output in answer.outputs:
        earlier = before[output.name] if before else None
        for (text, unit), value in BY_MEANING[output.meaning](answer[output.name], earlier).items():
            found[Figure(f"{head}, {output.name}: {text}", unit)] = value
    return found


Numbers = Mapping[tuple[str, str], float]


def _labels(mask: np.ndarray, before: np.ndarray | None) -> Numbers:
    return {("pixels with a class", "%"): 100 * float((mask != IGNORE).mean())}


def _levels(levels: np.ndarray, before: np.ndarray | None) -> Numbers:
    return {("mean", "%"): float(levels.mean() / 2.55)}


def _metres(metres: np.ndarray, before: np.ndarray | None) -> Numbers:
    known = metres[np.isfinite(metres)]
    return {("median", "m"): float(np.median(known)) if known.size else np.nan}


def _vector(vector: np.ndarray, before: np.ndarray | None) -> Numbers:
    if before is None or before.shape != vector.shape:
        return {}
    lengths = np.linalg.norm(vector) * np.linalg.norm(before)
    return {("cosine with the frame before", ""): float(vector @ before / max(lengths, 1e-12))}


def _boxes(boxes: np.ndarray, before: np.ndarray | None) -> Numbers:
    return {("boxes", ""): float(len(boxes))}


def _features(features: np.ndarray, before: np.ndarray | None) -> Numbers:
    return {}  # a picture shows them


BY_MEANING: Mapping[str, Callable[[np.ndarray, np.ndarray | None], Numbers]] = {
    "labels": _labels,
    "levels": _levels,
    "metres": _metres,
    "vector": _vector,
    "boxes": _boxes,
    "features": _features,
}
