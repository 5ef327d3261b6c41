"""`dino-perception teach`: a segmentation head from a few examples, in seconds and without training."""

from __future__ import annotations

import argparse
import dataclasses
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from dino_perception import results
from dino_perception.cli.argument_types import seconds
from dino_perception.cli.shown import BACKGROUND, ShownError, given, one_class, shown_at, where_set
from dino_perception.cli.training_options import add_backbone_arguments, add_data_arguments, cache_folder, opened

if TYPE_CHECKING:
    from dino_perception.training.datasets import Dataset

HELP = "make a segmentation head from a few shown frames or pictures, without training"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    one = parser.add_argument_group("one class in frames of a recording")
    one.add_argument("--bag", type=Path, metavar="BAG", help="the recording; or show labelled pictures with --data")
    one.add_argument(
        "--frame",
        type=seconds,
        nargs="+",
        default=[],
        metavar="T",
        help="frames to show, in seconds from its first one",
    )
    one.add_argument("--name", default="", help="what the shown class is called; all else is background")
    one.add_argument(
        "--mask", type=Path, nargs="+", default=[], metavar="PNG",
        help="for each frame a mask: not 0 where the class is; with --labels, class ids",
    )  # fmt: skip
    one.add_argument(
        "--box",
        type=_box,
        nargs="+",
        default=[],
        metavar="X0,Y0,X1,Y1",
        help="for each frame a box around it, in pixels",
    )
    one.add_argument(
        "--points", type=_point, nargs="+", default=[], metavar="X,Y",
        help="pixels of the class in the one frame; what looks like them belongs to it",
    )  # fmt: skip
    add_data_arguments(parser, required=False)
    parser.add_argument("--limit", type=int, default=0, metavar="N", help="show N of the pictures of --data only")
    parser.add_argument(
        "--out", type=results.file, required=True, metavar="FILE",
        help="the head's file; without any example, a head to be taught on the running node by ~/teach",
    )  # fmt: skip
    parser.add_argument("--json", type=results.file, metavar="FILE", help="write what was taught as data")
    add_backbone_arguments(parser)


def run(args: argparse.Namespace) -> int:
    from dino_perception.cli.progress import Stages, wide_console
    from dino_perception.models.checkpoints import load_backbone
    from dino_perception.models.heads import packed_head
    from dino_perception.training.features import FeatureCache
    from dino_perception.training.looks import Look
    from dino_perception.training.splitting import limited, with_truth
    from dino_perception.training.teaching import last_tap, made, teach

    _check(args)
    console = wide_console()
    with Stages(console) as stages:
        backbone = load_backbone(args.backbone, args.weights)
        if not (args.bag or args.data):
            head, rows = made(backbone, one_class(BACKGROUND)[:1], {}, 20.0), []
        else:
            cache = FeatureCache(
                cache_folder(args), backbone, [last_tap(backbone)], *args.input, engine=args.engine,
                precision=args.precision, threads=args.threads, report=lambda line: None,
            )  # fmt: skip
            try:
                data = _of_bag(args, cache, stages) if args.bag else limited(
                    with_truth(opened(args, args.data, stages), "segmentation"), args.limit, 0
                )  # fmt: skip
                items = cache.items(data, "segmentation", [Look()], stages)
                taught = teach(backbone, items, data.labels, data=data.source)
            finally:
                cache.close()
            head = taught.head
            rows = [
                {"class": name, "patches": count, "told": taught.told.get(name)}
                for name, count in taught.patches.items()
            ]
        out = results.keep(args.out, packed_head(head)) or args.out
    _tell(args, console, rows, out)
    if not backbone.trained:
        console.print(f"{args.backbone} is untrained, so that its features mean little", style="yellow")
    return 0


def _check(args: argparse.Namespace) -> None:
    """Raises ShownError where the arguments do not fit together."""
    if args.bag and args.data:
        raise ShownError("show frames of a --bag or pictures of --data, not both at once")
    ways = [name for name in ("mask", "box", "points") if getattr(args, name)]
    if not args.bag:
        if ways or args.frame or args.name:
            raise ShownError("--frame, --name, --mask, --box and --points are for frames of a --bag")
        return
    if len(ways) != 1 or not args.frame:
        raise ShownError("say with --frame which frames are shown, and with one of --mask, --box and --points where")
    if not args.name and not (args.labels and args.mask):
        raise ShownError("say with --name what the class is called, or with --labels what the ids of the masks are")
    if args.name == BACKGROUND:
        raise ShownError(f"'{BACKGROUND}' is all that is not shown; name the class by what it is")
    regions = 1 if args.points else len(getattr(args, ways[0]))
    if regions != len(args.frame):
        raise ShownError(
            f"{len(args.frame)} frames and {regions} regions (--{ways[0]}) are given; each needs the other"
        )


def _of_bag(args: argparse.Namespace, cache, stages) -> Dataset:
    """The shown frames of the recording, with what is shown as their truth."""
    from dino_perception.training.datasets import Dataset, open_dataset, read_labels
    from dino_perception.training.datasets.base import read_mask, text_key

    data = open_dataset(args.bag, cache=cache_folder(args), image_topic=args.image_topic)
    label_map = read_labels(Path(args.labels)) if args.labels else None
    labels = label_map.labels if label_map else one_class(args.name)
    samples = []
    for number, time in enumerate(args.frame):
        sample = shown_at(data.samples, time, args.bag)
        image = sample.read_image()
        if args.mask:
            stored = read_mask(args.mask[number])
            shown = label_map.ids(stored, str(args.mask[number])) if label_map else where_set(stored)
        elif args.box:
            shown = _boxed(image.shape[:2], args.box[number])
        else:
            shown = _pointed(image, args.points, cache)
        key = text_key(shown.shape, shown.tobytes())
        samples.append(dataclasses.replace(sample, read_classes=partial(given, shown), truth_key=key))
    return Dataset(data.source, tuple(samples), labels)


def _boxed(shape: tuple[int, int], box: tuple[int, int, int, int]):
    import numpy as np

    left, top, right, bottom = box
    if right > shape[1] or bottom > shape[0]:
        raise ShownError(
            f"the box {left},{top},{right},{bottom} is not within the frame of {shape[1]}x{shape[0]} pixels"
        )
    shown = np.zeros(shape, np.uint8)
    shown[top:bottom, left:right] = 1
    return shown


def _pointed(image, points, cache):
    """Where the image looks like the pixels: (H, W) uint8."""
    import numpy as np
    import torch

    from dino_perception.models.heads.prototypes import alike
    from dino_perception.training.teaching import spread_over

    box = cache.box(image, 2)
    features = cache.look(image)[0][0].float().cpu()
    rows, columns = features.shape[1:]
    shown = torch.zeros(rows, columns, dtype=torch.bool)
    for x, y in points:
        if not (x < image.shape[1] and y < image.shape[0]):
            raise ShownError(f"the point {x},{y} is not within the frame of {image.shape[1]}x{image.shape[0]} pixels")
        at = box.to_input(np.array([x, y])) + 0.5
        shown[int(at[1] * rows / box.input_height), int(at[0] * columns / box.input_width)] = True
    inside = cache.image_part(features, image)
    shown[: inside.shape[1], : inside.shape[2]] |= alike(inside, shown[: inside.shape[1], : inside.shape[2]])
    return spread_over(shown.numpy(), box).astype(np.uint8)


def _tell(args: argparse.Namespace, console, rows: list[dict], out: Path) -> None:
    from rich import box
    from rich.table import Table

    if rows:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for column in ("class", "patches shown", "held-out patches told right"):
            table.add_column(column, justify="left" if column == "class" else "right")
        for row in rows:
            right = row["told"]
            table.add_row(row["class"], str(row["patches"]), "-" if right is None or right != right else f"{right:.0%}")
        console.print(table)
    console.print(f"Use it with segmentation.weights: {out}", soft_wrap=True)
    results.keep_json(args.json, {"head": str(out), "classes": rows})


def _numbers(text: str, count: int) -> tuple[int, ...]:
    parts = text.split(",")
    if len(parts) != count or not all(part.strip().isdecimal() and len(part) < 8 for part in parts):
        raise argparse.ArgumentTypeError(f"'{text}' is not {count} whole numbers with commas between them")
    return tuple(map(int, parts))


def _point(text: str) -> tuple[int, ...]:
    return _numbers(text, 2)


def _box(text: str) -> tuple[int, ...]:
    left, top, right, bottom = _numbers(text, 4)
    if not (left < right and top < bottom):
        raise argparse.ArgumentTypeError(f"'{text}' is an empty box; accepted is left,top,right,bottom")
    return left, top, right, bottom
