"""What the frozen backbone sees in each frame, computed once and kept on disk.

One file holds one tap of one look at one frame, float16, named by what the frame contains: training another head,
with other classes, on more frames or on part of them, computes only what is not there yet, and an interrupted run goes
on where it stopped. Files are memory-mapped.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from dino_perception.engines import Compiled, build
from dino_perception.models.backbone import Backbone
from dino_perception.models.taps import Tap, outputs, tap
from dino_perception.perception.geometry import Letterbox, letterbox
from dino_perception.perception.preprocess import Preprocessor
from dino_perception.training.datasets import DataError, Dataset, Sample
from dino_perception.training.datasets.base import text_key
from dino_perception.training.looks import Look
from dino_perception.training.tasks import task_of

Progress = Callable[[str, int, int], None]
"""Told what is being done, how much of it is done, and how much there is."""


@dataclass(frozen=True)
class Item:
    """One look at one sample: where its feature maps and its truth lie."""

    features: tuple[Path, ...]
    truth: Path

    def load(self) -> tuple[list[np.ndarray], np.ndarray]:
        """The maps (C, h, w) float16 of each tap and then the CLS tokens (C,) of those that ask, memory-mapped, and the
        truth (H, W)."""
        return [np.load(path, mmap_mode="r") for path in self.features], np.load(self.truth)


class FeatureCache:
    """The feature maps of one backbone at one input size.

    `taps` are the layers wanted, as in `HeadSpec`. Features are computed by the engine that `engine` and `precision` name (see
    `engines.build`), since the head will read what an engine computes. Raises EngineError.
    """

    def __init__(
        self,
        root: Path,
        backbone: Backbone,
        taps: Sequence[int | Tap],
        height: int,
        width: int,
        *,
        engine: str = "auto",
        precision: str = "auto",
        threads: int = 0,
        report: Callable[[str], None] | None = None,
    ):
        self.root, self.backbone, self.taps = Path(root), backbone, tuple(map(tap, taps))
        self.height, self.width = height, width
        options = {"report": report} if report else {}
        module = backbone.at(height, width, self.taps)
        self.engine: Compiled = build(
            module,
            (module.example(1),),
            engine=engine,
            precision=precision,
            threads=threads,
            cache=self.root / "engines",
            name="backbone",
            **options,
        )
        info = self.engine.info
        self.name = f"{backbone.spec.id}-{backbone.weights_hash}-{height}x{width}-{info.engine}-{info.precision}"
        self.folder = self.root / "features" / self.name
        mean = [255 * m for m in backbone.spec.normalisation.mean]
        self._preprocess = Preprocessor(height, width, mean, self.engine.device)

    def items(
        self, data: Dataset, kind: str, views: Sequence[Look], progress: Progress | None = None, truth_stride: int = 2
    ) -> list[Item]:
        """Every look at every sample, view after view within a sample, computing what is missing.

        `kind` is the head that is to be trained, one of `TASKS`. Truth is kept at the input's size divided by
        `truth_stride`, empty (IGNORE, NaN) in the padding. All truth is read before the first feature is computed, so that
        bad files are found early. Raises DataError.
        """
        tell = progress or (lambda *_: None)
        items = [self._item(sample, kind, view, truth_stride) for sample in data.samples for view in views]
        work = [(sample, view) for sample in data.samples for view in views]
        todo = [i for i, item in enumerate(items) if not item.truth.exists()]
        for done, i in enumerate(todo):
            tell("reading labels", done, len(todo))
            self._write_truth(*work[i], kind, items[i].truth, truth_stride)
        todo = [i for i, item in enumerate(items) if not all(path.exists() for path in item.features)]
        self._require_space(len(todo))
        for done, i in enumerate(todo):
            tell("computing features", done, len(todo))
            self._write_features(*work[i], items[i])
        if todo:
            tell("computing features", len(todo), len(todo))
        return items

    def look(self, image: np.ndarray) -> tuple[torch.Tensor, ...]:
        """The backbone's outputs for one picture (H, W, 3) uint8, not kept, valid until the next look."""
        return self.engine(self._preprocess([image], [self.box(image, 2)]))

    def image_part(self, features: torch.Tensor, image: np.ndarray) -> torch.Tensor:
        """A map (C, h, w) without what lies on the padding."""
        box = self.box(image, 2)
        rows = max(1, features.shape[1] * box.output_height // box.grid_height)
        columns = max(1, features.shape[2] * box.output_width // box.grid_width)
        return features[:, :rows, :columns]

    def close(self) -> None:
        self.engine.close()

    def box(self, image: np.ndarray, stride: int) -> Letterbox:
        return letterbox(*image.shape[:2], self.height, self.width, self.height // stride, self.width // stride)

    def bytes_an_item(self) -> int:
        spec = self.backbone.spec
        cells = [
            (self.height // spec.tap_stride(layer)) * (self.width // spec.tap_stride(layer)) if what == "map" else 1
            for what, layer, _ in outputs(self.taps)
        ]
        return sum(2 * spec.channels(layer) * n for n, (_, layer, _) in zip(cells, outputs(self.taps)))

    def _item(self, sample: Sample, kind: str, view: Look, stride: int) -> Item:
        key, truth_key = text_key(sample.key, view), text_key(sample.key, sample.truth_key, view)
        names = [Tap(layer, norm, what == "cls") for what, layer, norm in outputs(self.taps)]
        features = tuple(self.folder / key[:2] / f"{key}-tap{name}.npy" for name in names)
        folder = self.root / "truth" / f"{kind}-{self.height}x{self.width}-{stride}"
        return Item(features, folder / truth_key[:2] / f"{truth_key}.npy")

    def _write_truth(self, sample: Sample, view: Look, kind: str, path: Path, stride: int) -> None:
        image = sample.read_image()
        task = task_of(kind)
        truth = task.learnt(sample, sample.truth(kind, image))
        _store(path, task.placed(truth, view, self.box(image, stride)))

    def _write_features(self, sample: Sample, view: Look, item: Item) -> None:
        image = view.image(sample.read_image())
        pixels = self._preprocess([image], [self.box(image, 2)])
        for path, feature in zip(item.features, self.engine(pixels)):
            values = feature[0].to("cpu", torch.float32).numpy()
            if np.abs(values).max() >= 65504:
                raise DataError(f"{sample.name}: a feature is {np.abs(values).max():.0f}, beyond what float16 holds")
            _store(path, values.astype(np.float16))

    def _require_space(self, count: int) -> None:
        needed = count * self.bytes_an_item()
        self.folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.folder).free
        if needed > 0.95 * free:
            raise DataError(
                f"{count} feature files take {needed / 1e9:.1f} GB and {self.folder} has {free / 1e9:.1f} GB left; "
                "give --cache another disk, or fewer --views or frames"
            )


def _store(path: Path, array: np.ndarray) -> None:
    """Written whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    with part.open("wb") as file:
        np.save(file, array)
    os.replace(part, path)
