"""One page about a replay that opens in any browser, without a server and without a network."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dino_perception import results
from dino_perception.bags.report.charts import Chart, Curve
from dino_perception.bags.report.frame_log import ReportPicture, Row
from dino_perception.models.label_sets import Label
from dino_perception.models.palette import CURVES, as_hex

_COLOURS = [as_hex(colour) for colour in CURVES]
_GREY = "#8a8f98"
SHOWN = 6
"""Most rows of pictures above the charts; the others unfold."""


def write_report(
    folder: Path,
    title: str,
    summary: Mapping[str, Any],
    rows: Sequence[Row],
    pictures: Sequence[ReportPicture],
    labels: Sequence[Label],
) -> Path | None:
    """`folder`/index.html: the summary (name -> value; nested ones as tables), charts over time for each camera,
    pictures. Returns where the page is: there, or where `results.keep` found room for it, or None."""
    cameras = list(dict.fromkeys(row.camera for row in rows))
    body = [f"<h1>{html.escape(title)}</h1>", _cards(summary.get("figures", {})), _notes(summary.get("notes", []))]
    if rows:
        origin = min(row.time_ns for row in rows)
        for camera in cameras:
            mine = [row for row in rows if row.camera == camera]
            heading = f"<h2>Camera {html.escape(camera)}</h2>" if len(cameras) > 1 else ""
            body += [heading, _gallery([picture for picture in pictures if picture.camera == camera], origin)]
            body += [chart.svg() for chart in _charts(mine, origin, labels)]
        body.append(_cost(rows))
    for name, table in summary.get("tables", {}).items():
        body.append(_table(name, table))
    page = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style><main>{''.join(body)}</main></html>\n"
    )
    return results.keep(folder / "index.html", page, within=folder)


def live(times_s: np.ndarray, ms: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What a live node of this speed would have done with frames that arrive at `times_s` (N,) and take `ms` (N,): the
    latency of each in ms, NaN for a frame that a newer one replaced while it waited, and which were replaced (N,)
    bool."""
    latency = np.full(len(times_s), np.nan)
    dropped = np.zeros(len(times_s), bool)
    free, index = -np.inf, 0
    while index < len(times_s):
        begin = max(free, times_s[index])
        newest = max(index, int(np.searchsorted(times_s, begin, side="right")) - 1)
        dropped[index:newest] = True
        free = max(begin, times_s[newest]) + ms[newest] / 1e3
        latency[newest] = (free - times_s[newest]) * 1e3
        index = newest + 1
    return latency, dropped


def _charts(rows: Sequence[Row], origin: int, labels: Sequence[Label]) -> list[Chart]:
    times = np.maximum.accumulate(np.array([(row.time_ns - origin) / 1e9 for row in rows]))
    charts = [_timeline(rows, times)]
    if any(row.classes is not None for row in rows):
        shares = [
            Curve(
                label.name,
                100 * _column(rows, lambda r, i=label.id: r.classes and r.classes.get(i)),
                "#%02x%02x%02x" % label.colour,
            )
            for label in labels
        ]
        ignored = 100 * _column(rows, lambda r: r.ignored)
        if np.nanmax(ignored) > 0:
            shares.append(Curve("no class", ignored, _GREY))
        charts.append(Chart("What the ground is", "%", times, shares, stacked=True, top=100.0))
        charts.append(
            Chart(
                "Mean confidence of the classes",
                "%",
                times,
                [Curve("confidence", 100 * _column(rows, lambda r: r.confidence), _COLOURS[0])],
                top=100.0,
            )
        )
    if any(row.known is not None for row in rows):
        low, middle, high = (_column(rows, lambda r, i=i: r.depth and r.depth[i]) for i in range(3))
        charts.append(
            Chart(
                "Depth below the sky: median, and the span from the 5th to the 95th percentile",
                "m",
                times,
                [Curve("median", middle, _COLOURS[2], low, high)],
            )
        )
        charts.append(
            Chart(
                "Pixels below the sky with a depth",
                "%",
                times,
                [Curve("known", 100 * _column(rows, lambda r: r.known), _COLOURS[2])],
                top=100.0,
            )
        )
    if any(row.matches is not None for row in rows):
        charts.append(
            Chart(
                "Matches with the reference frame",
                "",
                times,
                [Curve("matches", _column(rows, lambda r: r.matches), _COLOURS[3])],
            )
        )
        charts.append(
            Chart(
                "Median motion of the matches",
                "px",
                times,
                [Curve("motion", _column(rows, lambda r: r.moved), _COLOURS[5])],
            )
        )
    for figure in dict.fromkeys(figure for row in rows for figure in row.figures):
        values = _column(rows, lambda r, figure=figure: r.figures.get(figure))
        charts.append(Chart(figure.title, figure.unit, times, [Curve(figure.title, values, _COLOURS[4])]))
    return [chart for chart in charts if chart.curves]


def _timeline(rows: Sequence[Row], times: np.ndarray) -> Chart:
    ms = _column(rows, lambda r: r.ms)
    latency, dropped = live(times, ms)
    curves = [
        Curve("perceiver", ms, _COLOURS[0]),
        Curve("latency of a live node as fast", latency, _COLOURS[1], bridged=True),
    ]
    if len(times) > 1:
        period = float(np.median(np.diff(times))) * 1e3
        curves.append(Curve("camera period", np.full(len(times), period), _GREY, dashed=True))
    return Chart("Time a frame", "ms", times, curves, marks=times[dropped], marks_name="frames that it would drop")


def _column(rows: Sequence[Row], value) -> np.ndarray:
    found = [value(row) for row in rows]
    return np.array([np.nan if v is None else float(v) for v in found])


def _cost(rows: Sequence[Row]) -> str:
    """Where the time of a frame goes, as one bar."""
    stages: dict[str, float] = {}
    for row in rows:
        for name, ms in row.stages.items():
            stages[name] = stages.get(name, 0.0) + ms / len(rows)
    total = sum(stages.values())
    if not total:
        return ""
    parts = "".join(
        f'<div style="width:{100 * ms / total:.2f}%;background:{_COLOURS[i % len(_COLOURS)]}" '
        f'title="{html.escape(name)} {ms:.1f} ms"></div>'
        for i, (name, ms) in enumerate(stages.items())
    )
    legend = "".join(
        f'<span><i style="background:{_COLOURS[i % len(_COLOURS)]}"></i>{html.escape(name)} {ms:.1f} ms</span>'
        for i, (name, ms) in enumerate(stages.items())
    )
    caption = f"Where a frame's {total:.1f} ms go{legend}"
    return f'<figure><figcaption>{caption}</figcaption><div class="bar">{parts}</div></figure>'


def _cards(figures: Mapping[str, Any]) -> str:
    cards = "".join(
        f"<div><b>{html.escape(str(value))}</b>{html.escape(name)}</div>" for name, value in figures.items()
    )
    return f'<section class="cards">{cards}</section>'


def _notes(notes: Sequence[str]) -> str:
    return f'<ul class="notes">{"".join(f"<li>{html.escape(note)}</li>" for note in notes)}</ul>' if notes else ""


def _gallery(pictures: Sequence[ReportPicture], origin: int) -> str:
    if not pictures:
        return ""
    first = set(range(0, len(pictures), math.ceil(len(pictures) / SHOWN)))
    shown = "".join(_row(pictures[i], origin) for i in sorted(first))
    others = "".join(_row(picture, origin) for i, picture in enumerate(pictures) if i not in first)
    if others:
        others = f"<details><summary>The other {len(pictures) - len(first)} pictures</summary>{others}</details>"
    return f"<section class='gallery'>{shown}{others}</section>"


def _row(picture: ReportPicture, origin: int) -> str:
    tiles = "".join(
        f'<img loading="lazy" alt="{html.escape(name)}" title="{html.escape(name)}" src="data:image/jpeg;base64,{data}">'
        for name, data in picture.tiles.items()
    )
    return f'<div class="row"><time>{(picture.time_ns - origin) / 1e9:.1f} s</time>{tiles}</div>'


def _table(name: str, table: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<tr><td>{html.escape(str(key))}</td><td>{html.escape(str(value))}</td></tr>" for key, value in table.items()
    )
    return f"<details><summary>{html.escape(name)}</summary><table>{rows}</table></details>"


_STYLE = """
:root{color-scheme:light dark;--ink:#1c2026;--soft:#667;--line:#d8dce2;--card:#f4f5f7;--page:#fff}
@media (prefers-color-scheme:dark){:root{--ink:#e6e8eb;--soft:#9aa3ad;--line:#333a44;--card:#1d2229;--page:#14171b}}
body{margin:0;background:var(--page);color:var(--ink);font:15px/1.5 system-ui,sans-serif}
main{max-width:980px;margin:0 auto;padding:24px 16px}
h1{font-size:24px;margin:0 0 12px;overflow-wrap:anywhere}h2{font-size:19px;margin:32px 0 8px}
.cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(140px,1fr));gap:8px}
.cards div{background:var(--card);border-radius:6px;padding:8px 12px;color:var(--soft);font-size:13px}
.cards b{display:block;color:var(--ink);font-size:18px;overflow-wrap:anywhere}
.notes{background:#fff3e0;color:#5a3200;border-left:4px solid #d55e00;margin:16px 0;padding:8px 16px 8px 32px}
@media (prefers-color-scheme:dark){.notes{background:#3a2a17;color:#ffd9a8}}
figure{margin:20px 0}figcaption{font-weight:600;margin-bottom:4px}
figcaption span{font-weight:400;font-size:13px;color:var(--soft);margin-left:14px;white-space:nowrap}
figcaption i{display:inline-block;width:10px;height:10px;border-radius:2px;margin-right:5px}
svg{width:100%;height:auto;display:block}svg text{font:11px system-ui,sans-serif;fill:var(--soft)}
svg .grid{stroke:var(--line);stroke-width:1}
.bar{display:flex;height:18px;border-radius:4px;overflow:hidden}
.gallery .row{display:flex;gap:4px;align-items:center;margin:4px 0}
.gallery time{flex:0 0 56px;font-size:12px;color:var(--soft);text-align:right;padding-right:6px}
.gallery img{min-width:0;flex:1 1 0;border-radius:3px}
details{margin:12px 0}summary{cursor:pointer;font-weight:600}
table{border-collapse:collapse;font-size:13px;margin-top:6px}
td{border-top:1px solid var(--line);padding:3px 12px 3px 0;overflow-wrap:anywhere}
"""
