"""`dino-perception places`: a vocabulary for ~/place from one's own drives, and where a drive comes back."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from dino_perception import results
from dino_perception.cli.argument_types import at_least_0, positive
from dino_perception.cli.training_options import add_backbone_arguments, cache_folder

if TYPE_CHECKING:
    import numpy as np

HELP = "fit the vocabulary of ~/place on drives, and find where drives show one place"


class PlacesError(ValueError):
    """No places can be found; the message says why."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="<action>", required=True)
    fit = actions.add_parser("fit", help="fit a vocabulary on the frames of drives")
    fit.add_argument("data", nargs="+", metavar="BAG", help="drives of the places that the robot sees")
    fit.add_argument(
        "--out", type=results.file, required=True, metavar="FILE", help="the head's file, for place.weights"
    )
    fit.add_argument("--limit", type=int, default=400, metavar="N", help="frames, evenly spread (default: 400)")
    match = actions.add_parser("match", help="find where the second drive, or the only one, shows what was seen before")
    match.add_argument("data", nargs="+", metavar="BAG", help="one drive, or an earlier and a later one")
    match.add_argument(
        "--vocabulary", default="", metavar="FILE", help="what `places fit` wrote; default: none is needed"
    )
    match.add_argument("--every", type=positive, default=0.5, metavar="S", help="seconds between frames (default: 0.5)")
    match.add_argument(
        "--apart", type=positive, default=10.0, metavar="S",
        help="seconds by which frames of one drive must be apart to be a return (default: 10)",
    )  # fmt: skip
    match.add_argument(
        "--least", type=at_least_0, default=0.0, metavar="COSINE",
        help="least cosine of a match (default: what frames of the earlier drive hardly reach that are apart)",
    )  # fmt: skip
    match.add_argument("--top", type=int, default=20, metavar="N", help="rows of the table (default: 20)")
    match.add_argument("--json", type=results.file, metavar="FILE", help="write all matches")
    for action in (fit, match):
        action.add_argument("--image-topic", default="", help="camera topic of a bag, when it has several")
        action.add_argument(
            "--cache",
            type=results.folder,
            metavar="DIR",
            help="where engines are kept (default: ~/.cache/dino_perception)",
        )
        add_backbone_arguments(action)


def run(args: argparse.Namespace) -> int:
    from dino_perception.cli.progress import Stages, wide_console
    from dino_perception.models.checkpoints import load_backbone
    from dino_perception.models.heads import load_head
    from dino_perception.training.features import FeatureCache

    console = wide_console()
    if args.action == "match" and len(args.data) > 2:
        raise PlacesError(f"{len(args.data)} drives are given; accepted are one, or an earlier and a later one")
    with Stages(console) as stages:
        backbone = load_backbone(args.backbone, args.weights)
        head = load_head("place", backbone, getattr(args, "vocabulary", ""))
        cache = FeatureCache(
            cache_folder(args), backbone, head.spec.taps, *args.input, engine=args.engine, precision=args.precision,
            threads=args.threads, report=lambda line: None,
        )  # fmt: skip
        try:
            act = _fit if args.action == "fit" else _match
            tell = act(args, backbone, head, cache, stages)
        finally:
            cache.close()
    tell(console)
    return 0


def _fit(args: argparse.Namespace, backbone, head, cache, stages):
    from dino_perception.models.heads import packed_head
    from dino_perception.training.datasets import open_dataset
    from dino_perception.training.evaluation.evaluate import spread
    from dino_perception.training.places import fit, seen

    data = [open_dataset(path, cache=cache_folder(args), image_topic=args.image_topic) for path in args.data]
    samples = spread([sample for each in data for sample in each.samples], args.limit)
    frames = seen(cache, samples, lambda done, total: stages("looking at frames", done, total))
    stages("fitting", 0, 1)
    made = fit(backbone, frames, data=", ".join(each.source for each in data))
    out = results.keep(args.out, packed_head(made)) or args.out
    words, size = made.spec.options["words"], made.spec.options["size"]
    return lambda console: console.print(
        f"{words} words and {size} numbers a place, of {len(frames)} frames. Use it with place.weights: {out}",
        soft_wrap=True,
    )


def _match(args: argparse.Namespace, backbone, head, cache, stages):
    from dino_perception.training.datasets import open_dataset
    from dino_perception.training.places import revisits, seen, threshold, vectors

    drives = []
    for path in args.data:
        samples = _every(open_dataset(path, cache=cache_folder(args), image_topic=args.image_topic).samples, args.every)
        frames = seen(
            cache, samples, lambda done, total, path=path: stages(f"looking at {Path(path).name}", done, total)
        )
        drives.append((vectors(head, frames), _times(samples)))
    (earlier, times), (later, later_times) = drives[0], drives[-1]
    least = args.least or threshold(earlier, times, args.apart)
    if least != least:
        raise PlacesError(
            f"{args.data[0]} lasts no longer than {args.apart:g} s, so that nothing tells what is alike; give --least"
        )
    found = revisits(earlier, times, later, later_times, least, args.apart if len(drives) == 1 else 0.0)
    results.keep_json(args.json, {"least": least, "revisits": [dataclasses.asdict(each) for each in found]})
    return lambda console: _tell(args, console, found, least)


def _every(samples, seconds: float) -> list:
    kept: list = []
    for sample in samples:
        if not kept or sample.stamp_ns - kept[-1].stamp_ns >= seconds * 1e9 - 1e6:
            kept.append(sample)
    return kept


def _times(samples) -> np.ndarray:
    import numpy as np

    return np.array([(sample.stamp_ns - samples[0].stamp_ns) * 1e-9 for sample in samples])


def _tell(args: argparse.Namespace, console, found, least: float) -> None:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("seen again, s", "best at, s", "first seen at, s", "cosine", "frames"):
        table.add_column(column, justify="right")
    for each in found[: args.top]:
        table.add_row(
            f"{each.begin:.1f} to {each.end:.1f}", f"{each.at:.1f}", f"{each.earlier_at:.1f}", f"{each.cosine:.3f}",
            str(each.frames),
        )  # fmt: skip
    if found:
        console.print(table)
    console.print(f"{len(found)} returns with a cosine of {least:.3f} or more", soft_wrap=True)
