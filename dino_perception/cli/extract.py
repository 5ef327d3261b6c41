"""`dino-perception extract`: evenly spaced frames of a bag as pictures, ready to be labelled."""

from __future__ import annotations

import argparse
import io
from pathlib import Path

from dino_perception import results
from dino_perception.cli.argument_types import whole

HELP = "write evenly spaced frames of a bag to a folder, to be labelled and trained on"


class ExtractError(ValueError):
    """The frames cannot be written; the message says why."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bag", type=Path, help="a bag")
    parser.add_argument(
        "out",
        type=results.folder,
        help="folder for images/, labels.yaml and, where the bag has them, masks/ and depth/",
    )
    parser.add_argument("--count", type=whole, default=20, metavar="N", help="how many frames (default: 20)")
    parser.add_argument("--image-topic", default="", help="camera topic, when there are several")
    parser.add_argument("--mask-topic", default="", help="topic with class ids to write to masks/")
    parser.add_argument("--depth-topic", default="", help="aligned depth topic to write to depth/")
    parser.add_argument("--truth", action="store_true", help="write masks and depth wherever the bag has them")
    parser.add_argument(
        "--labels", type=Path, default=None, metavar="FILE", help="your labels.yaml, to be copied along"
    )


def run(args: argparse.Namespace) -> int:
    from dino_perception.cli.progress import Stages, wide_console
    from dino_perception.training.datasets.bag import read
    from dino_perception.training.datasets.labels import DEFAULT, labels_text, read_labels
    from dino_perception.training.evaluation.evaluate import spread

    if args.count < 1:
        raise ExtractError(f"--count is {args.count}; accepted is 1 or more")
    if (args.out / "images").exists() and any((args.out / "images").iterdir()):
        raise ExtractError(f"{args.out / 'images'} holds files already; give another folder")
    labels = read_labels(args.labels) if args.labels else DEFAULT
    console = wide_console()
    data = read(
        args.bag, labels=labels, image_topic=args.image_topic, mask_topic=args.mask_topic, depth_topic=args.depth_topic
    )
    masks, depth = args.truth or bool(args.mask_topic), args.truth or bool(args.depth_topic)
    usable = [
        s for s in data.samples if (not masks or s.read_classes or not data.labels) and (not depth or s.read_depth)
    ]
    if not usable:
        raise ExtractError(
            f"{args.bag} has no picture with {'mask and depth' if masks and depth else 'a mask' if masks else 'depth'} "
            "of its time"
        )
    chosen = spread(usable, args.count)
    with Stages(console) as stages:
        for done, sample in enumerate(chosen):
            stages("writing frames", done, len(chosen))
            _write(sample, args.out, masks and sample.read_classes is not None, depth)
    results.keep(args.out / "labels.yaml", labels_text(labels.labels), within=args.out)
    console.print(
        f"{len(chosen)} of {len(data.samples)} frames in {args.out / 'images'}"
        + {(True, True): " with masks and depth", (True, False): " with masks", (False, True): " with depth"}.get(
            (masks, depth), ""
        ),
        soft_wrap=True,
    )
    if not masks:
        console.print(
            f"label them: one PNG of class ids each, of the same name, in {args.out / 'masks'}; the ids are in "
            f"{args.out / 'labels.yaml'}",
            soft_wrap=True,
        )
    return 0


def _write(sample, out: Path, mask: bool, depth: bool) -> None:
    import cv2
    import numpy as np

    image = sample.read_image()
    files = {"images": cv2.cvtColor(image, cv2.COLOR_RGB2BGR)}
    if mask:
        files["masks"] = sample.truth("segmentation", image)
    if depth:
        metres = sample.truth("depth", image)
        if np.nan_to_num(metres).max(initial=0) <= 65.535:
            files["depth"] = np.nan_to_num(np.round(metres * 1000)).astype(np.uint16)
        else:
            array = io.BytesIO()
            np.save(array, metres)
            results.keep(out / "depth" / f"{sample.stamp_ns}.npy", array.getvalue(), within=out)
    for folder, picture in files.items():
        ok, png = cv2.imencode(".png", picture)
        if not ok:
            raise ExtractError(f"the picture of {sample.stamp_ns} cannot be made a PNG")
        results.keep(out / folder / f"{sample.stamp_ns}.png", png.tobytes(), within=out)
