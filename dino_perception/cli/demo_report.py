"""What the demo leaves behind besides pictures: a table on the terminal and an output bag."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

from dino_perception.bags.reader import BagReader
from dino_perception.bags.topic import Record, Topic, qos
from dino_perception.bags.writer import BagWriter
from dino_perception.cli.demo_run import Run, output_topics


def show(console: Any, report: Mapping[str, Any], status: Mapping[str, tuple[str, Mapping[str, str]]], problems: list[str]) -> None:
    """Prints the report as two tables and what is to be said about it."""
    from rich.table import Table

    values = status.get("dino_perception: perception", ("", {}))[1]
    topics = Table("topic", "messages", "Hz", title="published", title_justify="left", title_style="bold")
    for name in ("messages", "Hz"):
        topics.columns[("topic", "messages", "Hz").index(name)].justify = "right"
    for topic, found in report["topics"].items():
        topics.add_row(topic, str(found["count"]) if found["count"] else "[red]0[/red]", f"{found['rate_hz']:.1f}" if found["rate_hz"] else "")

    latency, shown = report["latency_ms"], _shown
    dropped = report["frames_in"] - report["frames_out"]
    measured = Table("measured", "", "", title_justify="left", show_header=False)
    measured.add_row("frames", f"{report['frames_in']} in, {report['frames_out']} out", f"{dropped} dropped for newer ones")
    measured.add_row("latency", " / ".join(shown(latency[p], ".0f") for p in ("p50", "p95", "p99")) + " ms",
                     "image published to last output published, p50 / p95 / p99")
    measured.add_row("stamps, sizes", f"{report['stamp_mismatches']} and {report['size_mismatches']} mismatches", "against the image they come from")
    measured.add_row("segmentation", f"mIoU {shown(report['miou'], '.3f')}", "against the true classes")
    measured.add_row("depth", f"AbsRel {shown(report['abs_rel'], '.3f')}", "up to 30 m, against the true depth")
    measured.add_row("matches", f"PCK@4 {shown(report['pck4'], '.3f')}", "share within 4 px of where the ground really moved")
    measured.add_row("engine", f"{values.get('engine', '?')} {values.get('precision', '')}", f"{values.get('backbone', '')} on {values.get('device', '?')}")
    console.print(topics)
    console.print(measured)
    if report["weights_trained"] is False:
        console.print("[yellow]The weights are untrained: what the masks and depths say means nothing yet.[/yellow]")
    for problem in problems:
        console.print(f"[red]{problem}[/red]")


def write_bag(path: Path, played: Path, run: Run) -> int:
    """The played bag with the node's outputs in it, each at the time it was published. Returns the number of messages."""
    with BagReader(played) as source:
        records = [*source.messages(), *_outputs(run, source)]
        writer = BagWriter(path, compression="zstd")
        writer.write(sorted(records, key=lambda record: record.time_ns))
        writer.close()
    return len(records)


def _outputs(run: Run, source: BagReader) -> list[Record]:
    """The node's messages, at the bag's time of when they were published: the image's stamp plus what passed since then."""
    behind = median([heard.sent_ns - stamp for stamp, heard in run.images.items()] or [0])
    records = []
    for name, heard in run.heard.items():
        latched = name.endswith("/label_info")
        topic = _topic(name, output_topics()[name], latched, source.types.typestore)
        for message in heard:
            # What was latched before the bag began belongs to its beginning.
            records.append(Record(topic, max(int(message.sent_ns - behind), source.start_ns), message.data))
    return records


def _topic(name: str, kind: str, latched: bool, store: Any) -> Topic:
    definition, _ = store.generate_msgdef(kind, ros_version=2)
    profile = qos(1, durability="transient_local") if latched else qos(10)
    return Topic(name, kind, definition, "ros2msg", store.hash_rihs01(kind), profile)


def _shown(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
