"""`dino-perception calibrate`: teach a head what its camera usually shows, without labels, and what is unlike it."""

from __future__ import annotations

import argparse
from pathlib import Path

from dino_perception import results
from dino_perception.cli.training_options import add_backbone_arguments, add_data_arguments

HELP = "give a head statistics of usual frames, so that it knows when it does not know"


class CalibrateError(ValueError):
    """A head cannot be calibrated with this; the message says why."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("head", choices=("segmentation", "depth"), help="the head's kind")
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
        "--against", nargs="+", default=[], metavar="FOLDER", help="pictures that are not usual: say how many are told"
    )
    parser.add_argument(
        "--limit", type=int, default=400, metavar="N", help="frames to take, evenly spread (default: 400)"
    )
    parser.add_argument("--json", type=results.file, metavar="FILE", help="write the table as data")
    add_data_arguments(parser, required=False)
    add_backbone_arguments(parser)


def run(args: argparse.Namespace) -> int:
    from rich import box
    from rich.table import Table

    from dino_perception.cli.progress import Stages, wide_console
    from dino_perception.cli.training_options import cache_folder, opened
    from dino_perception.models.checkpoints import load_backbone
    from dino_perception.models.heads import load_head, packed_head
    from dino_perception.training.evaluation.evaluate import spread
    from dino_perception.training.features import FeatureCache
    from dino_perception.training.usual_frames import of_pictures, pictures_in, read, senseless, usual

    if not (args.data or args.bag):
        raise CalibrateError("say with --bag or --data what usual frames are")
    console = wide_console()
    with Stages(console) as stages:
        backbone = load_backbone(args.backbone, args.weights)
        head = load_head(args.head, backbone, args.head_weights)
        if not (backbone.trained and head.trained):
            raise CalibrateError("the backbone or the head is untrained, so that its answers mean nothing anyway")
        cache = FeatureCache(
            cache_folder(args), backbone, head.spec.taps[-1:], *args.input, engine=args.engine, precision=args.precision,
            threads=args.threads, report=lambda line: None,
        )  # fmt: skip

        def frames_of(sources: list[str]) -> list:
            return [sample.read_image for sample in spread(opened(args, sources, stages).samples, args.limit)]

        def told(name: str, reads: list) -> object:
            def each():
                for done, one in enumerate(reads):
                    stages(f"looking at {name}", done, len(reads))
                    yield one()

            return of_pictures(cache, each())

        try:
            source = [*args.data, *args.bag]
            frames = told("usual frames", frames_of(source))
            others_read = frames_of(args.held_out) if args.held_out else []
            others = told("held-out frames", others_read) if others_read else frames[:0]
            head.domain = usual(frames, others, data=", ".join(source))
            if head.domain is None:
                raise CalibrateError(f"{len(frames)} frames are too few to know what is usual; record some more")
            likes = [one() for one in (others_read or frames_of(source))[:10]]
            rows = [("usual frames", frames), *([("held out", others)] if len(others) else [])]
            for folder in args.against:
                reads = [lambda path=path: read(path) for path in spread(pictures_in(Path(folder)), args.limit)]
                rows.append((folder, told(folder, reads)))
            rows += [(name, of_pictures(cache, pictures)) for name, pictures in senseless(likes).items()]
        finally:
            cache.close()
        out = results.keep(args.out, packed_head(head)) or args.out
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("pictures", "count", "told as unlike", "median distance", "largest"):
        table.add_column(name, justify="left" if name == "pictures" else "right")
    result = []
    for name, seen in rows:
        far = head.domain.distances(seen) / head.domain.threshold
        row = {"pictures": name, "count": len(seen), "told": float((far > 1).float().mean()),
               "median": float(far.median()), "largest": float(far.max())}  # fmt: skip
        result.append(row)
        table.add_row(name, str(row["count"]), f"{row['told']:.1%}", f"{row['median']:.2f}", f"{row['largest']:.2f}")
    console.print(table)
    console.print(
        f"distances are in thresholds: over 1 is unlike. Use it with {args.head}.weights: {out}", soft_wrap=True
    )
    results.keep_json(args.json, {"head": str(out), "rows": result})
    return 0
