"""`dino-perception calibrate`: teach a head what its camera usually shows, without labels, and what is unlike it."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from dino_perception import results
from dino_perception.cli.argument_types import size
from dino_perception.cli.training_options import add_backbone_arguments, add_data_arguments

if TYPE_CHECKING:
    from rich.table import Table

HELP = (
    "give a head statistics of usual frames, so that it knows when it does not know; or fit the colours of the features"
)
PLACE = "unlike the training"
"""Of the table in a page."""
COLUMNS = ("pictures", "count", "told as unlike", "distance: least", "median", "most", "confidence before", "after")


FARTHEST = 30.0
"""Metres up to which depth is judged, as `evaluate` does."""


class CalibrateError(ValueError):
    """A head cannot be calibrated with this; the message says why."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "head",
        choices=("segmentation", "depth", "detection", "features"),
        help="the head's kind; features: fit the basis of ~/features/overlay",
    )
    parser.add_argument(
        "--bag", nargs="+", default=[], metavar="BAG", help="recordings of usual frames; no labels needed"
    )
    parser.add_argument("--head-weights", default="", metavar="FILE|NAME", help="the head; default: the bundled one")
    parser.add_argument(
        "--out", type=results.file, required=True, metavar="FILE", help="the head's file with the statistics in it"
    )
    parser.add_argument(
        "--held-out", nargs="+", default=[], metavar="DATA",
        help="usual frames of other places, for the threshold (default: the last quarter of the others)",
    )  # fmt: skip
    parser.add_argument(
        "--honest", nargs="+", default=[], metavar="[NAME=]DATA",
        help="usual frames of yet other places, which decide nothing: how many are told as unlike, wrongly",
    )  # fmt: skip
    parser.add_argument(
        "--against", nargs="+", default=[], metavar="[NAME=]FOLDER",
        help="pictures that are not usual: say how many are told",
    )  # fmt: skip
    parser.add_argument(
        "--same-as", type=Path, metavar="FILE",
        help="take the statistics of another head's file, of the same backbone and last layer, and look at nothing",
    )  # fmt: skip
    parser.add_argument(
        "--confidence", nargs="+", default=[], metavar="DATA",
        help="frames with true depth: learn what a depth head's confidence is worth",
    )  # fmt: skip
    parser.add_argument(
        "--limit", type=int, default=400, metavar="N", help="frames to take, evenly spread (default: 400)"
    )
    parser.add_argument(
        "--views", type=int, default=1, metavar="N",
        help="looks at each usual frame: mirrored, and from 3 on in other light (default: 1)",
    )  # fmt: skip
    parser.add_argument(
        "--also", nargs="+", type=size, default=[], metavar="HxW", help="other input sizes at which frames are usual"
    )
    parser.add_argument("--json", type=results.file, metavar="FILE", help="write the table as data")
    parser.add_argument("--page", type=results.page, metavar="FILE", help="put the table into this Markdown page")
    add_data_arguments(parser, required=False)
    add_backbone_arguments(parser)


def run(args: argparse.Namespace) -> int:
    from dino_perception.cli.progress import Stages, wide_console
    from dino_perception.measuring.markdown_tables import check
    from dino_perception.models.checkpoints import load_backbone
    from dino_perception.models.heads import load_head, packed_head

    if args.confidence and args.head != "depth":
        raise CalibrateError("--confidence is about depth; the confidence of segmentation is trained with its classes")
    if not (args.data or args.bag or args.same_as or args.confidence):
        raise CalibrateError("say with --bag or --data what usual frames are")
    check(args.page, PLACE)
    console = wide_console()
    with Stages(console) as stages:
        backbone = load_backbone(args.backbone, args.weights)
        if args.head == "features":
            return _fitted_basis(args, backbone, console, stages)
        head = load_head(args.head, backbone, args.head_weights)
        if not (backbone.trained and head.trained):
            raise CalibrateError("the backbone or the head is untrained, so that its answers mean nothing anyway")
        rows = []
        if args.same_as:
            head.domain = _taken(args.same_as, head)
        elif args.data or args.bag:
            rows = _looked(args, backbone, head, stages)
        if args.confidence:
            head.spec = dataclasses.replace(head.spec, worth=_worth(args, backbone, head, stages))
        out = results.keep(args.out, packed_head(head)) or args.out
    use = f"Use it with {args.head}.weights: {out}"
    if rows:
        _tell(args, console, rows, head.domain.about)
        results.keep_json(args.json, {"head": str(out), "rows": rows})
        use = f"distances are in thresholds: over 1 is unlike. {use}"
    console.print(use, soft_wrap=True)
    return 0


def _worth(args: argparse.Namespace, backbone, head, stages) -> tuple[int, ...]:
    """What levels of the head's confidence are worth on `--confidence`."""
    from dino_perception.cli.training_options import opened
    from dino_perception.training.depth_confidence import seen, worth
    from dino_perception.training.evaluation.evaluate import spread

    data = opened(args, args.confidence, stages)
    data = data.chosen(spread(range(len(data.samples)), args.limit))
    (cache,) = _caches(args, backbone, head, [args.input])
    try:
        return worth(*seen(cache, head, data, FARTHEST, stages))
    finally:
        cache.close()


def _caches(args: argparse.Namespace, backbone, head, sizes) -> list:
    from dino_perception.cli.training_options import cache_folder
    from dino_perception.training.features import FeatureCache

    return [
        FeatureCache(
            cache_folder(args), backbone, head.spec.taps, *size, engine=args.engine, precision=args.precision,
            threads=args.threads, report=lambda line: None,
        )
        for size in sizes
    ]  # fmt: skip


def _fitted_basis(args: argparse.Namespace, backbone, console, stages) -> int:
    """Write the basis of the features of all frames."""
    from dino_perception.cli.training_options import cache_folder, opened
    from dino_perception.models.heads import create_head
    from dino_perception.perception.feature_colours import Covariance, packed_basis
    from dino_perception.training.evaluation.evaluate import spread
    from dino_perception.training.features import FeatureCache

    if args.same_as or not (args.data or args.bag):
        raise CalibrateError("say with --bag or --data which frames show what the colours are to tell apart")
    spec = create_head("features", backbone).spec
    cache = FeatureCache(
        cache_folder(args), backbone, spec.taps, *args.input, engine=args.engine, precision=args.precision,
        threads=args.threads, report=lambda line: None,
    )  # fmt: skip
    seen = Covariance()
    try:
        samples = spread(opened(args, [*args.data, *args.bag], stages).samples, args.limit)
        for done, sample in enumerate(samples):
            stages("looking at frames", done, len(samples))
            image = sample.read_image()
            seen.add(cache.image_part(cache.look(image)[0][0].float().cpu(), image).numpy())
    finally:
        cache.close()
    out = results.keep(args.out, packed_basis(seen.basis(), spec)) or args.out
    console.print(f"{seen.patches} patches of {seen.frames} frames. Use it with features.basis: {out}", soft_wrap=True)
    return 0


def _taken(path: Path, head):
    """The statistics of another head's file. Raises CalibrateError."""
    from dino_perception.models import domain, files
    from dino_perception.models.heads.base import spec_from

    try:
        tensors, metadata = files.read(path)
        other = spec_from(metadata.get("spec", {}), path)
        found = domain.from_file(
            {name: t for name, t in tensors.items() if name.startswith("domain.")},
            metadata.get("domain"),
            other.channels,
        )
    except ValueError as error:
        raise CalibrateError(f"--same-as: {error}") from None
    if found is None:
        raise CalibrateError(f"--same-as: {path} holds no statistics; calibrate that head first")
    mine = head.spec
    if (other.backbone_hash, other.taps[-1]) != (mine.backbone_hash, mine.taps[-1]):
        raise CalibrateError(
            f"--same-as: {path} is for another backbone or reads another last layer; calibrate this head with --bag or --data"
        )
    return found


def _looked(args: argparse.Namespace, backbone, head, stages) -> list[dict]:
    """Give the head its statistics; the rows of the table."""
    from dino_perception.cli.training_options import opened
    from dino_perception.training.evaluation.evaluate import spread
    from dino_perception.training.usual_frames import Spectator, looks_at, pictures_in, read, senseless, split, usual

    caches = _caches(args, backbone, head, (args.input, *args.also))
    spectators = [Spectator(cache, head) for cache in caches]

    def seen(name: str, reads: list, by=spectators[:1]):
        def each():
            for done, one in enumerate(reads):
                stages(f"looking at {name}", done, len(reads))
                yield one

        first, *others = (one.see(each()) for one in by)
        for other in others:
            first += other
        return first

    def frames_of(sources: list[str]) -> list:
        return spread(opened(args, sources, stages).samples, args.limit)

    try:
        source = [*args.data, *args.bag]
        samples = frames_of(source)
        held_out = frames_of(args.held_out) if args.held_out else []
        if not held_out:
            samples, held_out = split(samples)
        frames = seen("usual frames", looks_at(samples, args.views), spectators)
        others = seen("held-out frames", looks_at(held_out, args.views), spectators)
        head.domain = usual(frames.frames, others.frames, data=", ".join(source), views=args.views)
        if head.domain is None:
            raise CalibrateError(f"{len(samples)} frames are too few to know what is usual; record some more")
        rows = [("usual frames", frames), ("held out, for the threshold", others)]
        for name, place in map(_named, args.honest):
            usual_there = frames_of([place])
            for views, said in ((1, ""), (args.views, ", also mirrored and in other light"))[: 1 + (args.views > 1)]:
                rows.append((name + said, seen(name, looks_at(usual_there, views))))
            for height, width in args.also:
                by = [spectators[1 + args.also.index((height, width))]]
                rows.append((f"{name}, input {height}x{width}", seen(name, looks_at(usual_there, 1), by)))
        for name, folder in map(_named, args.against):
            reads = [lambda path=path: read(path) for path in spread(pictures_in(Path(folder)), args.limit)]
            rows.append((name, seen(name, reads)))
        likes = [sample.read_image() for sample in spread(held_out, 10)]
        for name, pictures in senseless(likes).items():
            rows.append((name, seen(name, [lambda picture=picture: picture for picture in pictures])))
    finally:
        for cache in caches:
            cache.close()
    return [_row(name, each, head.domain) for name, each in rows]


def _named(argument: str) -> tuple[str, str]:
    """NAME=PLACE, or a place, which is its own name."""
    name, equals, place = argument.partition("=")
    return (name, place) if equals else (argument, argument)


def _row(name: str, seen, domain) -> dict:
    far = seen.strangeness(domain)
    sure = {"before": float(seen.confidence.mean()), "after": float(seen.after(domain).mean())}
    return {
        "pictures": name, "count": len(far), "told": float((far > 1).float().mean()), "least": float(far.min()),
        "median": float(far.median()), "largest": float(far.max()), **({} if sure["before"] != sure["before"] else sure),
    }  # fmt: skip


def _tell(args: argparse.Namespace, console, rows: list[dict], about) -> None:
    from dino_perception.measuring.markdown_tables import fill, markdown

    table = _table(rows)
    console.print(table)
    if args.page:
        made = f"Statistics of {about['frames']} looks, threshold from {about['held_out']}; backbone at "
        made += f"{args.input[0]}x{args.input[1]}; distances are in thresholds."
        fill(args.page, PLACE, [*markdown(table), "", made])


def _table(rows: list[dict]) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in COLUMNS:
        table.add_column(name, justify="left" if name == "pictures" else "right")
    for row in rows:
        sure = [f"{row[key]:.2f}" if key in row else "-" for key in ("before", "after")]
        far = [f"{row[key]:.2f}" for key in ("least", "median", "largest")]
        table.add_row(row["pictures"], str(row["count"]), f"{row['told']:.1%}", *far, *sure)
    return table
