"""Boxes as YOLO has them: a text file a picture, a line a box (class, x, y, width, height as shares of the picture).

DATA/images/[PART/]0001.jpg    any pictures
DATA/labels/[PART/]0001.txt    their boxes; a picture without a file has none
DATA/data.yaml                 names of the classes (`names`); or classes.txt, a name a line
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from dino_perception.models.yaml_text import YamlError, load_file
from dino_perception.training.datasets.base import DataError, Dataset
from dino_perception.training.datasets.coco import labels_of, sample
from dino_perception.training.datasets.folder import PICTURES, files_in


def fits(folder: Path) -> bool:
    return (folder / "images").is_dir() and (folder / "labels").is_dir() and any((folder / "labels").rglob("*.txt"))


def read(folder: Path, **_) -> Dataset:
    """The dataset of such a folder. Subfolders of images/ named train, val and test are its parts. Raises DataError."""
    pictures, texts = files_in(folder / "images", PICTURES), files_in(folder / "labels", (".txt",))
    texts.pop("classes", None)
    if lonely := sorted(texts.keys() - pictures.keys()):
        raise DataError(f"{texts[lonely[0]]} holds boxes of no picture in {folder / 'images'}")
    names = _names(folder)
    samples, splits = [], {}
    for name, picture in pictures.items():
        part = name.split("/")[0] if "/" in name else ""
        if part in ("train", "val", "valid", "test"):
            splits.setdefault("val" if part == "valid" else part, []).append(len(samples))
        samples.append(sample(picture, _boxes(texts[name], picture, len(names)) if name in texts else []))
    divided = {part: tuple(places) for part, places in splits.items()} if len(splits) > 1 else {}
    return Dataset(f"YOLO {folder.name}", tuple(samples), splits=divided, box_labels=labels_of(names))


def _boxes(text: Path, picture: Path, classes: int) -> list[list[float]]:
    with Image.open(picture) as file:  # its header alone
        width, height = file.size
    rows = []
    for number, line in enumerate(text.read_text().splitlines(), 1):
        if not line.strip():
            continue
        try:
            kind, x, y, w, h = (float(value) for value in line.split())
        except ValueError:
            raise DataError(
                f"{text} line {number} is '{line[:60]}'; a box is five numbers: class, x, y, width, height"
            ) from None
        if kind not in range(classes) or not all(0 <= value <= 1 for value in (x, y, w, h)):
            raise DataError(
                f"{text} line {number} is '{line[:60]}'; accepted are classes 0 to {classes - 1} and shares of the picture from 0 to 1"
            )
        left, top = (x - w / 2) * width - 0.5, (y - h / 2) * height - 0.5
        rows.append([left, top, left + w * width, top + h * height, kind, np.nan])
    return rows


def _names(folder: Path) -> list[str]:
    for listed in (folder / "classes.txt", folder / "labels" / "classes.txt"):
        if listed.is_file():
            return [line.strip() for line in listed.read_text().splitlines() if line.strip()]
    path = next((p for p in (folder / "data.yaml", folder / "dataset.yaml") if p.is_file()), None)
    if path is None:
        raise DataError(f"{folder} has neither data.yaml nor classes.txt, so its classes have no names")
    try:
        names = (load_file(path) or {}).get("names")
    except (OSError, YamlError, AttributeError) as error:
        raise DataError(f"{path} cannot be read: {error}") from None
    if isinstance(names, dict) and sorted(names) == list(range(len(names))):
        names = [names[i] for i in range(len(names))]
    if not isinstance(names, list) or not names:
        raise DataError(f"'names' of {path} is {names!r}; accepted is a list of names")
    return [str(name) for name in names]
