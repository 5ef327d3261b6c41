"""What the arrays of a graph mean. It is said once, where they are made; whoever judges, draws, tells or compares them
reads it there, and nobody guesses from shapes."""

from __future__ import annotations

from dataclasses import dataclass

MEANINGS = {
    "features": "float32 vectors whose direction counts: along the channels of (B, C, h, w), or the last axis",
    "descriptors": "(B, N, D) float32 unit vectors, one a patch, row by row, to be matched from frame to frame",
    "vector": "(B, D) float32 of unit length, one for the whole frame",
    "boxes": "(B, N, 6) float32: left, top, right, bottom in pixels of the network's input, score 0 to 1 (0: no box), class",
    "labels": "(B, H, W) uint8 class ids on the output grid",
    "levels": "(B, H, W) uint8 on the output grid, 0 to 255 for 0 to 1",
    "metres": "(B, H, W) float32 on the output grid, NaN where unknown",
}
ON_GRID = frozenset({"labels", "levels", "metres"})
"""Meanings of arrays of the output grid's size, of which a percept keeps the image's part."""


@dataclass(frozen=True)
class Output:
    """One array of a graph: the `name` a percept knows it by, and one of `MEANINGS`. Raises ValueError for another."""

    name: str
    meaning: str

    def __post_init__(self):
        if self.meaning not in MEANINGS:
            raise ValueError(f"'{self.name}' means '{self.meaning}'; accepted are {', '.join(MEANINGS)}")
