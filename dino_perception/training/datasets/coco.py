"""COCO's JSON of boxes: a file, with its pictures beside it or where COCO itself has them.

coco/annotations/instances_val2017.json    with pictures in coco/val2017/
DATA/_annotations.coco.json                with pictures in DATA/, as Roboflow and CVAT write it
DATA/objects.json                          with pictures in DATA/images/
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from dino_perception.models.heads import Label
from dino_perception.models.label_sets import numbered
from dino_perception.training.datasets.base import DataError, Dataset, Sample, file_key, read_picture, text_key


def fits(path: Path) -> bool:
    return file_of(path) is not None


def file_of(path: Path) -> Path | None:
    """The JSON file that a path is or holds, None where there is none or there are several."""
    if path.is_file():
        return path if path.suffix.lower() == ".json" else None
    found = sorted(path.glob("*.coco.json"))
    return found[0] if len(found) == 1 else None


def read(path: Path, **_) -> Dataset:
    """The dataset of such a file. Crowds (`iscrowd`) are left out, and classes of which there is no box. Raises
    DataError."""
    path = file_of(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        images, categories = content["images"], {int(c["id"]): str(c["name"]) for c in content["categories"]}
        boxes: dict[int, list[list[float]]] = {int(image["id"]): [] for image in images}
        used = sorted({int(a["category_id"]) for a in content["annotations"] if not a.get("iscrowd")})
        ids = {category: i for i, category in enumerate(used)}
        names = [categories[category] for category in used]
        for each in content["annotations"]:
            if not each.get("iscrowd"):
                boxes[int(each["image_id"])].append([*corners(each["bbox"]), ids[int(each["category_id"])], np.nan])
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"{path} cannot be read as JSON: {error}") from None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(
            f"{path} is no COCO file of boxes ({type(error).__name__}: {error}); it needs images, categories and "
            "annotations with image_id, category_id and bbox"
        ) from None
    if not images or not used:
        raise DataError(f"{path} holds {len(images)} pictures and boxes of {len(used)} classes; there must be some")
    folder = pictures_of(path, images)
    samples = [sample(folder / str(image["file_name"]), boxes[int(image["id"])]) for image in images]
    return Dataset(f"COCO {path.name}", tuple(samples), box_labels=labels_of(names))


def corners(box: Any) -> list[float]:
    """COCO counts pixels from the corner of the first one; here pixel centres are at integers."""
    x, y, width, height = (float(value) for value in box)
    return [x - 0.5, y - 0.5, x + width - 0.5, y + height - 0.5]


def sample(picture: Path, boxes: list[list[float]]) -> Sample:
    """One picture with its boxes (M, 6). Raises DataError where the picture is not there."""
    if not picture.is_file():
        raise DataError(f"{picture} is not there, but boxes of it are")
    own = np.array(boxes, np.float32).reshape(-1, 6)
    own = own[(own[:, 2] > own[:, 0]) & (own[:, 3] > own[:, 1])]
    return Sample(
        str(picture),
        str(picture.parent),
        file_key(picture),
        partial(read_picture, picture),
        truth_key=text_key(own.tobytes()),
        read_boxes=lambda: own,
    )


def labels_of(names: list[str]) -> tuple[Label, ...]:
    """Labels of named classes, in colours that differ."""
    return tuple(Label(like.id, name, like.colour) for name, like in zip(names, numbered(len(names))))


def pictures_of(path: Path, images: list[dict]) -> Path:
    """The folder of a file's pictures: the first of the usual ones that has the first of them."""
    first = str(images[0]["file_name"])
    split = path.stem.split("_")[-1]
    folders = (path.parent, path.parent / "images", path.parent.parent / split, path.parent.parent / "images" / split)
    for folder in (*folders, path.parent.parent / "images"):
        if (folder / first).is_file():
            return folder
    raise DataError(
        f"the pictures of {path}, such as {first}, are not in " + ", ".join(str(folder) for folder in folders)
    )
