"""`dino-perception models`: the backbones there are, what a file holds, where weights come from, is the code right."""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dino_perception import results
from dino_perception.cli import released

if TYPE_CHECKING:
    from dino_perception.models.reference import Parity

HELP = "list the backbones; identify, download or verify weights; list released heads"
HEIGHT, WIDTH = 480, 640


class ModelsError(ValueError):
    """What was asked of the command cannot be done; the message says why."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", type=results.file, metavar="FILE", help="write what is printed, as data")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--identify", type=Path, metavar="FILE", help="say what a weights file or folder holds")
    what.add_argument(
        "--parity", action="store_true", help="compare every architecture with transformers (needs it; minutes)"
    )
    released.arguments(parser, what)
    parser.add_argument(
        "--source",
        choices=("huggingface", "timm"),
        default="",
        help="which repository --download takes: the publisher's or timm's copy",
    )
    parser.add_argument(
        "--page", type=results.page, metavar="FILE", help="put the table of --parity into this Markdown page"
    )
    parser.add_argument("--only", metavar="ID,ID", default="", help="compare only these with --parity")


def run(args: argparse.Namespace) -> int:
    if args.download:
        found = released.download(args.download, args.to, args.mirror, args.source)
        result = found if len(found) > 1 else found[0]
    elif args.identify:
        result = _identify(args)
    elif args.parity:
        result = _parity(args)
    else:
        result = released.list_heads() if args.heads else _list()
    results.keep_json(args.json, result)
    return 0


def _list() -> list[dict[str, Any]]:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from dino_perception.models import catalog, cost
    from dino_perception.models.checkpoints import BUNDLED

    rows = []
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name, style in (
        ("backbone", {"no_wrap": True}),
        ("params", {"justify": "right"}),
        ("GFLOPs", {"justify": "right"}),
        ("ADE20k", {"justify": "right"}),
        ("NYUv2", {"justify": "right"}),
        ("NAVI", {"justify": "right"}),
        ("licence", {}),
        ("weights", {}),
    ):
        table.add_column(name, **style)
    for spec in map(catalog.get, catalog.all_ids()):
        parameters, flops = cost.parameters(spec), cost.flops(spec, HEIGHT, WIDTH)
        bundled = (BUNDLED / f"{spec.id}.safetensors").is_file()
        rows.append({**dataclasses.asdict(spec), "parameters": parameters, "gflops": flops / 1e9, "bundled": bundled})
        scores = [
            ("-" if v is None else form.format(v))
            for v, form in (
                (spec.published.ade20k, "{:.1f}"),
                (spec.published.nyuv2, "{:.3f}"),
                (spec.published.navi, "{:.1f}"),
            )
        ]
        where = "in the package" if bundled else "open" if spec.access == "open" else "on request"
        if spec.access != "open" and spec.timm:
            where += ", open copy"
        name = f"[bold]{spec.id} *[/bold]" if spec.recommended else spec.id
        table.add_row(name, f"{parameters / 1e6:.1f} M", f"{flops / 1e9:.0f}", *scores, spec.licence, where)
    console = Console(width=None if sys.stdout.isatty() else 118)
    console.print(table)
    console.print(
        f"""* recommended: better than dinov3-vits16 and dinov2-vits14 in every published column.
GFLOPs at {HEIGHT}x{WIDTH}, two a multiply-add. ADE20k: linear mIoU in %; NYUv2: linear RMSE in m (lower is better);
NAVI: correspondence recall in %; as published by Meta (arXiv 2508.10104, Tab. 14), not measured here.
on request: {catalog.REQUEST}
open copy: dino-perception models --download ID --source timm
Weights load by naming their file or folder, in the original, Hugging Face, timm or this package's format.
""",
        highlight=False,
        end="",
    )
    return rows


def _identify(args: argparse.Namespace) -> dict[str, Any]:
    from dino_perception.models import catalog, files
    from dino_perception.models.checkpoints import identify
    from dino_perception.models.download import sha256

    content, metadata = files.read(args.identify)
    if metadata:
        result = {
            "content": metadata["content"],
            "layout": "own",
            **{k: v for k, v in metadata.items() if k != "content"},
        }
        print(f"{args.identify}: a {metadata['content']} of this package\n{json.dumps(metadata, indent=1)}")
        return result
    found = identify(content, str(args.identify))
    fits = [name for name in catalog.all_ids() if found.fits(catalog.get(name))]
    print(
        f"{args.identify}: {found}, in the {found.layout} layout; fits "
        f"{', '.join(fits) or 'no backbone of this package'}"
    )
    result = {"layout": found.layout, "holds": str(found), "fits": fits}
    if stated := re.search(r"-([0-9a-f]{8})\.pth$", args.identify.name):
        result["name_matches_content"] = sha256(args.identify).startswith(stated[1])
        if not result["name_matches_content"]:
            raise ModelsError(
                f"{args.identify} does not have the sha256 that its name states ({stated[1]}...); it is "
                "damaged or was changed"
            )
        print(f"its sha256 begins with {stated[1]}, as its name says")
    return result


def _parity(args: argparse.Namespace) -> list[dict[str, Any]]:
    try:
        import transformers
    except ImportError:
        raise ModelsError("comparing needs transformers: pip install transformers") from None
    import torch

    if args.heads:
        return _head_parity(args, f"torch {torch.__version__}, transformers {transformers.__version__}, float32, CPU")
    from dino_perception.measuring.markdown_tables import check, fill
    from dino_perception.models import catalog, reference

    check(args.page, "parity")
    names = [n for n in args.only.split(",") if n] or _architectures()
    lines = [
        "| backbone | layers compared | image | without final norm | with final norm | largest value |",
        "|---|---|---|---|---|---|",
    ]
    print(*lines, sep="\n")
    records, worst = [], 0.0
    for name in names:
        spec = catalog.get(name)
        short = reference.shortened(spec, reference.affordable_depth(spec))
        for parity in reference.compare(short, reference.SIZES):
            lines.append(_line(name, spec, parity))
            print(lines[-1], flush=True)
            worst = max(worst, parity.plain, parity.normed)
            records.append(
                {
                    "backbone": name,
                    "depths": short.depths,
                    "of": spec.depths,
                    "height": parity.height,
                    "width": parity.width,
                    "plain": parity.plain,
                    "normed": parity.normed,
                    "largest": parity.largest,
                }
            )
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}, float32, CPU"
    print(f"\nlargest difference {worst:.1e} (accepted: {reference.TOLERANCE:.0e}); {versions}")
    if args.page:
        fill(args.page, "parity", [*lines, "", f"{versions}."])
    if worst >= reference.TOLERANCE:
        raise ModelsError(
            f"a backbone differs from transformers by {worst:.1e}; accepted is less than {reference.TOLERANCE:.0e}"
        )
    return records


def _head_parity(args: argparse.Namespace, versions: str) -> list[dict[str, Any]]:
    from dino_perception.measuring.markdown_tables import check, fill
    from dino_perception.models import head_reference

    check(args.page, "head parity")
    lines = [
        "| head | file | compared with | image | largest difference | largest value |",
        "|---|---|---|---|---|---|",
    ]
    print(*lines, sep="\n")
    records, worst = [], 0.0
    for case in head_reference.CASES:
        for parity in head_reference.compare(case):
            lines.append(
                f"| {case.name} | {case.file} | {case.against} | {parity.height}x{parity.width} | {parity.difference:.1e} "
                f"| {parity.largest:.2f} {'m' if case.kind == 'depth' else '(logit)'} |"
            )
            print(lines[-1], flush=True)
            worst = max(worst, parity.difference)
            records.append({"head": case.name, "height": parity.height, "width": parity.width,
                            "difference": parity.difference, "largest": parity.largest})  # fmt: skip
    print(f"\nlargest difference {worst:.1e} (accepted: {head_reference.TOLERANCE:.0e}); {versions}")
    if args.page:
        fill(args.page, "head parity", [*lines, "", f"{versions}."])
    if worst >= head_reference.TOLERANCE:
        raise ModelsError(f"a head differs by {worst:.1e}; accepted is less than {head_reference.TOLERANCE:.0e}")
    return records


def _architectures() -> list[str]:
    """One backbone of each shape: those that share one differ in weights only."""
    from dino_perception.models import catalog

    shapes = {}
    for spec in map(catalog.get, catalog.all_ids()):
        shapes.setdefault(
            (spec.family, spec.dims, spec.depths, spec.hidden, spec.gated, spec.registers, spec.patch), spec.id
        )
    return list(shapes.values())


def _line(name: str, spec: Any, parity: Parity) -> str:
    depths, of = ("+".join(map(str, d)) for d in (parity.spec.depths, spec.depths))
    layers = f"all {of}" if depths == of else f"{depths} of {of}"
    return (
        f"| {name} | {layers} | {parity.height}x{parity.width} | {parity.plain:.1e} | {parity.normed:.1e} "
        f"| {parity.largest:.0f} |"
    )
