"""`dino-perception compile`: build the engines ahead of time, and show how far each is from float32 torch."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dino_perception import results
from dino_perception.cli import configuration
from dino_perception.cli.argument_types import at_least_0

if TYPE_CHECKING:
    from rich.console import Console

    from dino_perception.perception.perceiver import Perceiver
    from dino_perception.perception.settings import Settings

HELP = "build the engines of a configuration ahead of time and check them"

PICTURES = (".jpg", ".jpeg", ".png")


class CompileError(ValueError):
    """The command cannot do what it was asked; the message says why."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    configuration.add_arguments(parser)
    parser.add_argument(
        "--backbone",
        default="",
        metavar="ID,ID",
        help="several backbones, one after the other (default: the configuration's)",
    )
    parser.add_argument(
        "--batch",
        metavar="N,N",
        default="",
        help="batch sizes (default: those the node uses: 1, and on a GPU also the number of cameras)",
    )
    parser.add_argument(
        "--frames",
        nargs="+",
        type=Path,
        default=[],
        metavar="PATH",
        help="pictures, or folders of them, to check on (default: the bundled ones)",
    )
    parser.add_argument(
        "--cache",
        type=results.folder,
        metavar="FOLDER",
        help="folder of engines (default: engine_cache, else ~/.cache/dino_perception)",
    )
    parser.add_argument(
        "--workspace",
        type=at_least_0,
        default=0.0,
        metavar="MB",
        help="most scratch memory of a TensorRT kernel (default: no limit)",
    )
    parser.add_argument(
        "--optimization-level", type=int, choices=range(6), help="TensorRT: how long it may search (default: 3)"
    )
    parser.add_argument(
        "--force", action="store_true", help="build what the cache has, and try again what once ended its process"
    )
    parser.add_argument(
        "--search",
        action="store_true",
        help="cuda: time many kernels and keep the fastest (minutes a graph; builds anew, as --force does)",
    )
    parser.add_argument(
        "--no-chain", action="store_true", help="leave out the comparison of the whole chain, frame in to percept out"
    )
    parser.add_argument("--list", action="store_true", help="show what the cache holds and build nothing")
    parser.add_argument("--clean", action="store_true", help="empty the cache and build nothing")
    parser.add_argument("--json", type=results.file, metavar="FILE", help="write the numbers")
    parser.add_argument(
        "--page", type=results.page, metavar="FILE", help="put the table of all backbones into this Markdown page"
    )


def run(args: argparse.Namespace) -> int:
    """Returns 1 when an engine runs only by the parity override."""
    from dino_perception import engines
    from dino_perception.cli.progress import wide_console
    from dino_perception.engines.tensorrt import Options
    from dino_perception.measuring.markdown_tables import check, fill

    console = wide_console()
    # Engines of random weights have the times and, checked against the same weights, the parity of real ones.
    settings = configuration.settings_of(args, allow_untrained=True)
    folder = args.cache or Path(settings.engine_cache or engines.default_folder()).expanduser()
    if args.clean or args.list:
        result = _clean(console, folder) if args.clean else _list(console, folder)
        overridden = False
    else:
        check(args.page, "parity")
        engines.ENGINES["cuda"].search = args.search
        engines.ENGINES["tensorrt"].options = Options(int(args.workspace * 2**20), args.optimization_level)
        ids = args.backbone.split(",") if args.backbone else [settings.backbone]
        result = [
            _build(console, args, configuration.settings_of(args, backbone=id_, allow_untrained=True), folder)
            for id_ in ids
        ]
        overridden = any(graph["overridden"] for backbone in result for graph in backbone["graphs"])
        if len(result) > 1:
            console.print("\n".join(_markdown(result)), soft_wrap=True)
    results.keep_json(args.json, result)
    if args.page and not (args.clean or args.list):
        fill(args.page, "parity", _markdown(result))
    return 1 if overridden else 0


def _build(console: Console, args: argparse.Namespace, settings: Settings, folder: Path) -> dict[str, Any]:
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    from dino_perception.perception.perceiver import Perceiver

    pictures = _pictures(args.frames)
    with Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as progress:
        task = progress.add_task(f"loading {settings.backbone}")

        def report(line: str) -> None:
            progress.console.print(line, soft_wrap=True)
            progress.update(task, description=line if "building" in line else "")

        perceiver = Perceiver(
            settings, cache=folder, report=report, batch_sizes=_batches(args.batch), frames=pictures or None,
            rebuild=args.force or args.search,
        )  # fmt: skip
        progress.update(task, description="comparing the whole chain with float32 torch")
        chain = None if args.no_chain or settings.engine == "torch" else _chain(perceiver, settings, pictures)
        about = perceiver.describe()
        perceiver.close()
        progress.update(task, description="starting again from the cache")
        again = Perceiver(settings, cache=folder, report=lambda line: None, batch_sizes=_batches(args.batch))
        warm = again.describe()
        again.close()
    _parity_table(console, about["graphs"])
    if chain:
        console.print(f"whole chain against float32 torch, {chain['frames']} frames: " + ", ".join(_in_words(chain)))
    cold, loaded = (sum(graph["build_s"] for graph in start["graphs"]) for start in (about, warm))
    console.print(
        f"{about['reason']}; engines {'loaded' if about['from_cache'] else 'ready'} in {cold:.2f} s and, "
        f"started again, in {loaded:.2f} s; they are in {folder}",
        soft_wrap=True,
    )
    return {
        "backbone": settings.backbone,
        "input": about["input"],
        "output": about["output"],
        "cache": str(folder),
        "reason": about["reason"],
        "built": not about["from_cache"],
        "first_start_s": cold,
        "second_start_s": loaded,
        "second_start_from_cache": warm["from_cache"],
        "graphs": about["graphs"],
        "chain": chain,
    }


def _chain(perceiver: Perceiver, settings: Settings, pictures: Sequence[Path]) -> dict[str, Any]:
    """Masks, confidences and depths of the same frames through the engines and through eager float32 torch."""
    import torch

    from dino_perception.engines.parity import compare
    from dino_perception.engines.parity_pictures import FOLDER, read
    from dino_perception.models.outputs import ON_GRID
    from dino_perception.perception.frame import Frame, array_of
    from dino_perception.perception.perceiver import Perceiver

    reference = Perceiver(
        settings.changed({"engine": "torch", "precision": "float32", "parity_override": False}),
        report=lambda line: None,
        batch_sizes=[1],
    )
    numbers: dict[str, list[float]] = {}
    paths = list(pictures) or sorted(FOLDER.glob("*.jpg"))
    for index, path in enumerate(paths):
        frame = Frame("check", index, "check", read(path))
        (got,), (wanted,) = perceiver.perceive([frame]), reference.perceive([frame])
        for kind, outputs in perceiver.outputs.items():
            for output in outputs:
                if output.meaning in ON_GRID | {"vector"}:
                    both = (array_of(percept.answer(kind), output.name)[None] for percept in (wanted, got))
                    found = compare(output.meaning, *map(torch.from_numpy, both))
                    for name in found.keys() - {"kind", "nonfinite"}:
                        numbers.setdefault(name, []).append(found[name])
    reference.close()
    return {"frames": len(paths), **{name: sum(values) / len(values) for name, values in numbers.items()}}


def _in_words(chain: dict[str, Any]) -> list[str]:
    words = {
        "label_agreement": "mask agreement {:.2%}",
        "level_difference": "confidence within {:.2f} of 255",
        "depth_abs_rel": "depth AbsRel {:.5f}",
        "unknown_difference": "unknown depth differs on {:.2%}",
    }
    return [text.format(chain[name]) for name, text in words.items() if name in chain]


def _parity_table(console: Console, graphs: Sequence[dict[str, Any]]) -> None:
    from rich.table import Table

    table = Table(
        "graph",
        "batch",
        "engine",
        "precision",
        "s",
        "output",
        "cosine mean",
        "worst",
        "agreement",
        "AbsRel",
        "verdict",
        title="parity with float32 torch",
    )
    for graph in graphs:
        parity = graph["parity"]
        head = [graph["name"], str(graph["batch"]), graph["engine"], graph["precision"], f"{graph['build_s']:.1f}"]
        verdict = "failed, overridden" if graph["overridden"] else "passed"
        if parity is None:
            table.add_row(*head, "", "", "", "", "", "reference")
            continue
        for index, output in enumerate(parity["outputs"]):
            agreement = output.get("label_agreement")
            levels = output.get("level_difference")
            table.add_row(
                *(head if index == 0 else [""] * len(head)),
                f"{index + 1} {output['kind']}",
                _number(output.get("cosine_mean")),
                _number(output.get("cosine_worst")),
                f"{agreement:.2%}" if agreement is not None else "" if levels is None else f"±{levels:.2f}",
                _number(output.get("depth_abs_rel")),
                verdict if index == 0 else "",
            )
    console.print(table)


def _markdown(backbones: Sequence[dict[str, Any]]) -> list[str]:
    """One row a backbone: the worst of its taps, the whole chain, and the two starts."""
    lines = [
        "| backbone | input | engine | cosine mean | worst patch | mask agreement | depth AbsRel | first start "
        "| second start |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for backbone in backbones:
        graph = backbone["graphs"][0]
        taps = (graph["parity"] or {}).get("outputs", [])
        chain = backbone["chain"] or {}
        agreement, depth = chain.get("label_agreement"), chain.get("depth_abs_rel")
        lines.append(
            f"| {backbone['backbone']} | {'x'.join(map(str, backbone['input']))} "
            f"| {graph['engine']} {graph['precision']} "
            f"| {_number(min((t['cosine_mean'] for t in taps), default=None))} "
            f"| {_number(min((t['cosine_worst'] for t in taps), default=None))} "
            f"| {'' if agreement is None else f'{agreement:.2%}'} | {_number(depth)} "
            f"| {backbone['first_start_s']:.1f} s{'' if backbone['built'] else ' (cached)'} "
            f"| {backbone['second_start_s']:.2f} s |"
        )
    return lines


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.5f}"


def _list(console: Console, folder: Path) -> list[dict[str, Any]]:
    from rich.table import Table

    from dino_perception.engines import summary
    from dino_perception.engines.cache import records

    found = records(folder)
    table = Table("graph", "engine", "precision", "input", "MB", "built", "fits here", "parity", title=str(folder))
    for record in found:
        what = record["description"]
        record["fits"] = _fits(what)
        shape = "x".join(map(str, what["inputs"][0][1]))
        table.add_row(
            what["name"],
            what["engine"],
            what["precision"],
            shape,
            f"{record['bytes'] / 1e6:.1f}",
            time.strftime("%Y-%m-%d %H:%M", time.localtime(record["modified"])),
            "yes" if record["fits"] else "no",
            record.get("died") or ("" if record["blob"] else "failed: ") + summary(record["parity"]),
        )
    if found:
        console.print(table)
    console.print(f"{len(found)} engines, {sum(record['bytes'] for record in found) / 1e6:.1f} MB in {folder}")
    return found


def _fits(description: dict[str, Any]) -> bool:
    """Whether this machine and its runtime are those that an entry was built for."""
    from dino_perception.engines import ENGINES

    engine = ENGINES.get(description["engine"])
    return engine is not None and not engine.unavailable() and engine.identity() == description["runtime"]


def _clean(console: Console, folder: Path) -> dict[str, Any]:
    from dino_perception.engines.cache import clean

    files, freed = clean(folder)
    console.print(f"removed {files} files, {freed / 1e6:.1f} MB, from {folder}")
    return {"files": files, "bytes": freed, "cache": str(folder)}


def _batches(text: str) -> list[int] | None:
    try:
        sizes = [int(part) for part in text.split(",")] if text else None
    except ValueError:
        sizes = [0]
    if sizes is not None and min(sizes) < 1:
        raise CompileError(f"--batch {text} cannot be read; give sizes from 1 such as 1,2")
    return sizes


def _pictures(paths: Sequence[Path]) -> list[Path]:
    found: list[Path] = []
    for path in paths:
        inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in PICTURES) if path.is_dir() else [path]
        if not inside or not inside[0].exists():
            raise CompileError(f"--frames {path} holds no pictures; give files or folders of {', '.join(PICTURES)}")
        found += inside
    return found
