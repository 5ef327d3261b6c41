"""Where training and evaluation take their frames from: one kind of data, one file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from dino_perception.training.datasets import bag, coco, folder, mask_boxes, offroad, scenes, terrain, yolo
from dino_perception.training.datasets.base import DataError, Dataset, Sample, joined
from dino_perception.training.datasets.labels import LabelMap, read_labels, write_labels

__all__ = ["DataError", "Dataset", "LabelMap", "Sample", "joined", "open_dataset", "read_labels", "write_labels"]

KINDS = (
    ("a bag", bag.fits, bag.read),
    ("rendered drives (.npz)", scenes.fits, scenes.read),
    ("RUGD (RUGD_annotations/)", offroad.fits_rugd, offroad.read_rugd),
    ("RELLIS-3D (0000N/pylon_camera_node/)", offroad.fits_rellis, offroad.read_rellis),
    ("AI4Mars (images/ and labels/train/)", offroad.fits_ai4mars, offroad.read_ai4mars),
    ("COCO's JSON of boxes", coco.fits, coco.read),
    ("a folder with images/ and YOLO's labels/", yolo.fits, yolo.read),
    ("a folder with images/", folder.fits, folder.read),
)
"""What a path can be, in the order in which it is tried: (in words, whether it is that, how it is read)."""


def open_dataset(
    source: str | Path,
    *,
    cache: Path,
    labels: str | Path = "",
    objects: Sequence[str] = (),
    progress: Callable[[str], None] | None = None,
    **options,
) -> Dataset:
    """The dataset at a path, or of "terrain:SEEDS"; what it is, is found from what is there.

    `objects` are classes of its masks whose connected parts are to be boxes (mask_boxes.py). `labels` is a labels.yaml that replaces the data's own classes. `options` go to the kind that knows them:
    `image_topic`, `depth_topic`, `mask_topic` (bag), `partial_labels` (folder), `agreement` (AI4Mars), `styles`, `size`
    (terrain). Raises DataError.
    """
    if objects:
        data = open_dataset(source, cache=cache, labels=labels, progress=progress, **options)
        return mask_boxes.boxed(data, objects)
    label_map = read_labels(Path(labels)) if labels else None
    if terrain.fits(str(source)):
        return terrain.read(str(source).removeprefix(terrain.PREFIX), cache=cache, progress=progress, **options)
    path = Path(source).expanduser()
    if not path.exists():
        raise DataError(f"{path} does not exist; accepted are {_accepted()}")
    for _, fits, read in KINDS:
        if fits(path):
            return read(path, labels=label_map, **options)
    raise DataError(f"{path} is no data that can be read; accepted are {_accepted()}")


def _accepted() -> str:
    return ", ".join(words for words, *_ in KINDS) + f" and {terrain.PREFIX}SEEDS"
