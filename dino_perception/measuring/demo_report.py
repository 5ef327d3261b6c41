"""What the demo leaves behind besides pictures: a table on the terminal and an output bag."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

from dino_perception.bags.storage.reader import BagReader
from dino_perception.bags.storage.topic import Record, Topic, qos
from dino_perception.bags.storage.writer import BagWriter
from dino_perception.measuring.demo_run import Run, output_topics
from dino_perception.messages.topics import known


def show(
    console: Any, report: Mapping[str, Any], status: Mapping[str, tuple[str, Mapping[str, str]]], problems: list[str]
) -> None:
    """Prints the report as two tables and what is to be said about it."""
    from rich import box
    from rich.table import Table

    topics = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    topics.add_column("published")
    topics.add_column("messages", justify="right")
    topics.add_column("Hz", justify="right")
    for topic, found in report["topics"].items():
        count = str(found["count"]) if found["count"] else "[red]none[/red]"
        topics.add_row(topic, count, f"{found['rate_hz']:.1f}" if found["rate_hz"] else "")
    console.print(topics)

    measured = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("measured", "", ""):
        measured.add_column(heading)
    for row in _measures(report, status.get("dino_perception: perception", ("", {}))[1]):
        measured.add_row(*row)
    console.print(measured)

    if report["weights_trained"] is False:
        console.print("[yellow]The weights are untrained: what the masks and depths say means nothing yet.[/yellow]")
    for note in report["notes"]:
        console.print(note, soft_wrap=True)
    for problem in problems:
        console.print(f"[red]{problem}[/red]")
    for name, (sentence, _) in status.items() if problems else ():
        console.print(f"the node said last, {name}: {sentence}")


def _measures(report: Mapping[str, Any], values: Mapping[str, str]) -> list[tuple[str, str, str]]:
    latency = " / ".join(_shown(report["latency_ms"][p], ".0f") for p in ("p50", "p95", "p99"))
    dropped = report["frames_in"] - report["frames_out"]
    return [
        ("frames", f"{report['frames_in']} in, {report['frames_out']} out", f"{dropped} dropped for newer ones"),
        ("latency", f"{latency} ms", "p50 / p95 / p99, image out to last output out"),
        (
            "mismatches",
            f"{report['stamp_mismatches']} stamps, {report['size_mismatches']} sizes",
            "among the outputs of one image",
        ),
        ("segmentation", f"mIoU {_shown(report['miou'], '.3f')}", "against the true classes"),
        ("depth", f"AbsRel {_shown(report['abs_rel'], '.3f')}", "against the true depth, up to 30 m"),
        ("matches", f"PCK@4 {_shown(report['pck4'], '.3f')}", "within 4 px of the true motion"),
        (
            "engine",
            f"{values.get('engine', '?')} {values.get('precision', '')}",
            f"{values.get('backbone', '')} on {values.get('device', '?')}",
        ),
    ]


def write_bag(path: Path, played: Path, run: Run) -> int:
    """The played bag with the node's outputs in it, each when it was published. Returns how many messages there are."""
    with BagReader(played) as source:
        records = [*source.messages(), *_outputs(run, source)]
        writer = BagWriter(path, compression="zstd")
        writer.write(sorted(records, key=lambda record: record.time_ns))
        writer.close()
    return len(records)


def _outputs(run: Run, source: BagReader) -> list[Record]:
    """The node's messages, at the bag's time of their publication: the image's stamp plus what passed since."""
    behind = median([sent - stamp for stamp, sent in run.sent_ns.items()] or [0])
    records = []
    for name, heard in run.heard.items():
        latched = bool((about := known(name)) and about.latched)
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
