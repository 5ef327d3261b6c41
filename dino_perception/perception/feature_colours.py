"""The features of a frame as three numbers a patch, to be seen as red, green and blue: their first principal components.

Colours mean something over time only where the basis stays: it is fitted on the first frames of a camera that somebody
watches and then kept, or comes from a file that `dino-perception calibrate features` wrote.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dino_perception.perception.frame import Percept
from dino_perception.perception.geometry import letterbox, whole_patches
from dino_perception.perception.settings import SettingError, Settings

if TYPE_CHECKING:  # torch takes seconds to import
    from dino_perception.models.heads.base import HeadSpec

HEAD, MAP, COMPONENTS = "features", "map", "components"
"""The head, its array, and the array that `coloured` adds: (3, h, w) float32, standard deviations from the mean."""
FRAMES = 8
"""Frames that a camera's basis is fitted on: on the first one alone, for something to see, and once more on them all."""


@dataclass(frozen=True)
class Basis:
    """`mean` (D,) and `components` (D, 3), float32: (x - mean) @ components has variance 1 along each axis (a direction in
    which nothing varies is 0)."""

    mean: np.ndarray
    components: np.ndarray

    def project(self, features: np.ndarray) -> np.ndarray:
        """(3, h, w) float32 from a map (D, h, w)."""
        flat = features.reshape(len(features), -1).astype(np.float32, copy=False)
        return (self.components.T @ (flat - self.mean[:, None])).reshape(3, *features.shape[1:])


class Covariance:
    """Sums over the patches seen so far, from which a basis is fitted at any time."""

    def __init__(self, frames: int = 0, patches: int = 0, total: Any = 0.0, products: Any = 0.0):
        self.frames, self.patches = frames, patches
        self._total, self._products = np.asarray(total, np.float64), np.asarray(products, np.float64)

    def add(self, features: np.ndarray) -> None:
        """Take the patches of a frame's map (D, h, w)."""
        flat = features.reshape(len(features), -1).astype(np.float64)
        self.frames, self.patches = self.frames + 1, self.patches + flat.shape[1]
        self._total = self._total + flat.sum(axis=1)
        self._products = self._products + flat @ flat.T

    def basis(self, like: Basis | None = None) -> Basis:
        """The three directions of largest variance, each divided by its standard deviation. The sign of each is that it
        has in `like`, else such that its largest entry is positive: an eigenvector has none of its own."""
        mean = self._total / self.patches
        values, vectors = np.linalg.eigh(self._products / self.patches - np.outer(mean, mean))
        values, vectors = values[:-4:-1], vectors[:, :-4:-1]
        known = values > 1e-9 * max(values[0], 1e-12)
        scaled = np.where(known, vectors / np.sqrt(np.where(known, values, 1)), 0)
        largest = scaled[np.abs(scaled).argmax(axis=0), range(scaled.shape[1])]
        signs = largest if like is None else (scaled * like.components).sum(axis=0)
        return Basis(mean.astype(np.float32), (scaled * np.where(signs < 0, -1, 1)).astype(np.float32))

    def memory(self) -> dict[str, Any]:
        """What it holds, as plain data."""
        return {
            "frames": self.frames, "patches": self.patches, "total": self._total.tolist(),
            "products": self._products.tolist(),
        }  # fmt: skip


class FeatureColours:
    """Gives every percept with features their components, camera by camera, in the order of the frames.

    `perceiver` has the `specs` of the loaded heads. Raises SettingError for a basis file that cannot be used.
    """

    def __init__(self, settings: Settings, perceiver: Any):
        wanted = settings.head.get(HEAD)
        self._given = read_basis(wanted.basis, perceiver.specs[HEAD]) if wanted and wanted.basis else None
        self._bases: dict[str, Basis] = {}
        self._seen: dict[str, Covariance] = {}

    def coloured(self, percept: Percept, settings: Settings) -> Percept:
        """The percept with `COMPONENTS` beside its features; as it is where it has none."""
        answer = percept.others.get(HEAD)
        if answer is None:
            return percept
        features = answer[MAP]
        basis = self._given or self._fitted(percept, features, settings)
        arrays = {**answer.arrays, COMPONENTS: basis.project(features)}
        return dataclasses.replace(percept, others={**percept.others, HEAD: dataclasses.replace(answer, arrays=arrays)})

    def memory(self) -> dict[str, Any]:
        """What it remembers, as plain data."""
        bases = {camera: [b.mean.tolist(), b.components.tolist()] for camera, b in self._bases.items()}
        return {"bases": bases, "seen": {camera: seen.memory() for camera, seen in self._seen.items()}}

    def recall(self, memory: Mapping[str, Any]) -> None:
        """Take up again what `memory` gave."""
        self._bases = {
            camera: Basis(*(np.array(values, np.float32) for values in arrays))
            for camera, arrays in memory.get("bases", {}).items()
        }
        self._seen = {camera: Covariance(**seen) for camera, seen in memory.get("seen", {}).items()}

    def _fitted(self, percept: Percept, features: np.ndarray, settings: Settings) -> Basis:
        camera, basis = percept.frame.camera, self._bases.get(percept.frame.camera)
        if basis is not None and camera not in self._seen:
            return basis  # settled
        seen = self._seen.setdefault(camera, Covariance())
        box = letterbox(
            *percept.frame.image.shape[:2], settings.input_height, settings.input_width,
            settings.output_height, settings.output_width,
        )  # fmt: skip
        rows, columns = whole_patches(box, *features.shape[1:])
        seen.add(features[:, :rows, :columns])
        if seen.frames in (1, FRAMES):
            self._bases[camera] = seen.basis(basis)
        if seen.frames >= FRAMES:
            del self._seen[camera]
        return self._bases[camera]


def packed_basis(basis: Basis, spec: HeadSpec) -> bytes:
    """The content of a file with a basis for the features head that `spec` describes."""
    import torch

    from dino_perception.models import files

    tensors = {"mean": torch.from_numpy(basis.mean), "components": torch.from_numpy(basis.components)}
    about = {"backbone": spec.backbone, "backbone_hash": spec.backbone_hash, "tap": spec.taps[0].plain}
    return files.packed(tensors, {"content": "basis", **about})


def read_basis(path: str, spec: HeadSpec) -> Basis:
    """The basis in a file, for that head. Raises SettingError."""
    from dino_perception.models import files

    try:
        tensors, about = files.read(path)
    except files.FileError as error:
        raise SettingError(f"'features.basis': {error}") from None
    mean, components = (tensors.get(name) if isinstance(tensors, dict) else None for name in ("mean", "components"))
    if about.get("content") != "basis" or mean is None or components is None:
        raise SettingError(
            f"'features.basis' is '{path}', which holds no basis; make one with: dino-perception calibrate features"
        )
    made_for = about.get("backbone"), about.get("backbone_hash"), about.get("tap")
    if made_for != (spec.backbone, spec.backbone_hash, spec.taps[0].plain):
        raise SettingError(
            f"'features.basis' is '{path}', made for layer {made_for[2]} of {made_for[0]} with hash {made_for[1]}; loaded "
            f"is layer {spec.taps[0].plain} of {spec.backbone} with hash {spec.backbone_hash}"
        )
    width = spec.channels[0]
    if mean.shape != (width,) or components.shape != (width, 3) or not (mean.isfinite().all() and components.isfinite().all()):  # fmt: skip
        raise SettingError(
            f"'features.basis' is '{path}', which is damaged: it has not 1 + 3 finite vectors of {width}"
        )
    return Basis(mean.float().numpy(), components.float().numpy())
