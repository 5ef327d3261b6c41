"""Percepts as pictures and as a video, for people."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from dino_perception.bags.storage.problems import UNWRITABLE, BagError
from dino_perception.perception import drawing
from dino_perception.perception.frame import Percept
from dino_perception.perception.settings import Settings


def tiles(percept: Percept, settings: Settings) -> dict[str, np.ndarray]:
    """Name -> (H, W, 3) uint8 RGB: the image, and an overlay for each head that ran."""
    overlays = {head: drawing.overlay(percept, head, settings) for head in percept.answers()}
    return {"image": percept.frame.image, **overlays}


def sheet(percept: Percept, settings: Settings) -> np.ndarray:
    """All tiles of a percept in two columns, (H, W, 3) uint8 RGB, each as large as the image but at most 640 wide."""
    found = list(tiles(percept, settings).values())
    height, width = found[0].shape[:2]
    scale = min(1.0, 640 / width)
    size = (max(2, round(width * scale) // 2 * 2), max(2, round(height * scale) // 2 * 2))
    found = [
        cv2.resize(tile, size, interpolation=cv2.INTER_AREA if tile.shape[1] > size[0] else cv2.INTER_LINEAR)
        for tile in found
    ]
    if len(found) == 1:
        return found[0]
    if len(found) % 2:
        found.append(np.zeros_like(found[0]))
    return np.concatenate([np.concatenate(found[i : i + 2], axis=1) for i in range(0, len(found), 2)], axis=0)


class PictureFolder:
    """Writes a sheet of every percept as JPEG, named by camera and stamp."""

    def __init__(self, folder: Path, settings: Settings):
        self._folder, self._settings = folder, settings
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BagError(f"the folder {folder} for pictures cannot be made: {error.strerror}", UNWRITABLE) from None

    def __call__(self, percept: Percept, time_ns: int, ms: float) -> None:
        ok, jpeg = cv2.imencode(".jpg", sheet(percept, self._settings)[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90])
        path = self._folder / f"{percept.frame.camera}_{percept.frame.stamp_ns:020d}.jpg"
        try:
            path.write_bytes(jpeg.tobytes() if ok else b"")
        except OSError as error:
            raise BagError(f"{path} cannot be written: {error.strerror}", UNWRITABLE) from None


class Video:
    """Writes the sheets of one camera as a video at the rate of its frames."""

    def __init__(self, path: Path, settings: Settings, rate: float, camera: str):
        self._path, self._settings, self._rate, self._camera = path, settings, rate, camera
        self._writer: cv2.VideoWriter | None = None
        self._size = (0, 0)

    def __call__(self, percept: Percept, time_ns: int, ms: float) -> None:
        if percept.frame.camera != self._camera:
            return
        picture = sheet(percept, self._settings)
        if self._writer is None:
            self._size = (picture.shape[1], picture.shape[0])
            code = {".avi": "MJPG"}.get(self._path.suffix, "mp4v")
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._writer = cv2.VideoWriter(str(self._path), cv2.VideoWriter_fourcc(*code), self._rate, self._size)
            if not self._writer.isOpened():
                raise BagError(f"the video {self._path} cannot be written; .mp4 and .avi are accepted", UNWRITABLE)
        if (picture.shape[1], picture.shape[0]) != self._size:  # the camera changed its resolution
            picture = cv2.resize(picture, self._size)
        self._writer.write(np.ascontiguousarray(picture[..., ::-1]))

    def close(self) -> None:
        if self._writer is not None:
            self._writer.release()
