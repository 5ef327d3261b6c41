"""The frames an engine is checked on when the user gives none: real-looking pictures, at the engine's size."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch

from dino_perception.engines.base import EngineError

FOLDER = Path(__file__).with_name("pictures")


def parity_inputs(
    example: Sequence[torch.Tensor], pictures: Sequence[str | Path] | None = None
) -> list[tuple[torch.Tensor, ...]]:
    """Inputs shaped like `example`, one tuple a picture.

    A graph of pixels, (B, H, W, 3) uint8, is given the pictures themselves (image files; the bundled ones when None),
    resized; in a batch, each place holds another picture. For a graph of features each input is drawn once from a
    normal distribution, which is what a final LayerNorm leaves. Raises EngineError when a picture cannot be read.
    """
    first = example[0]
    if len(example) == 1 and first.dtype == torch.uint8 and first.ndim == 4 and first.shape[-1] == 3:
        size = (first.shape[2], first.shape[1])
        paths = pictures or sorted(FOLDER.glob("*.jpg"))
        images = [cv2.resize(read(path), size, interpolation=cv2.INTER_AREA) for path in paths]
        return [
            (torch.from_numpy(np.stack([images[(start + i) % len(images)] for i in range(len(first))])),)
            for start in range(len(images))
        ]
    generator = torch.Generator().manual_seed(0)
    return [tuple(torch.randn(t.shape, generator=generator).to(t.dtype) for t in example)]


def read(path: str | Path) -> np.ndarray:
    """A picture file as (H, W, 3) uint8 RGB. Raises EngineError."""
    picture = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if picture is None:
        raise EngineError(f"{path} cannot be read as a picture; give JPEG or PNG files")
    return cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)
