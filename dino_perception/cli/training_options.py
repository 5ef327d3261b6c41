"""What the commands of training have in common: how data and backbone are named."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dino_perception import results
from dino_perception.cli.argument_types import size, threads

if TYPE_CHECKING:
    from dino_perception.cli.progress import Stages
    from dino_perception.training.datasets import Dataset


def add_data_arguments(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """How every command of training names its data."""
    data = parser.add_argument_group("data")
    data.add_argument(
        "--data",
        nargs="+",
        required=required,
        default=[],
        metavar="DATA",
        help="a folder with images/ and masks/ or depth/, AI4Mars, RELLIS-3D, RUGD, COCO's JSON or YOLO's labels/ of boxes, "
        "a bag, rendered drives, or terrain:SEEDS; several are joined",
    )
    data.add_argument(
        "--objects",
        default="",
        metavar="CLASS,..",
        help="detection: classes of the masks whose connected parts are boxed, for data without boxes",
    )
    data.add_argument(
        "--labels", default="", metavar="FILE", help="labels.yaml to use instead of the data's own classes"
    )
    data.add_argument(
        "--partial", action="store_true", help="leave out pictures without a mask or depth instead of refusing"
    )
    data.add_argument("--image-topic", default="", help="camera topic of a bag, when it has several")
    data.add_argument(
        "--depth-topic", default="", help="aligned depth topic of a bag (16UC1 or 32FC1), when it has several"
    )
    data.add_argument("--mask-topic", default="", help="topic with class ids of a bag (mono8), when it has several")
    data.add_argument(
        "--style", default="", metavar="NAME,..", help="styles of terrain:SEEDS (default: those nothing is trained on)"
    )
    data.add_argument(
        "--cache",
        type=results.folder,
        default=None,
        metavar="DIR",
        help="where features, engines and rendered terrain are kept (default: ~/.cache/dino_perception)",
    )


def add_backbone_arguments(parser: Any) -> None:
    parser.add_argument(
        "--backbone",
        default="rover-tiny",
        help="backbone id; `dino-perception models` lists them (default: rover-tiny)",
    )
    parser.add_argument("--weights", default="", metavar="FILE", help="backbone weights; default: the bundled ones")
    parser.add_argument(
        "--input", type=size, default=(480, 640), metavar="HxW", help="pixels the backbone sees (default: 480x640)"
    )
    parser.add_argument("--engine", default="auto", help="runtime of the backbone (default: auto)")
    parser.add_argument("--precision", default="auto", help="its arithmetic (default: auto)")
    parser.add_argument("--threads", type=threads, default=0, help="CPU threads, 0: all (default)")


def opened(args: argparse.Namespace, sources: list[str], stages: Stages) -> Dataset:
    """The data that the command line names. Raises DataError."""
    from dino_perception.training.datasets import joined, open_dataset

    options = dict(
        cache=cache_folder(args),
        labels=args.labels,
        objects=[name.strip() for name in args.objects.split(",") if name.strip()],
        partial_labels=args.partial,
        image_topic=args.image_topic,
        depth_topic=args.depth_topic,
        mask_topic=args.mask_topic,
        styles=[s for s in args.style.split(",") if s],
    )
    return joined([open_dataset(source, progress=stages.say, **options) for source in sources])


def cache_folder(args: argparse.Namespace) -> Path:
    from dino_perception.engines import default_folder

    return args.cache or default_folder()
