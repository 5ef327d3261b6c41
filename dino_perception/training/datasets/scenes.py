"""Rendered drives: a folder of .npz files as `dino_perception.training.terrain.scenes` writes them, one drive a file."""

from __future__ import annotations

import functools
import zipfile
from functools import partial
from pathlib import Path

import numpy as np

from dino_perception.models.heads import LABELS, Label
from dino_perception.models.palette import CLASSES
from dino_perception.perception.frame import CameraModel
from dino_perception.training.datasets.base import DataError, Dataset, Sample, file_key, metres
from dino_perception.training.terrain.styles import SKY

ROCK = Label(0, "rock", CLASSES["big_rock"])
LEAST_DIAMETER, FARTHEST, FEWEST_PIXELS = 0.2, 15.0, 24
"""Of the rocks that are to be found: metres, metres of depth, and pixels of 640 x 480 on which they are seen."""
ARRAYS = ("rgb", "depth", "classes", "pose", "intrinsics")


def fits(folder: Path) -> bool:
    return folder.is_dir() and any(folder.glob("*.npz"))


def read(folder: Path, **_) -> Dataset:
    """The drives of such a folder. Besides its five arrays a file may hold `number` (K,), the places of its frames in
    the drive; without it they follow one another. Raises DataError."""
    paths = sorted(folder.glob("*.npz"))
    if not paths:
        raise DataError(f"{folder} holds no rendered drives (.npz)")
    return of_files(paths, f"rendered drives {folder.name}")


def of_files(paths: list[Path], source: str) -> Dataset:
    samples: list[Sample] = []
    for path in paths:
        small = _small_arrays(path)
        pose, (fx, fy, cx, cy) = small["pose"], small["intrinsics"]
        height, width = small["size"]
        rocks = small["rocks"]
        camera = CameraModel(width, height, np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]], np.float64))
        for i, number in enumerate(small["number"]):
            samples.append(
                Sample(
                    f"{path} frame {number}",
                    path.stem,
                    file_key(path, i),
                    partial(_frame, path, "rgb", i),
                    partial(_frame, path, "classes", i),
                    partial(_depth, path, i),
                    camera,
                    np.asarray(pose[i], np.float64),
                    int(number) * 100_000_000,
                    int(number),
                    "sky is far",
                    SKY,
                    None if rocks is None else partial(_rocks, rocks, i, width),
                )
            )
    boxed = all(sample.read_boxes for sample in samples)
    return Dataset(source, tuple(samples), LABELS, continuous=True, box_labels=(ROCK,) if boxed else ())


def _small_arrays(path: Path) -> dict:
    try:
        with np.load(path, allow_pickle=False) as file:
            if missing := [name for name in ARRAYS if name not in file.files]:
                raise DataError(f"{path} has no array '{missing[0]}'; a rendered drive has {', '.join(ARRAYS)}")
            pose = file["pose"]
            rocks = file["rocks"] if "rocks" in file.files else None
            number = file["number"] if "number" in file.files else np.arange(len(pose))
            with file.zip.open("classes.npy") as entry:  # its header tells the size without reading the pixels
                version = np.lib.format.read_magic(entry)
                header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
                shape = header[version](entry)[0]
            return dict(pose=pose, rocks=rocks, number=number, intrinsics=file["intrinsics"], size=shape[1:])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path} cannot be read as a rendered drive ({error})") from None


@functools.lru_cache(maxsize=4)
def _loaded(path: Path, stamp_ns: int) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in ARRAYS[:3]}


def _frame(path: Path, name: str, index: int) -> np.ndarray:
    return _loaded(path, path.stat().st_mtime_ns)[name][index].copy()


def _rocks(rocks: np.ndarray, index: int, width: int) -> np.ndarray:
    """(M, 6) boxes of the rocks that are to be found in one frame."""
    _, left, top, right, bottom, diameter, depth, pixels = rocks[rocks[:, 0] == index].T
    wanted = (diameter >= LEAST_DIAMETER) & (depth <= FARTHEST) & (pixels >= FEWEST_PIXELS * (width / 640) ** 2)
    return np.stack([left, top, right, bottom, np.zeros_like(left), depth], axis=1)[wanted].astype(np.float32)


def _depth(path: Path, index: int) -> np.ndarray:
    return metres(_frame(path, "depth", index))
