"""A folder of pictures with masks or depth beside them, named alike.

DATA/images/0001.jpg           any pictures; subfolders are drives
DATA/masks/0001.png            class ids (8 or 16 bits, or a palette), or the labels' colours
DATA/depth/0001.png            16-bit millimetres, 0 unknown; or 0001.npy, metres
DATA/labels.yaml               what the ids mean; without it: 0 soil, 1 bedrock, 2 sand, 3 big_rock, 4 sky
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from dino_perception.training.datasets.base import (
    DataError,
    Dataset,
    Sample,
    file_key,
    read_depth_file,
    read_mask,
    read_picture,
    text_key,
)
from dino_perception.training.datasets.labels import DEFAULT, LabelMap, read_labels

PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")


def fits(folder: Path) -> bool:
    return (folder / "images").is_dir()


def read(folder: Path, *, labels: LabelMap | None = None, partial_labels: bool = False, **_) -> Dataset:
    """The dataset of such a folder. `partial_labels` lets pictures be without a mask or depth.

    Raises DataError: no pictures, a mask without a picture, a picture without a mask (when others have one).
    """
    pictures = files_in(folder / "images", PICTURES)
    if not pictures:
        raise DataError(f"{folder / 'images'} holds no pictures ({', '.join(PICTURES)})")
    masks = files_in(folder / "masks", (".png", ".bmp", ".tif", ".tiff"))
    depths = files_in(folder / "depth", (".png", ".npy"))
    if labels is None:
        labels = read_labels(folder / "labels.yaml") if (folder / "labels.yaml").is_file() else DEFAULT
    for found, what in ((masks, "mask"), (depths, "depth")):
        if lonely := sorted(found.keys() - pictures.keys()):
            raise DataError(
                f"{found[lonely[0]]} is a {what} without a picture of that name in {folder / 'images'}"
                + (f", and so are {len(lonely) - 1} more" if len(lonely) > 1 else "")
            )
        if found and not partial_labels and (missing := sorted(pictures.keys() - found.keys())):
            raise DataError(
                f"{pictures[missing[0]]} has no {what} in {folder / ('masks' if what == 'mask' else what)}"
                + (f", nor have {len(missing) - 1} more" if len(missing) > 1 else "")
                + "; add it, or give --partial to leave such pictures out"
            )
    samples = [
        pair(path, masks.get(name), depths.get(name), labels, str(Path(name).parent)) for name, path in pictures.items()
    ]
    return Dataset(f"folder {folder.name}", tuple(samples), labels.labels if masks else ())


def pair(
    picture: Path, mask: Path | None, depth: Path | None, labels: LabelMap, scene: str, hidden: tuple[Path, ...] = ()
) -> Sample:
    """A sample from files. `hidden` are pictures that are not 0 where the mask does not count."""
    truth = [p for p in (mask, depth, *hidden) if p]
    return Sample(
        str(picture),
        scene,
        file_key(picture),
        partial(read_picture, picture),
        partial(masked_ids, mask, labels, hidden) if mask else None,
        partial(read_depth_file, depth) if depth else None,
        truth_key=text_key(*(file_key(p) for p in truth), labels),
    )


def masked_ids(mask: Path, labels: LabelMap, hidden: tuple[Path, ...]) -> np.ndarray:
    """Label ids (H, W) uint8 of a mask file, IGNORE where one of the `hidden` pictures is not 0. Raises DataError."""
    ids = labels.ids(read_mask(mask), str(mask))
    for path in hidden:
        cover = read_mask(path)
        if cover.shape[:2] != ids.shape:
            raise DataError(
                f"{path} is {cover.shape[1]}x{cover.shape[0]} pixels and {mask} {ids.shape[1]}x{ids.shape[0]}"
            )
        ids[(cover if cover.ndim == 2 else cover.any(axis=2)) != 0] = 255
    return ids


def files_in(folder: Path, endings: tuple[str, ...]) -> dict[str, Path]:
    """Files by name without ending, relative to the folder, in order. Raises DataError for two of one name."""
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")) if folder.is_dir() else ():
        if path.suffix.lower() in endings and path.is_file():
            name = path.relative_to(folder).with_suffix("").as_posix()
            if name in found:
                raise DataError(f"{found[name]} and {path} have the same name; keep one")
            found[name] = path
    return found
