"""What every dataset is to training and evaluation: a list of samples, and the classes its masks speak of."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from dino_perception.messages.images import MAX_MEGAPIXELS, ImageError, check_picture_size
from dino_perception.messages.picture_files import jpeg_fault, picture_kind
from dino_perception.models.heads import Label
from dino_perception.perception.frame import IGNORE, CameraModel, Frame
from dino_perception.training.tasks import task_of


class DataError(ValueError):
    """Data that cannot be used; the message names the file and says why."""


@dataclass(frozen=True)
class Sample:
    """One frame and what is known about it. Pixels are read when asked for.

    `name` tells a person which frame it is. `scene` is the drive it belongs to and `number` its place there. `key`
    changes whenever its picture does, `truth_key` when its truth does. `read_image` gives (H, W, 3) uint8 RGB;
    `read_classes` (h, w) uint8 ids of the dataset's labels, IGNORE where unlabelled; `read_depth` (h, w) float32
    metres, NaN where unknown. Truth may have another size than the image, but shows the same. `pose` (4, 4) brings
    points of the camera's optical frame into the world of the scene. `read_boxes` gives (M, 6) float32: left, top, right,
    bottom in pixels of the image, id of the dataset's `box_labels`, and depth in metres or NaN. `far_class` is the id of a class that lies beyond every
    depth, as the sky does, for classes of the depth's size.
    """

    name: str
    scene: str
    key: str
    read_image: Callable[[], np.ndarray]
    read_classes: Callable[[], np.ndarray] | None = None
    read_depth: Callable[[], np.ndarray] | None = None
    camera: CameraModel | None = None
    pose: np.ndarray | None = None
    stamp_ns: int = 0
    number: int = 0
    truth_key: str = ""
    far_class: int | None = None
    read_boxes: Callable[[], np.ndarray] | None = None

    def frame(self) -> Frame:
        """The frame as the node would see it."""
        return Frame("camera", self.stamp_ns, "camera_optical_frame", self.read_image(), self.camera)

    def truth(self, kind: str, image: np.ndarray) -> np.ndarray:
        """What a head of that kind (tasks.py) should say about `image`, this sample's picture.

        Raises DataError when there is none or it does not show the same.
        """
        task = task_of(kind)
        read = task.reader(self)
        if read is None:
            raise DataError(f"{self.name} has no {task.truth_name}")
        truth = read()
        if not task.dense:
            return truth
        same_shape(truth, image.shape[:2], f"the {task.truth_name} of {self.name}")
        return truth


@dataclass(frozen=True)
class Dataset:
    """`samples` in the order of their drives; `labels` are empty when there are no masks, `box_labels` when there are no
    boxes.

    `source` tells what it is in one line. `continuous` says that neighbouring samples are neighbouring frames of a
    drive, which look alike. `splits` are the parts that the data itself is divided into: a name and indices of
    samples.
    """

    source: str
    samples: tuple[Sample, ...]
    labels: tuple[Label, ...] = ()
    continuous: bool = False
    splits: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    box_labels: tuple[Label, ...] = ()

    def chosen(self, indices: Sequence[int]) -> Dataset:
        """The dataset of these samples only."""
        return dataclasses.replace(self, samples=tuple(self.samples[i] for i in indices), splits={})

    def part(self, name: str) -> Dataset:
        """One of the parts the data is divided into; all of it when it is not divided."""
        if not self.splits:
            return self
        if name not in self.splits:
            raise DataError(f"{self.source} has no part '{name}'; it has {', '.join(self.splits)}")
        return self.chosen(self.splits[name])

    def scenes(self) -> dict[str, list[int]]:
        """The indices of the samples of each drive, in order."""
        found: dict[str, list[int]] = {}
        for index, sample in enumerate(self.samples):
            found.setdefault(sample.scene, []).append(index)
        return found


def joined(datasets: Sequence[Dataset]) -> Dataset:
    """Several datasets as one. Raises DataError when their classes differ."""
    first = datasets[0]
    if len(datasets) == 1:
        return first
    for other in datasets[1:]:
        for one, two in ((first.labels, other.labels), (first.box_labels, other.box_labels)):
            if one and two and names(one) != names(two):
                raise DataError(
                    f"{first.source} and {other.source} have different classes ({names(one)}; "
                    f"{names(two)}); give both the same --labels"
                )
    samples, splits, start = [], {}, 0
    for number, data in enumerate(datasets):
        samples += [dataclasses.replace(s, scene=f"{number}/{s.scene}") for s in data.samples]
        for name, indices in (data.splits or {"train": range(len(data.samples))}).items():
            splits[name] = (*splits.get(name, ()), *(start + i for i in indices))
        start += len(data.samples)
    divided = any(data.splits for data in datasets)
    return Dataset(
        " + ".join(d.source for d in datasets),
        tuple(samples),
        first.labels or datasets[-1].labels,
        any(d.continuous for d in datasets),
        splits if divided else {},
        first.box_labels or datasets[-1].box_labels,
    )


def names(labels: Sequence[Label]) -> str:
    return ", ".join(label.name for label in labels) or "none"


def file_key(path: Path, *more: Any) -> str:
    """A key of a file's content, cheaply: its path, size and time of change, and whatever else decides what is read."""
    stat = path.stat()
    return text_key(str(path.resolve()), stat.st_size, stat.st_mtime_ns, *more)


def text_key(*parts: Any) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:24]


def read_picture(path: Path) -> np.ndarray:
    """(H, W, 3) uint8 RGB of an image file. Raises DataError."""
    picture = _decoded(path, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    return cv2.cvtColor(picture, cv2.COLOR_BGR2RGB, picture)


def _decoded(path: Path, flags: int) -> np.ndarray:
    """An image file by OpenCV, all of it, and its size read first: a few kilobytes may decode to gigabytes."""
    try:
        data = np.fromfile(path, np.uint8)
        kind = picture_kind(data.data)
        if kind:
            check_picture_size(data, MAX_MEGAPIXELS)
        picture = cv2.imdecode(data, flags) if data.size else None
        if picture is None:
            raise DataError(f"{path} cannot be read as a picture")
        decode = lambda octets: cv2.imdecode(np.frombuffer(octets, np.uint8), flags)
        if kind == "JPEG" and (fault := jpeg_fault(data.data, picture, decode)):
            raise DataError(f"{path} is damaged: {fault}")
    except ImageError as error:
        raise DataError(f"{path}: {error}") from None
    except (OSError, cv2.error) as error:
        reason = getattr(error, "strerror", "") or getattr(error, "err", "") or error
        raise DataError(f"{path} cannot be read as a picture: {reason}") from None
    return picture


def read_mask(path: Path) -> np.ndarray:
    """The values of a mask file as they are stored: (H, W) uint8 or uint16 ids, or (H, W, 3) uint8 colours.

    The ids of a picture with a palette are its indices, not its colours. Raises DataError.
    """
    try:
        with Image.open(path) as file:
            values = np.array(file.convert("RGB") if file.mode in ("RGBA", "CMYK", "YCbCr") else file)
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError, Image.DecompressionBombError):
        raise DataError(f"{path} cannot be read as a mask; a PNG of class ids is needed") from None
    if values.dtype == bool:
        values = values.astype(np.uint8)
    if values.dtype == np.int32 and values.min(initial=0) >= 0 and values.max(initial=0) < 2**16:
        values = values.astype(np.uint16)  # how Pillow opens 16-bit PNG
    if (
        values.dtype not in (np.uint8, np.uint16)
        or values.ndim not in (2, 3)
        or (values.ndim == 3 and values.shape[2] != 3)
    ):
        raise DataError(
            f"{path} is a picture of {values.dtype} {values.shape}; a mask has one 8- or 16-bit id a pixel, or RGB"
        )
    return values


def read_depth_file(path: Path) -> np.ndarray:
    """(H, W) float32 metres, NaN where unknown: a .npy of metres, or a 16-bit PNG of millimetres, 0 unknown.

    Raises DataError.
    """
    if path.suffix == ".npy":
        try:
            depth = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError):
            raise DataError(f"{path} cannot be read as a NumPy array") from None
        if depth.ndim != 2 or depth.dtype.kind != "f":
            raise DataError(f"{path} holds {depth.dtype} {depth.shape}; depth is (height, width) floats in metres")
        return metres(depth)
    raw = _decoded(path, cv2.IMREAD_UNCHANGED)
    if raw.dtype != np.uint16 or raw.ndim != 2:
        raise DataError(
            f"{path} is a picture of {raw.dtype} {raw.shape}; depth is a 16-bit PNG of millimetres or a .npy of metres"
        )
    return metres(raw.astype(np.float32) / 1000)


def metres(depth: np.ndarray) -> np.ndarray:
    """float32, with NaN for everything that is no distance: 0, negative, infinite."""
    depth = depth.astype(np.float32)
    with np.errstate(invalid="ignore"):
        return np.where(np.isfinite(depth) & (depth > 0), depth, np.float32(np.nan))


def same_shape(truth: np.ndarray, image_shape: tuple[int, int], what: str) -> None:
    """Raises DataError when truth of one aspect is given for an image of another (more than a pixel off)."""
    height, width = truth.shape[:2]
    if abs(height * image_shape[1] - width * image_shape[0]) > max(image_shape):
        raise DataError(
            f"{what} is {width}x{height} pixels and its image {image_shape[1]}x{image_shape[0]}; "
            "both must show the same"
        )


def to_ids(values: np.ndarray, table: np.ndarray, what: str, accepted: str) -> np.ndarray:
    """Stored mask values as label ids: `table` (65536,) int32 gives each value's id, -1 for one that may not occur.

    Raises DataError that names the values.
    """
    ids = table[values]
    if (ids < 0).any():
        wrong = np.unique(values[ids < 0])
        some = ", ".join(map(str, wrong[:5].tolist())) + (" ..." if len(wrong) > 5 else "")
        raise DataError(f"{what} holds {some}; its labels are {accepted}, and {IGNORE} for unlabelled")
    return ids.astype(np.uint8)
