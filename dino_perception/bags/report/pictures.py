"""Percepts as pictures and as a video, for people."""

from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import numpy as np

from dino_perception import results
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
    """Writes a sheet of every percept as JPEG, named by camera and stamp. What the folder does not take is where
    `results.keep` finds room for it; the replay goes on."""

    def __init__(self, folder: Path, settings: Settings):
        self._folder, self._settings = folder, settings
        self._nowhere = False
        self.notes: list[str] = []

    def __call__(self, percept: Percept, time_ns: int, ms: float) -> None:
        if self._nowhere:
            return
        jpeg = cv2.imencode(".jpg", sheet(percept, self._settings)[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90])[1]
        path = self._folder / f"{percept.frame.camera}_{percept.frame.stamp_ns:020d}.jpg"
        place = results.keep(path, lambda path: path.write_bytes(jpeg.tobytes()), within=self._folder)
        self._nowhere = place is None
        if place != path and not self.notes:
            self.notes = [
                f"pictures: from {path.name} on {f'in {place.parent}' if place else 'lost'}, for want of room"
            ]

    def close(self) -> None:
        pass


class Video:
    """Writes the sheets of one camera as a video at the rate of its frames. The encoder says nothing of a full disk, so
    that the room is looked at: before it is gone the video is closed, and goes on in a place that has some."""

    ROOM = 8 << 20
    """Bytes: a video needs its last ones for its index, without which no player opens it."""

    def __init__(self, path: Path, settings: Settings, rate: float, camera: str):
        self._path, self._settings, self._rate, self._camera = path, settings, rate, camera
        self._writer: cv2.VideoWriter | None = None
        self._places = [path]
        self._size = (0, 0)
        self._written = 0
        self.notes: list[str] = []

    def __call__(self, percept: Percept, time_ns: int, ms: float) -> None:
        if percept.frame.camera != self._camera or not self._places:
            return
        picture = sheet(percept, self._settings)
        while not self._room():
            if not self._elsewhere():
                return
        if self._writer is None:
            self._open((picture.shape[1], picture.shape[0]))
        if (picture.shape[1], picture.shape[0]) != self._size:  # the camera changed its resolution
            picture = cv2.resize(picture, self._size)
        self._writer.write(np.ascontiguousarray(picture[..., ::-1]))
        self._written += 1

    def close(self) -> None:
        """Finish the file, and look whether it holds what was written to it."""
        if self._writer is None:
            return
        self._writer.release()
        self._writer = None
        film = cv2.VideoCapture(str(self._places[-1]))
        held = int(film.get(cv2.CAP_PROP_FRAME_COUNT))
        film.release()
        if held < self._written:
            self.notes.append(
                f"video: {self._places[-1]} holds {held} of {self._written} frames: it could not be written whole"
            )
        self._written = 0

    def _open(self, size: tuple[int, int]) -> None:
        code = {".avi": "MJPG"}.get(self._path.suffix, "mp4v")
        place = self._places[-1]
        place.parent.mkdir(parents=True, exist_ok=True)
        self._size = size
        self._writer = cv2.VideoWriter(str(place), cv2.VideoWriter_fourcc(*code), self._rate, size)
        if not self._writer.isOpened():
            raise BagError(f"the video {place} cannot be written; .mp4 and .avi are accepted", UNWRITABLE)

    def _room(self) -> bool:
        """Whether the present place has room for more."""
        folder = self._places[-1].absolute().parent
        while not folder.is_dir():
            folder = folder.parent
        return shutil.disk_usage(folder).free >= self.ROOM

    def _elsewhere(self) -> bool:
        """Close what there is and take the next place; False when there is none."""
        done, begun = self._places[-1], self._written > 0
        self.close()
        place = next((place for place in results.places(self._path) if place.parent not in self._tried()), None)
        if place is None:
            self._places = []
            self.notes.append(f"video: {done} ends early, for want of room here and elsewhere")
            return False
        self._places.append(place)
        self.notes.append(f"video: no room is left for {done}, {'it goes on in' if begun else 'it is'} {place}")
        return True

    def _tried(self) -> set[Path]:
        return {place.absolute().parent for place in self._places}
