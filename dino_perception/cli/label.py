"""`dino-perception label`: one masked frame becomes a labelled recording, without what is doubtful."""

from __future__ import annotations

import argparse
import dataclasses
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from dino_perception import results
from dino_perception.cli.argument_types import seconds, share, whole
from dino_perception.cli.shown import ShownError, given, one_class, shown_at, where_set
from dino_perception.cli.training_options import add_backbone_arguments, cache_folder

if TYPE_CHECKING:
    import numpy as np

    from dino_perception.training.datasets import Sample

HELP = "carry the mask of one frame through a recording, as labels for `train`"
BINS = ((1, 5), (6, 10), (11, 20), (21, 40), (41, 10**9))
"""Frames from the masked one, of the rows of the table."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bag", type=Path, metavar="BAG", help="the recording")
    parser.add_argument(
        "--frame",
        type=seconds,
        default=0.0,
        metavar="T",
        help="the masked frame, in seconds from the first one (default: 0)",
    )
    parser.add_argument(
        "--mask", type=Path, metavar="PNG",
        help="its mask: class ids with --labels, else not 0 where the class is (default: the recording's own mask of it)",
    )  # fmt: skip
    parser.add_argument("--name", default="", help="what that class is called")
    parser.add_argument("--labels", default="", metavar="FILE", help="labels.yaml of the classes in the mask")
    parser.add_argument(
        "--out", type=results.folder, required=True, metavar="FOLDER", help="images/, masks/, labels.yaml"
    )
    parser.add_argument("--every", type=whole, default=1, metavar="N", help="write every Nth frame (default: all)")
    parser.add_argument("--limit", type=int, default=0, metavar="N", help="at most so many frames before and after it")
    parser.add_argument(
        "--least",
        type=share,
        default=0.3,
        metavar="P",
        help="pixels with less confidence stay unlabelled (default: 0.3)",
    )
    parser.add_argument("--image-topic", default="", help="camera topic, when there are several")
    parser.add_argument("--mask-topic", default="", help="topic of the recording's own masks, when there are several")
    parser.add_argument("--cache", type=results.folder, metavar="DIR", help="where engines are kept")
    parser.add_argument("--json", type=results.file, metavar="FILE", help="write the table as data")
    add_backbone_arguments(parser)


def run(args: argparse.Namespace) -> int:
    from dino_perception.cli.progress import Stages, wide_console
    from dino_perception.models.checkpoints import load_backbone
    from dino_perception.training.datasets import open_dataset
    from dino_perception.training.datasets.labels import labels_text
    from dino_perception.training.features import FeatureCache
    from dino_perception.training.teaching import last_tap

    console = wide_console()
    with Stages(console) as stages:
        data = open_dataset(
            args.bag,
            cache=cache_folder(args),
            labels=args.labels,
            image_topic=args.image_topic,
            mask_topic=args.mask_topic,
        )
        samples, start, labels = _masked(args, data)
        backbone = load_backbone(args.backbone, args.weights)
        cache = FeatureCache(
            cache_folder(args), backbone, [last_tap(backbone)], *args.input, engine=args.engine, precision=args.precision,
            threads=args.threads, report=lambda line: None,
        )  # fmt: skip
        try:
            writer = _Writer(args, labels, judged=args.mask is None)
            _carry(args, samples, start, labels, cache, writer, stages)
        finally:
            cache.close()
        results.write(args.out / "labels.yaml", labels_text(labels).encode())
    writer.tell(console)
    return 0


def _masked(args: argparse.Namespace, data) -> tuple[list[Sample], int, tuple]:
    """The frames, the place of the masked one, which has its mask, and the classes."""
    from dino_perception.training.datasets import read_labels
    from dino_perception.training.datasets.base import read_mask

    found = data.samples.index(shown_at(data.samples, args.frame, args.bag))
    if args.mask is None:
        if data.samples[found].read_classes is None:
            raise ShownError(f"{args.bag} has no mask of the frame at {args.frame:g} s; give one with --mask")
        return list(data.samples), found, data.labels
    if not (args.name or args.labels):
        raise ShownError("say with --name what the class is called, or with --labels what the ids of the mask are")
    stored = read_mask(args.mask)
    known = read_labels(Path(args.labels)) if args.labels else None
    shown = known.ids(stored, str(args.mask)) if known else where_set(stored)
    samples = list(data.samples)
    samples[found] = dataclasses.replace(samples[found], read_classes=partial(given, shown))
    return samples, found, known.labels if known else one_class(args.name)


def _carry(args, samples, start: int, labels, cache, writer: _Writer, stages) -> None:
    """From the masked frame to the end, and to the beginning."""
    import torch

    from dino_perception.training.propagation import Propagation, believed
    from dino_perception.training.teaching import made_of, shares_of

    first = samples[start]
    image = first.read_image()
    features = cache.look(image)[0][0].to("cpu", torch.float32, copy=True)
    truth = writer.grid(first.truth("segmentation", image), cache.box(image, 2))
    shares = shares_of(truth, len(labels), *features.shape[1:])
    head = made_of(cache.backbone, features, truth, labels)
    writer.put(first, image, truth[: cache.box(image, 2).output_height, : cache.box(image, 2).output_width], 0)
    limit = args.limit or len(samples)
    ways = [samples[start + 1 : start + 1 + limit], samples[max(0, start - limit) : start][::-1]]
    done = 0
    for way in ways:
        propagation = Propagation(features, shares)
        for distance, sample in enumerate(way, 1):
            stages("carrying the mask", done, sum(map(len, ways)))
            done += 1
            image = sample.read_image()
            box = cache.box(image, 2)
            own = cache.look(image)[0][0].to("cpu", torch.float32, copy=True)
            with torch.inference_mode():
                size = box.grid_height, box.grid_width
                carried, shown = (
                    torch.nn.functional.interpolate(s[None], size, mode="bilinear")[0]
                    for s in (propagation.follow(own), head(own[None])[0].softmax(dim=0)[: len(labels)])
                )
                ids, sure = believed(carried, shown)
            writer.judge(sample, image, box.crop(ids.numpy()), box.crop(sure.numpy()), distance)
            if distance % args.every == 0:
                said = ids.numpy().astype("uint8")
                said[sure.numpy() < args.least] = 255
                writer.put(sample, image, box.crop(said), distance)


class _Writer:
    """Writes the pictures and masks, and judges them where the recording knows better."""

    def __init__(self, args: argparse.Namespace, labels, judged: bool):
        self.args, self.labels, self.judged = args, labels, judged
        self.frames, self.labelled = 0, 0.0
        self._scores: dict[tuple[int, int], list] = {}
        for folder in ("images", "masks"):
            (args.out / folder).mkdir(parents=True, exist_ok=True)

    @staticmethod
    def grid(truth: np.ndarray, box) -> np.ndarray:
        """The truth on half of the network's input, unlabelled in its padding."""
        import numpy as np

        from dino_perception.training.evaluation.sampling import nearest

        whole = np.full((box.grid_height, box.grid_width), 255, np.uint8)
        whole[: box.output_height, : box.output_width] = nearest(truth, box.output_height, box.output_width)
        return whole

    def put(self, sample: Sample, image: np.ndarray, mask: np.ndarray, distance: int) -> None:
        import cv2

        name = f"{sample.number:06}"
        ok, picture = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])
        results.write(self.args.out / "images" / f"{name}.jpg", picture.tobytes())
        results.write(self.args.out / "masks" / f"{name}.png", cv2.imencode(".png", mask)[1].tobytes())
        self.frames += 1
        self.labelled += float((mask != 255).mean())

    def judge(self, sample: Sample, image: np.ndarray, ids: np.ndarray, sure: np.ndarray, distance: int) -> None:
        """mIoU of all pixels and of the believed ones, by distance."""
        from dino_perception.training.evaluation.metrics import SegmentationScore
        from dino_perception.training.evaluation.sampling import nearest

        if not self.judged or sample.read_classes is None:
            return
        key = next(b for b in BINS if b[0] <= distance <= b[1])
        every, kept, shares = self._scores.setdefault(
            key, [SegmentationScore(len(self.labels)), SegmentationScore(len(self.labels)), []]
        )
        truth = nearest(sample.truth("segmentation", image), *ids.shape)
        ids = ids.astype("uint8")
        every.add(truth, ids)
        left_out = truth.copy()
        left_out[sure < self.args.least] = 255
        kept.add(left_out, ids)
        shares.append(float((sure >= self.args.least).mean()))

    def tell(self, console) -> None:
        from rich import box
        from rich.table import Table

        rows = []
        for (low, high), (every, kept, shares) in sorted(self._scores.items()):
            rows.append(
                {"from": low, "to": high, "miou": every.miou, "kept_miou": kept.miou, "kept": sum(shares) / len(shares)}
            )
        if rows:
            table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
            for column in ("frames away", "mIoU of all pixels", "of those labelled", "labelled"):
                table.add_column(column, justify="right")
            for row in rows:
                away = f"{row['from']} to {row['to']}" if row["to"] < 10**9 else f"{row['from']} and more"
                table.add_row(away, f"{row['miou']:.3f}", f"{row['kept_miou']:.3f}", f"{row['kept']:.0%}")
            console.print(table)
        share = self.labelled / max(self.frames, 1)
        console.print(f"{self.frames} frames, {share:.0%} of their pixels labelled. Use them with train segmentation --data "
                      f"{self.args.out}", soft_wrap=True)  # fmt: skip
        results.keep_json(self.args.json, {"frames": self.frames, "labelled": share, "rows": rows})
