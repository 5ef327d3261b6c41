"""What `dino-perception models` does about released weights: lists the heads and fetches what is open."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from dino_perception import results


class ReleasedError(ValueError):
    """Weights that were asked for cannot be had; the message says why."""


def list_heads() -> list[dict[str, Any]]:
    """Print every released head, and return the same as data."""
    import dataclasses

    from rich import box
    from rich.console import Console
    from rich.table import Table

    from dino_perception.models import head_catalog, weights_folder

    folder = weights_folder.folder()
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name, style in (("head", {"no_wrap": True}), ("tells", {}), ("trained on", {}), ("classes", {"justify": "right"}),
                        ("reach", {"justify": "right"}), ("score", {"justify": "right"}), ("licence", {}),
                        ("here", {})):  # fmt: skip
        table.add_column(name, **style)
    rows = []
    for entry in head_catalog.all_heads():
        here = (folder / entry.file).is_file()
        rows.append(
            {**dataclasses.asdict(entry), "id": entry.id, "labels": [l.name for l in entry.labels], "here": here}
        )
        reach = f"{entry.depth_range[1]:g} m" if entry.depth_range else "-"
        score = f"{entry.score:g} {entry.measure}" if entry.score else "-"
        table.add_row(
            entry.id, entry.task, entry.data, str(len(entry.labels) or "-"), reach, score, entry.licence,
            "yes" if here else "-",
        )  # fmt: skip
    console = Console(width=None if sys.stdout.isatty() else 130)
    console.print(table)
    console.print(
        f"""Scores as published (arXiv 2304.07193; the segmentation ones of "ms" also average over scales), not
measured here. A configuration that names the backbone needs only what stands behind the slash:
  backbone: dinov2-vits14   segmentation.weights: ade20k   depth.weights: kitti-dpt
Fetch them: {weights_folder.command("dinov2-vits14", "ade20k", "kitti-dpt")}
They lie in {folder} (or in ${weights_folder.VARIABLE}).
""",
        highlight=False,
        end="",
    )
    return rows


def download(ids: list[str], to: Path | None, mirror: str, source: str) -> list[dict[str, Any]]:
    """Fetch backbones by id and heads by id, or by name after their backbone; each is opened once to be sure of it."""
    from dino_perception.models import weights_folder
    from dino_perception.models.catalog import REQUEST
    from dino_perception.models.fetch import DownloadError, joined

    to = to or weights_folder.folder()
    results = []
    for spec, entry in _asked(ids):
        if entry:
            address, sha256, file = entry.address, entry.sha256, entry.file
        else:
            head = _same_file(spec)
            address, file = (head.address if head else spec.address), spec.file
            sha256 = spec.file[-12:-4] if spec.family.startswith("dinov3") else ""
        if entry and not address and not mirror:
            raise ReleasedError(
                f"{entry.file} is for those who asked for it at {REQUEST}; copy it to {to}, or name its folder by --mirror"
            )
        if not address and not mirror:
            results.append(_from_hub(spec, to, source))
            continue
        if not file:
            raise DownloadError(f"{spec.id} has no file of a known name; give its own file as 'weights'")
        path = to / file
        new = _fetch(joined(mirror, address, file), path, sha256)
        results.append(_opened(spec, entry, path, new))
    return results


def _asked(ids: list[str]):
    """(backbone, head or None) for each id."""
    from dino_perception.models import catalog, head_catalog

    last = ""
    for one in ids:
        if entry := head_catalog.find(last, one):
            yield catalog.get(entry.backbone), entry
            continue
        try:
            spec = catalog.get(one)
        except catalog.UnknownBackbone as error:
            if "/" in one or last:
                raise ReleasedError(f"there is no head '{one}'; 'dino-perception models --heads' lists them") from None
            raise ReleasedError(str(error)) from None
        last = spec.id
        yield spec, None


def _same_file(spec):
    """The head that lies in one file with this backbone."""
    from dino_perception.models import head_catalog

    return head_catalog.by_file(spec.file) if spec.tuned else None


def _fetch(address: str, path: Path, sha256: str) -> bool:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    from dino_perception.models.fetch import fetch

    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn()
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(path.name, total=None)
        return fetch(
            address, path, sha256=sha256,
            progress=lambda name, here, total: bar.update(task, completed=here, total=total or None),
        )  # fmt: skip


def _opened(spec, entry, path: Path, new: bool) -> dict[str, Any]:
    """What the file holds, which is looked at before anybody relies on it."""
    from dino_perception.models import files
    from dino_perception.models.checkpoints import load_backbone
    from dino_perception.models.heads.released import LayoutError, release_from

    said = "fetched" if new else "here already"
    if entry is None:
        backbone = load_backbone(spec.id, path)
        print(f"{path}: {said}, {spec.id}, hash {backbone.weights_hash}, licence: {spec.licence}")
        return {"backbone": spec.id, "path": str(path), "weights_hash": backbone.weights_hash, "licence": spec.licence}
    try:
        found = release_from(files.read(path)[0], spec)
    except (LayoutError, files.FileError) as error:
        raise ReleasedError(f"{path} cannot be used: {error}") from None
    if found is None or found.kind != entry.task:
        raise ReleasedError(f"{path} holds no {entry.task} head; delete it and fetch it again")
    print(f"{path}: {said}, {entry.id} ({entry.task}), licence: {entry.licence}")
    return {"head": entry.id, "path": str(path), "licence": entry.licence}


def _from_hub(spec, to: Path, source: str) -> dict[str, Any]:
    from dino_perception.models.checkpoints import load_backbone
    from dino_perception.models.download import download as from_hub

    path = from_hub(spec, to, source)
    backbone = load_backbone(spec.id, path)
    print(f"{path}: {spec.id}, hash {backbone.weights_hash}, licence: {spec.licence}")
    print(f"use it with: backbone: {spec.id}, weights: {path}")
    return {"backbone": spec.id, "path": str(path), "weights_hash": backbone.weights_hash, "licence": spec.licence}


def arguments(parser: argparse.ArgumentParser, what: argparse._MutuallyExclusiveGroup) -> None:
    what.add_argument(
        "--download", nargs="+", metavar="ID",
        help="fetch released weights and verify them: backbones by id, heads by id or by name after their backbone",
    )  # fmt: skip
    parser.add_argument(
        "--to", type=results.folder, default=None, metavar="FOLDER",
        help="where --download puts them (default: the folder that the node looks into)",
    )  # fmt: skip
    parser.add_argument(
        "--mirror", default="", metavar="FOLDER|URL", help="take the files from here instead, by their released names"
    )
    parser.add_argument("--heads", action="store_true", help="list the released heads, or with --parity compare them")
