"""Statistics of the frames that a head is trained or used on: they tell it later which frames it does not know."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from dino_perception.models.domain import FEWEST, Domain, fit, summary
from dino_perception.training.datasets import DataError, Dataset
from dino_perception.training.features import FeatureCache, Item

PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")


def of_items(cache: FeatureCache, data: Dataset, items: Sequence[Item], views: int, tap: int) -> torch.Tensor:
    """(N, 2C) of what was cached of the data's frames, `views` items a sample; `tap` is the place of the head's last."""
    out = []
    for i, item in enumerate(items):
        if i % views == 0:
            image = data.samples[i // views].read_image()
        features = torch.from_numpy(np.load(item.features[tap]).astype(np.float32))
        out.append(summary(cache.image_part(features, image)))
    return torch.stack(out) if out else torch.zeros(0, 0)


def of_pictures(cache: FeatureCache, pictures: Iterable[np.ndarray]) -> torch.Tensor:
    """(N, 2C) of pictures (H, W, 3) uint8; the cache has the head's last tap alone."""
    out = []
    with torch.inference_mode():
        for picture in pictures:
            out.append(summary(cache.image_part(cache.look(picture)[0][0].float().cpu(), picture)))
    return torch.stack(out) if out else torch.zeros(0, 0)


def usual(frames: torch.Tensor, held_out: torch.Tensor, **about: Any) -> Domain | None:
    """The statistics; without enough held-out frames the last quarter of the others is held out. None where all are too
    few to know what is usual."""
    if len(held_out) < FEWEST // 2:
        kept = len(frames) - max(FEWEST // 2, len(frames) // 4)
        frames, held_out = frames[: max(0, kept)], frames[max(0, kept) :]
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
