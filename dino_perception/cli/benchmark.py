"""`dino-perception benchmark`: what each stage costs, against the bare backbone, single tasks and the machine."""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dino_perception import results
from dino_perception.cli import configuration
from dino_perception.cli.argument_types import positive, whole

if TYPE_CHECKING:
    from rich.console import Console

HELP = "time every stage, the bare backbone and the machine's matrix rate, interleaved; or the running node"

IMAGE = (640, 480)
"""Width and height of the images that the node is sent."""


class BenchmarkError(ValueError):
    """The benchmark cannot run as asked; the message says why."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    configuration.add_arguments(parser)
    what = parser.add_argument_group("what is measured")
    what.add_argument("--backbone", default="", metavar="ID,ID", help="backbones (default: the configuration's)")
    what.add_argument(
        "--engine", default="", metavar="A,B", help="engines, compared in one run (default: the configuration's)"
    )
    what.add_argument(
        "--precision", default="", help="of every engine but torch, which stays float32 (default: the configuration's)"
    )
    what.add_argument("--size", default="", metavar="HxW,..", help="input sizes (default: the configuration's)")
    what.add_argument("--batch", default="1", metavar="N,N", help="frames at once, each of its own camera (default: 1)")
    what.add_argument("--heads", default="", metavar="A,B", help="heads (default: the configuration's)")
    what.add_argument(
        "--released",
        default="",
        metavar="A+B,C",
        help="released heads by name (models --heads), compared in one run; + joins those that run together. Those that "
        "are not here get random weights",
    )
    what.add_argument("--bag", type=Path, help="where the frames come from (default: the sample drive)")
    what.add_argument(
        "--rounds", type=whole, default=20, metavar="N", help="times that everything is measured in turn (default: 20)"
    )
    what.add_argument(
        "--no-memory", action="store_true", help="leave out the memory, for which each engine is started once more"
    )
    live = parser.add_argument_group("the running node, over ROS 2")
    live.add_argument(
        "--node",
        default="",
        metavar="A,B",
        help="measure the node instead: any of cameras, overload, demand, overhead, or all",
    )
    live.add_argument(
        "--seconds", type=positive, default=30.0, metavar="S", help="length of a measurement (default: 30)"
    )
    parser.add_argument(
        "--cache", type=results.folder, metavar="FOLDER", help="folder of engines (default: as the node has it)"
    )
    parser.add_argument("--json", type=results.file, metavar="FILE", help="write the numbers")
    parser.add_argument("--page", type=results.page, metavar="FILE", help="put the tables into this Markdown page")


def run(args: argparse.Namespace) -> int:
    from dino_perception.cli.progress import wide_console
    from dino_perception.measuring import core_benchmark as benchmark_run
    from dino_perception.measuring.markdown_tables import check, fill

    if args.node:
        return _node(args)
    batches = [int(size) if size.isdigit() else 0 for size in args.batch.split(",")]
    if min(batches) < 1 or args.rounds < 3:
        raise BenchmarkError(f"--batch {args.batch} --rounds {args.rounds}: at least 1 frame and 3 rounds are needed")
    console = wide_console()
    block = "benchmark gpu" if benchmark_run.machine()["gpu"] else "benchmark cpu"
    block = "released heads" if args.released else block
    check(args.page, block)
    variants = _variants(args)
    frames = benchmark_run.frames(args.bag, 12)
    with console.status("loading") as status:
        measured = benchmark_run.measure(
            variants,
            frames,
            batches=batches,
            rounds=args.rounds,
            cache=args.cache,
            memory=not args.no_memory,
            say=lambda line: status.update(line),
        )
    results.keep_json(args.json, measured)
    for row in measured["runs"]:
        _show(console, row)
    _summary(console, measured)
    if args.page:
        fill(args.page, block, _released_heads(measured) if args.released else _markdown(measured))
    return 0


def _node(args: argparse.Namespace) -> int:
    import cv2
    import numpy as np
    from rich.markdown import Markdown

    try:
        from dino_perception.measuring import node_benchmark as benchmark_node
    except ModuleNotFoundError as error:
        raise BenchmarkError(f"--node needs ROS 2, of which {error.name} is not installed here") from None
    from dino_perception.cli.progress import wide_console
    from dino_perception.measuring import core_benchmark as benchmark_run
    from dino_perception.measuring.markdown_tables import check, fill
    from dino_perception.measuring.node_page import PAGES, page

    parts = list(PAGES) if args.node == "all" else args.node.split(",")
    if unknown := [part for part in parts if part not in PAGES]:
        raise BenchmarkError(f"--node {','.join(unknown)} is not known; accepted are all, {', '.join(PAGES)}")
    check(args.page, *(f"node {part}" for part in parts))
    variants = _variants(args)
    if args.cache:
        variants = [settings.changed({"engine_cache": str(args.cache)}) for settings in variants]
    pictures = np.stack(
        [cv2.resize(picture, IMAGE, interpolation=cv2.INTER_AREA) for picture in benchmark_run.frames(args.bag, 12)]
    )
    console = wide_console()
    machine = benchmark_run.machine()
    measured: dict[str, Any] = {"machine": machine}
    with console.status("starting") as status:
        say = status.update
        for part in parts:
            measure = getattr(benchmark_node, part)
            amount = args.rounds if part == "overhead" else args.seconds
            measured[part] = [measure(settings, pictures, amount, say) for settings in variants]
    results.keep_json(args.json, measured)
    for part in parts:
        lines = [*page(part, measured[part]), "", f"{_about(machine)}."]
        console.print(Markdown("\n".join(lines)))
        if args.page:
            fill(args.page, f"node {part}", lines)
    return 0


def _variants(args: argparse.Namespace) -> list:
    """One `Settings` for each input size, backbone and engine. Raises SettingError."""
    base = configuration.settings_of(args)
    variants = []
    for size in _sizes(args.size) or [(base.input_height, base.input_width)]:
        for backbone in args.backbone.split(",") if args.backbone else [base.backbone]:
            for engine, heads in itertools.product(
                args.engine.split(",") if args.engine else [base.engine], _heads(args, backbone)
            ):
                mine: dict[str, Any] = {
                    "input_height": size[0],
                    "input_width": size[1],
                    "backbone": backbone,
                    "engine": engine,
                    "allow_untrained": True,  # random weights take as long as trained ones
                }
                mine.update(heads)
                if args.precision and engine != "torch":
                    mine["precision"] = args.precision
                variants.append(configuration.settings_of(args, **mine))
    return variants


def _heads(args: argparse.Namespace, backbone: str) -> list[dict[str, Any]]:
    """What the command line says of heads, as settings: one entry for each set that is compared. Raises BenchmarkError."""
    from dino_perception.models import head_catalog

    if not args.released:
        return [{"heads": args.heads.split(",")} if args.heads else {}]
    found = []
    for text in args.released.split(","):
        entries = [head_catalog.find(backbone, name) for name in text.split("+")]
        kinds = [entry.task for entry in entries if entry]
        if None in entries or len(set(kinds)) < len(kinds):
            known = ", ".join(name for task in ("segmentation", "depth") for name in head_catalog.names(backbone, task))
            raise BenchmarkError(
                f"--released {text}: accepted are released heads of {backbone}, one of a kind: {known or 'there are none'}"
            )
        found.append({"heads": kinds, **{f"{entry.task}.weights": entry.name for entry in entries}})
    return found


def _sizes(text: str) -> list[tuple[int, int]]:
    """Heights and widths of "HxW,HxW"; none of an empty text. Raises BenchmarkError."""
    sizes = []
    for part in filter(None, text.lower().split(",")):
        height, x, width = part.partition("x")
        if not (height.isdigit() and x and width.isdigit()):
            raise BenchmarkError(f"--size {part} is no HxW such as 480x640")
        sizes.append((int(height), int(width)))
    return sizes


def _show(console: Console, row: dict[str, Any]) -> None:
    from rich.table import Table

    table = Table(
        "stage",
        "median ms",
        "p95",
        "p99",
        title=f"{row['backbone']}{_named(row)} {row['input'][0]}x{row['input'][1]}, batch {row['batch']}: "
        f"{row['engine']} {row['precision']}",
    )
    for stage, ms in row["stages_ms"].items():
        table.add_row(stage, *(f"{ms[name]:.2f}" for name in ("median", "p95", "p99")))
    console.print(table)
    lines = [
        f"pipeline / bare backbone: {row['pipeline_ms']:.1f} / {row['bare_backbone_ms']:.1f} ms = "
        f"{row['overhead_ratio']:.3f}"
    ]
    if row["one_pass_speedup"]:
        lines.append(f"single-task pipelines / one pass for all: {row['one_pass_speedup']:.2f}")
    lines.append(
        f"backbone: {row['gflops']:.0f} GFLOP/s of {row['peak_gflops']:.0f} that matrix products reach here "
        f"({row['gflops'] / row['peak_gflops']:.0%})"
    )
    if row["rss_mb"]:
        lines.append(f"peak memory of a process with a warm cache: {row['rss_mb']:.0f} MB")
    console.print("\n".join(lines), soft_wrap=True)


def _named(row: dict[str, Any]) -> str:
    """Which files its heads are of, where they are not the bundled ones."""
    names = [name for name in row["heads"].values() if name]
    return f" with {' + '.join(names)}" if names else ""


def _summary(console: Console, measured: dict[str, Any]) -> None:
    for line in _ratios(measured):
        console.print(line, soft_wrap=True)
    console.print(_about(measured["machine"]), soft_wrap=True)
    if _was_busy(measured["machine"]):
        console.print("other work was running: these numbers are too high", style="yellow")


def _markdown(measured: dict[str, Any]) -> list[str]:
    """The runs as one table, the ratios, the stages of the first run, and the machine."""
    lines = [
        "| backbone | input | batch | engine | bare backbone ms | pipeline ms | ratio | one pass for all "
        "| GFLOP/s | of the matrix rate | MB |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in measured["runs"]:
        speedup, rss = row["one_pass_speedup"], row["rss_mb"]
        lines.append(
            f"| {row['backbone']} | {'x'.join(map(str, row['input']))} | {row['batch']} "
            f"| {row['engine']} {row['precision']} "
            f"| {row['bare_backbone_ms']:.1f} | {row['pipeline_ms']:.1f} | {row['overhead_ratio']:.3f} "
            f"| {'' if speedup is None else f'{speedup:.2f} x cheaper'} | {row['gflops']:.0f} "
            f"| {row['gflops'] / row['peak_gflops']:.0%} of {row['peak_gflops']:.0f} "
            f"| {'' if rss is None else f'{rss:.0f}'} |"
        )
    first = measured["runs"][0]
    lines += [
        "",
        *(f"- {line}" for line in _ratios(measured)),
        "",
        f"Stages of {first['backbone']} on {first['engine']} {first['precision']}:",
        "",
        "| stage | median ms | p95 | p99 |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {stage} | {ms['median']:.2f} | {ms['p95']:.2f} | {ms['p99']:.2f} |"
        for stage, ms in first["stages_ms"].items()
    ]
    busy = " Other work was running: these numbers are too high." if _was_busy(measured["machine"]) else ""
    return [*lines, "", f"{_about(measured['machine'])}.{busy}"]


def _released_heads(measured: dict[str, Any]) -> list[str]:
    """A row a set of heads: what each head costs, and what that is of the bare backbone."""
    lines = [
        "| heads | bare backbone ms | segmentation ms | depth ms | all, image to messages, ms |",
        "|---|---:|---:|---:|---:|",
    ]
    for row in measured["runs"]:
        bare = row["bare_backbone_ms"]
        cells = [f"{bare:.0f} ({row['precision']})"]
        for kind in ("segmentation", "depth"):
            ms = row["stages_ms"].get(kind, {}).get("median")
            cells.append("-" if ms is None else f"{ms:.0f} = {ms / bare:.2f} ({row['head_precisions'][kind]})")
        cells.append(f"{row['pipeline_ms']:.0f} = {row['overhead_ratio']:.2f}")
        lines.append(f"| {' + '.join(row['heads'].values())} | {' | '.join(cells)} |")
    first, weights = measured["runs"][0], "released weights"
    if not all(row["trained"] for row in measured["runs"]):
        weights = "random weights where the released ones are not here"
    height, width = first["input"]
    busy = " Other work was running: these numbers are too high." if _was_busy(measured["machine"]) else ""
    lines += ["", f"{first['backbone']} at {height}x{width} on {first['engine']}, {weights}; after = the ratio to the bare "
              f"backbone of its run. {_about(measured['machine'])}.{busy}"]  # fmt: skip
    return lines


def _ratios(measured: dict[str, Any]) -> list[str]:
    return [
        f"{name}: {ratios['backbone']:.2f} times as fast on the backbone, {ratios['pipeline']:.2f} in the pipeline"
        for name, ratios in measured["ratios"].items()
    ]


def _about(machine: dict[str, Any]) -> str:
    from dino_perception.measuring.core_benchmark import about

    return about(machine)


def _was_busy(machine: dict[str, Any]) -> bool:
    return machine["load"] > 0.5 * machine["cores"]
