"""Line and area charts as SVG text, for a page that needs nothing from anywhere."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from dino_perception.models.palette import BAD, as_hex

WIDTH, HEIGHT = 940, 200
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 8, 12, 24
POINTS = 900
"""A curve is drawn through at most this many points: the means of as many stretches of time."""


@dataclass
class Curve:
    """`values` over the chart's times; NaN is a gap, over which `bridged` curves go on. `low` and `high` draw a band
    around it."""

    name: str
    values: np.ndarray
    colour: str
    low: np.ndarray | None = None
    high: np.ndarray | None = None
    dashed: bool = False
    bridged: bool = False


@dataclass
class Chart:
    """Curves over `times` (seconds, rising), or with `stacked` areas upon each other. `marks` are times at which
    something happened, drawn as ticks along the top."""

    title: str
    unit: str
    times: np.ndarray
    curves: list[Curve] = field(default_factory=list)
    stacked: bool = False
    top: float | None = None
    marks: Sequence[float] = ()
    marks_name: str = ""

    def svg(self) -> str:
        """The chart with its legend as an HTML fragment."""
        edges = _edges(self.times)
        x = _scale(self.times[0], max(self.times[-1], self.times[0] + 1e-9), _LEFT, WIDTH - _RIGHT)
        drawn = [_Drawn(curve, edges) for curve in self.curves]
        if self.stacked:
            _stack(drawn)
        top = self.top or _ceiling(
            max([float(np.nanmax(d.upper)) for d in drawn if np.isfinite(d.upper).any()], default=1.0)
        )
        y = _scale(0.0, top, HEIGHT - _BOTTOM, _TOP)
        middles = x(edges.middles)
        parts = [_axes(self.times, x, y, top)]
        for d in drawn:
            if d.filled:
                parts.append(
                    f'<path d="{_area(middles, y(d.lower), y(d.upper))}" fill="{d.curve.colour}" '
                    f'fill-opacity="{0.85 if self.stacked else 0.22}"><title>{html.escape(d.curve.name)}</title></path>'
                )
            if not self.stacked:
                dash = ' stroke-dasharray="5 4"' if d.curve.dashed else ""
                parts.append(
                    f'<path d="{_line(middles, y(d.values), d.curve.bridged)}" fill="none" stroke="{d.curve.colour}" '
                    f'stroke-width="1.5"{dash}><title>{html.escape(d.curve.name)}</title></path>'
                )
        parts += [
            f'<path d="M{x(t):.1f} {_TOP - 8}v8" stroke="{as_hex(BAD)}" stroke-width="1.5"/>'
            for t in _thinned(self.marks)
        ]
        heading = f"{self.title}, {self.unit}" if self.unit else self.title
        return (
            f"<figure><figcaption>{html.escape(heading)}{self._legend()}</figcaption>"
            f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(self.title)}">'
            f"{''.join(parts)}</svg></figure>"
        )

    def _legend(self) -> str:
        entries = [(curve.name, curve.colour) for curve in self.curves]
        if len(self.marks):
            entries.append((f"{self.marks_name} ({len(self.marks)})", as_hex(BAD)))
        return "".join(
            f'<span><i style="background:{colour}"></i>{html.escape(name)}</span>' for name, colour in entries
        )


@dataclass
class _Edges:
    """Stretches of time: where each begins in the samples, and its middle in seconds."""

    starts: np.ndarray
    middles: np.ndarray


class _Drawn:
    """A curve as it is drawn: means a stretch of time, with its band or the area under it."""

    def __init__(self, curve: Curve, edges: _Edges):
        self.curve = curve
        self.values = _means(curve.values, edges)
        self.filled = curve.low is not None
        self.lower = _means(curve.low, edges) if curve.low is not None else np.zeros_like(self.values)
        self.upper = _means(curve.high, edges) if curve.high is not None else self.values


def _stack(drawn: list[_Drawn]) -> None:
    reached = np.zeros_like(drawn[0].values) if drawn else None
    for d in drawn:
        d.filled, d.lower = True, reached
        d.upper = reached = reached + np.nan_to_num(d.values)


def _edges(times: np.ndarray) -> _Edges:
    if len(times) <= POINTS:
        return _Edges(np.arange(len(times)), times)
    cuts = np.searchsorted(times, np.linspace(times[0], times[-1], POINTS + 1)[:-1])
    starts = np.unique(cuts)
    return _Edges(starts, np.add.reduceat(times, starts) / np.diff(np.append(starts, len(times))))


def _means(values: np.ndarray, edges: _Edges) -> np.ndarray:
    known = np.isfinite(values)
    counts = np.add.reduceat(known.astype(float), edges.starts)
    sums = np.add.reduceat(np.where(known, values, 0.0), edges.starts)
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def _scale(low: float, high: float, start: float, end: float):
    factor = (end - start) / (high - low) if high > low else 0.0
    return lambda value: start + (np.asarray(value, float) - low) * factor


def _line(xs: np.ndarray, ys: np.ndarray, bridged: bool) -> str:
    parts, pen = [], "M"
    for px, py in zip(xs, ys):
        if not math.isfinite(py):
            pen = pen if bridged else "M"
            continue
        parts.append(f"{pen}{px:.1f} {py:.1f}")
        pen = "L"
    return "".join(parts)


def _area(xs: np.ndarray, low: np.ndarray, high: np.ndarray) -> str:
    """Closed areas between two curves, one a stretch without gaps."""
    parts: list[str] = []
    known = np.isfinite(low) & np.isfinite(high)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], known.astype(int), [0]])))
    for start, end in zip(edges[::2], edges[1::2]):
        forth = "L".join(f"{px:.1f} {py:.1f}" for px, py in zip(xs[start:end], high[start:end]))
        back = "L".join(f"{px:.1f} {py:.1f}" for px, py in zip(xs[start:end][::-1], low[start:end][::-1]))
        parts.append(f"M{forth}L{back}Z")
    return "".join(parts)


def _axes(times: np.ndarray, x, y, top: float) -> str:
    parts = []
    for value in _ticks(0.0, top, 4):
        parts.append(
            f'<path d="M{_LEFT} {y(value):.1f}H{WIDTH - _RIGHT}" class="grid"/>'
            f'<text x="{_LEFT - 6}" y="{y(value) + 4:.1f}" text-anchor="end">{_number(value)}</text>'
        )
    for value in _ticks(float(times[0]), float(times[-1]), 8):
        parts.append(f'<text x="{x(value):.1f}" y="{HEIGHT - 6}" text-anchor="middle">{_number(value)} s</text>')
    return "".join(parts)


def _ticks(low: float, high: float, about: int) -> list[float]:
    if high <= low:
        return [low]
    raw = (high - low) / about
    step = next(
        m * 10 ** math.floor(math.log10(raw))
        for m in (1, 2, 5, 10)
        if m * 10 ** math.floor(math.log10(raw)) >= raw * 0.999
    )
    first = math.ceil(low / step - 1e-9)
    return [step * n for n in range(first, math.floor(high / step + 1e-9) + 1)]


def _ceiling(value: float) -> float:
    return (
        _ticks(0.0, value * 1.05, 4)[-1] + (_ticks(0.0, value * 1.05, 4)[1] if value > 0 else 1.0) if value > 0 else 1.0
    )


def _number(value: float) -> str:
    return f"{value:.10g}" if abs(value) < 1e5 else f"{value:.3g}"


def _thinned(marks: Sequence[float]) -> Sequence[float]:
    return marks if len(marks) <= 400 else [marks[i] for i in np.linspace(0, len(marks) - 1, 400).astype(int)]
