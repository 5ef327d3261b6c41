"""A picture larger than memory, seen through overlapping tiles and put together again row of tiles by row of tiles."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np


class TileError(ValueError):
    """Tiles that cannot cover a picture; the message says why."""


@dataclass(frozen=True)
class Tiling:
    """Tiles of `side` pixels over a picture of `height` x `width`, neighbours sharing `overlap` pixels. The last row and
    column may reach beyond the picture. `offset` moves the grid up and to the left.

    Raises TileError unless 0 <= overlap <= side / 2 and 0 <= offset <= side - overlap.
    """

    height: int
    width: int
    side: int = 512
    overlap: int = 128
    offset: int = 0

    def __post_init__(self):
        if not 0 <= self.overlap <= self.side // 2:
            raise TileError(
                f"tiles of {self.side} pixels overlap by {self.overlap}; accepted is 0 to {self.side // 2}, half a tile"
            )
        if not 0 <= self.offset <= self.step:
            raise TileError(f"the tiles begin {self.offset} pixels outside; accepted is 0 to {self.step}")

    @property
    def step(self) -> int:
        return self.side - self.overlap

    @property
    def tops(self) -> range:
        """The first row of each row of tiles."""
        return self._starts(self.height)

    @property
    def lefts(self) -> range:
        return self._starts(self.width)

    def band(self, row: int) -> tuple[int, int]:
        """The rows of the picture, first and beyond the last, that are complete with this row of tiles."""
        top, last = self.tops[row], row == len(self.tops) - 1
        return max(top, 0), self.height if last else top + self.step

    def _starts(self, length: int) -> range:
        steps = max(0, -(-(length + self.offset - self.side) // self.step))
        return range(-self.offset, steps * self.step - self.offset + 1, self.step)


def weight(side: int, overlap: int) -> np.ndarray:
    """(side, side) float32: 1 in the middle, and over the `overlap` at each edge half a Hann window, so that neighbours add
    up to 1."""
    ramp = np.ones(side)
    rise = np.sin(np.pi / 2 * (np.arange(overlap) + 0.5) / max(overlap, 1)) ** 2
    ramp[:overlap], ramp[side - overlap :] = rise, rise[::-1]
    return np.outer(ramp, ramp).astype(np.float32)


def bands(
    tiling: Tiling,
    read: Callable[[int, int], tuple[np.ndarray, np.ndarray]],
    tell: Callable[[Sequence[np.ndarray]], Sequence[np.ndarray]],
    *,
    first: int = 0,
    batch: int = 1,
) -> Iterator[tuple[int, np.ndarray]]:
    """(row of tiles, (h, width) float32) for each row from `first` on: what `tell` says of the picture, NaN where nothing
    is seen, for the rows of `Tiling.band`.

    `read` gives a tile by its top and left: (side, side, 3) uint8 and whether each pixel is known, (side, side) bool; tiles
    without a known pixel are left out. `tell` gives a (side, side) float32 for each of up to `batch` pictures. Where tiles
    overlap, each pixel is their mean under `weight`. A band needs its own row of tiles and the one before, so that memory
    holds two rows whatever the height, and work can begin anew at any row.
    """
    side, step, lefts = tiling.side, tiling.step, tiling.lefts
    weights = weight(side, tiling.overlap)
    total, norm = (np.zeros((side, lefts[-1] - lefts[0] + side), np.float32) for _ in range(2))
    for row in range(max(first - 1, 0), len(tiling.tops)):
        top = tiling.tops[row]
        for places in _batches(lefts, batch):
            seen = [(left, *read(top, left)) for left in places]
            seen = [each for each in seen if each[2].any()]
            for (left, _, known), said in zip(seen, tell([picture for _, picture, _ in seen]) if seen else ()):
                part = slice(left - lefts[0], left - lefts[0] + side)
                share = np.where(known & np.isfinite(said), weights, 0)
                total[:, part] += np.where(share > 0, said, 0) * share
                norm[:, part] += share
        low, high = tiling.band(row)
        if row >= first:
            rows, columns = slice(low - top, high - top), slice(-lefts[0], tiling.width - lefts[0])
            with np.errstate(invalid="ignore"):
                yield row, np.where(norm > 0, total / norm, np.nan).astype(np.float32)[rows, columns]
        for sums in (total, norm):
            sums[: side - step] = sums[step:]
            sums[side - step :] = 0


def _batches(places: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    for start in range(0, len(places), size):
        yield places[start : start + size]
