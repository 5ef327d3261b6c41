"""What `dino-perception benchmark --node` found, as Markdown."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

Rows = Sequence[Mapping[str, Any]]


def page(part: str, runs: Rows) -> list[str]:
    """The lines of one part; `runs` holds what was measured for each variant."""
    lines: list[str] = []
    for run in runs:
        lines += ([""] if lines else []) + PAGES[part](run)
    return lines


def _cameras(run: Mapping[str, Any]) -> list[str]:
    lines = [
        f"{run['input']}. `{run['killed']}` is killed (its process ends without a word) and started again; {run['seconds']:.0f} s "
        "each, latency from stamp to the last of a frame's data:",
        "",
        "| camera | phase | sent Hz | published Hz | p50 ms | p95 ms |",
        "|---|---|---|---|---|---|",
    ]
    return lines + [
        f"| {row['camera']} | {row['phase']} | {row['sent_hz']:.1f} | {row['published_hz']:.1f} "
        f"| {_ms(row['p50_ms'])} | {_ms(row['p95_ms'])} |"
        for row in sorted(run["rows"], key=lambda row: list(run["rates"]).index(row["camera"]))
    ]


def _overload(run: Mapping[str, Any]) -> list[str]:
    memory = run["rss_mb"]
    return [
        f"{run['input']}:",
        "",
        "| | |",
        "|---|---|",
        f"| processing time: one over the rate when far too much is sent | {run['processing_ms']:.1f} ms |",
        f"| latency at two images a second, p50 / p95 | {_ms(run['light']['p50_ms'])} / {_ms(run['light']['p95_ms'])} ms |",
        f"| the camera sends | {run['sent_hz']:.1f} Hz |",
        f"| the node publishes | {run['published_hz']:.1f} Hz |",
        f"| latency p50 / p95 / p99 / largest | {_ms(run['p50_ms'])} / {_ms(run['p95_ms'])} / {_ms(run['p99_ms'])} "
        f"/ {_ms(run['max_ms'])} ms |",
        f"| one camera period and 1.3 processing times | {run['limit_ms']:.0f} ms |",
        f"| `max_age` | {run['max_age_ms']:.0f} ms |",
        f"| memory after each sixth of {run['seconds']:.0f} s | {', '.join(f'{mb:.0f}' for mb in memory)} MB |",
    ]


def _demand(run: Mapping[str, Any]) -> list[str]:
    rows = run["rows"]
    stages = list(dict.fromkeys(stage for row in rows for stage in row["stages_ms"]))
    cell = {True: lambda ms: f"{ms:.1f}", False: lambda ms: "not run"}
    lines = [
        f"{run['input']}:",
        "",
        "| median ms of | " + " | ".join(f"{row['watched']} watched" for row in rows) + " |",
        "|---" * (len(rows) + 1) + "|",
    ]
    lines += [
        f"| {stage} | "
        + " | ".join(cell[stage in row["stages_ms"]](row["stages_ms"].get(stage)) for row in rows)
        + " |"
        for stage in stages
    ]
    lines += [
        "| of a core, at two images a second | " + " | ".join(f"{row['cpu_share']:.0%}" for row in rows) + " |",
        "| s from the process's start to ready | " + " | ".join(f"{row['ready_s']:.1f}" for row in rows) + " |",
    ]
    return lines


def _overhead(run: Mapping[str, Any]) -> list[str]:
    graphs = run["graphs_ms"]
    return [
        f"{run['backbone']}, {run['engine']} {run['precision']}, input {'x'.join(map(str, run['input']))}, "
        f"`bgr8` images of {'x'.join(map(str, run['image']))}, {run['frames']} frames:",
        "",
        "| median of | ms |",
        "|---|---|",
        f"| bare backbone graph | {graphs['backbone']:.1f} |",
        *(f"| {name} graph | {ms:.1f} |" for name, ms in graphs.items() if name not in ("backbone", "all")),
        f"| all graphs, one after another | {graphs['all']:.1f} |",
        f"| node, stamp to mask, confidence, depth and points | {run['dense_ms']:.1f} |",
        f"| that / bare backbone | {run['dense_ratio']:.3f} |",
        f"| that above all graphs | {run['dense_above_ms']:.1f} |",
        f"| node, stamp to all, matches too | {run['node_ms']:.1f} |",
        f"| that / bare backbone | {run['ratio']:.3f} |",
        f"| that above all graphs | {run['above_ms']:.1f} |",
        "",
        "| of what is above all graphs | ms |",
        "|---|---|",
        *(f"| {name} | {ms:.1f} |" for name, ms in run["parts_ms"].items()),
    ]


def _ms(value: float | None) -> str:
    return "none" if value is None else f"{value:.0f}"


PAGES: dict[str, Callable[[Mapping[str, Any]], list[str]]] = {
    "cameras": _cameras,
    "overload": _overload,
    "demand": _demand,
    "overhead": _overhead,
}
