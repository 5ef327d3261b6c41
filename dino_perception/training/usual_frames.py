"""Statistics of the frames that a head is trained or used on: they tell it later which frames it does not know."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from dino_perception.models.domain import FEWEST, Domain, fit, summary
from dino_perception.models.heads import Head
from dino_perception.perception.doubt import belief
from dino_perception.training.datasets import DataError, Dataset, Sample
from dino_perception.training.features import FeatureCache, Item
from dino_perception.training.looks import views

PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")

Read = Callable[[], np.ndarray]
"""Gives a picture (H, W, 3) uint8 RGB."""


def of_items(cache: FeatureCache, data: Dataset, items: Sequence[Item], views: int, tap: int) -> torch.Tensor:
    """(N, 2C) of what was cached of the data's frames, `views` items a sample; `tap` is the place of the head's last."""
    out = []
    for i, item in enumerate(items):
        if i % views == 0:
            image = data.samples[i // views].read_image()
        features = torch.from_numpy(np.load(item.features[tap]).astype(np.float32))
        out.append(summary(cache.image_part(features, image)))
    return torch.stack(out) if out else torch.zeros(0, 0)


@dataclass(frozen=True)
class Seen:
    """Pictures as a head sees them: `frames` (N, 2C), and the mean `confidence` (N,), 0..1, NaN for heads that give none."""

    frames: torch.Tensor
    confidence: torch.Tensor

    @classmethod
    def none(cls) -> Seen:
        return cls(torch.zeros(0, 0), torch.zeros(0))

    def strangeness(self, domain: Domain) -> torch.Tensor:
        """(N,), over 1 where a frame is unlike."""
        return domain.distances(self.frames) / domain.threshold

    def after(self, domain: Domain) -> torch.Tensor:
        """Confidence (N,) as it is told with these statistics."""
        return self.confidence * torch.tensor([belief(s) for s in self.strangeness(domain).tolist()])

    def __add__(self, other: Seen) -> Seen:
        parts = [one for one in (self, other) if len(one.frames)] or [self]
        return Seen(torch.cat([p.frames for p in parts]), torch.cat([p.confidence for p in parts]))


class Spectator:
    """Looks at pictures through a backbone and a head; what it saw is kept, so that a second run is quick.

    `cache` has the taps of `head`.
    """

    def __init__(self, cache: FeatureCache, head: Head):
        self._cache, self._head = cache, head
        digest = hashlib.sha256(repr(head.spec.taps).encode())
        for tensor in head.state_dict().values():
            digest.update(tensor.numpy().tobytes())
        self._folder = cache.root / "seen" / f"{cache.name}-{head.spec.kind}-{digest.hexdigest()[:16]}"
        self._graph = head.at(cache.height // 2, cache.width // 2)

    def see(self, reads: Iterable[Read]) -> Seen:
        rows = [self._one(read()) for read in reads]
        if not rows:
            return Seen.none()
        table = torch.from_numpy(np.stack(rows))
        return Seen(table[:, 1:], table[:, 0])

    def _one(self, picture: np.ndarray) -> np.ndarray:
        """(1 + 2C,) float32: the confidence, and the summary."""
        name = hashlib.sha256(repr(picture.shape).encode() + np.ascontiguousarray(picture).tobytes()).hexdigest()[:32]
        path = self._folder / f"{name}.npy"
        if path.exists():
            return np.load(path)
        with torch.inference_mode():
            maps = [m.float().cpu() for m in self._cache.look(picture)]
            frame = summary(self._cache.image_part(maps[len(self._head.spec.taps) - 1][0], picture))
            sure = torch.tensor([torch.nan])
            if "levels" in self._graph.meanings:
                levels = self._graph(*maps)[self._graph.meanings.index("levels")][0].float()
                box = self._cache.box(picture, 2)
                sure = levels[: box.output_height, : box.output_width].mean()[None] / 255
        row = torch.cat([sure, frame]).numpy()
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, row)
        return row


def looks_at(samples: Sequence[Sample], count: int) -> list[Read]:
    """`count` looks at every sample: as it is, mirrored, and from the third on in other light, as in training."""

    def read(sample: Sample, view) -> np.ndarray:
        return view.image(sample.read_image())

    return [partial(read, sample, view) for sample in samples for view in views(count)]


def split(frames: Sequence) -> tuple[Sequence, Sequence]:
    """The frames without their last quarter, and that quarter, which is to be judged by."""
    kept = max(0, len(frames) - max(FEWEST // 2, len(frames) // 4))
    return frames[:kept], frames[kept:]


def usual(frames: torch.Tensor, held_out: torch.Tensor, **about: Any) -> Domain | None:
    """The statistics; without enough held-out frames the last quarter of the others is held out. None where all are too
    few to know what is usual."""
    if len(held_out) < FEWEST // 2:
        frames, held_out = split(frames)
    return fit(frames, held_out, **about) if len(frames) >= FEWEST else None


def pictures_in(folder: Path) -> list[Path]:
    """The picture files below a folder. Raises DataError."""
    found = sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in PICTURES)
    if not found:
        raise DataError(f"{folder} holds no pictures; accepted are {', '.join(PICTURES)}")
    return found


def read(path: Path) -> np.ndarray:
    """(H, W, 3) uint8 RGB. Raises DataError."""
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if image is None:
        raise DataError(f"{path} cannot be read as a picture")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def senseless(likes: Sequence[np.ndarray]) -> dict[str, list[np.ndarray]]:
    """Pictures that no working camera should give, by what they are: of the size of `likes` and, overexposed, with
    their content."""
    shape, random = likes[0].shape, np.random.default_rng(0)
    coarse = [random.integers(0, 256, (shape[0] // 16, shape[1] // 16, 3), np.uint8) for _ in range(10)]
    return {
        "noise": [random.integers(0, 256, shape).astype(np.uint8) for _ in range(10)],
        "coarse noise": [cv2.resize(c, shape[1::-1], interpolation=cv2.INTER_CUBIC) for c in coarse],
        "blank": [np.full(shape, colour, np.uint8) for colour in random.integers(20, 236, (10, 3))],
        "black": [random.integers(0, 4, shape).astype(np.uint8) for _ in range(10)],
        "overexposed": [np.clip(i.astype(np.float32) * 8, 0, 255).astype(np.uint8) for i in likes[:10]],
    }
