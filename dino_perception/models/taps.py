"""What a head reads of a backbone: which layers, with or without the final norm, with or without the CLS token."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, order=True)
class Tap:
    """One layer as a head reads it: its map, after the backbone's final norm unless `norm` is off, and with `cls` the
    CLS token of the same layer, normed alike."""

    layer: int
    norm: bool = True
    cls: bool = False

    def __post_init__(self):
        if type(self.layer) is not int or type(self.norm) is not bool or type(self.cls) is not bool:
            raise TypeError(f"a tap is a layer, norm and cls, not ({self.layer!r}, {self.norm!r}, {self.cls!r})")

    def __str__(self) -> str:
        return f"{self.layer}{'' if self.norm else '-raw'}{'-cls' if self.cls else ''}"

    @property
    def plain(self) -> Any:
        """What a file says of it: the layer alone where nothing is unusual, which older files say, too."""
        return {"layer": self.layer, "norm": self.norm, "cls": self.cls} if not self.norm or self.cls else self.layer


def tap(value: Any, norm: bool = True, cls: bool = False) -> Tap:
    """A tap from one, from a layer (then with `norm` and `cls`), or from `Tap.plain`. Raises TypeError."""
    if isinstance(value, Tap):
        return value
    return Tap(**value) if isinstance(value, Mapping) else Tap(value, norm, cls)


def union(taps: Iterable[Tap]) -> tuple[Tap, ...]:
    """The least that gives everybody theirs: each map once, with its CLS token where anybody reads that."""
    taps = list(taps)
    maps = sorted({(t.layer, t.norm) for t in taps}, key=lambda m: (m[0], not m[1]))
    return tuple(Tap(*m, cls=Tap(*m, cls=True) in taps) for m in maps)


def outputs(taps: Sequence[Tap]) -> list[tuple[str, int, bool]]:
    """What a backbone's graph with these taps gives, and a head with them takes, in order: ("map" or "cls", layer,
    norm), first the maps, then the CLS tokens."""
    return [("map", t.layer, t.norm) for t in taps] + [("cls", t.layer, t.norm) for t in taps if t.cls]


def places(given: Sequence[Tap], wanted: Sequence[Tap]) -> list[int]:
    """Which outputs of a graph with the taps `given` a head that reads `wanted` takes, in order. Raises ValueError for
    one that is not there."""
    have = outputs(given)
    return [have.index(output) for output in outputs(wanted)]
