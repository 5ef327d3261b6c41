"""What becomes of answers about a frame that is unlike what a head was trained on."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from dino_perception.models.domain import Domain
from dino_perception.models.heads.base import Head
from dino_perception.perception.frame import IGNORE, Depth, Segmentation
from dino_perception.perception.geometry import Letterbox


class Doubt:
    """Compares frames with the statistics in the heads' files, on the device where the features are."""

    def __init__(self, heads: Mapping[str, Head], device: torch.device):
        self._domains: dict[str, Domain] = {
            kind: head.domain.to(device) for kind, head in heads.items() if head.domain is not None
        }
        self._last = {kind: len(head.spec.taps) - 1 for kind, head in heads.items()}

    def strangeness(self, kind: str, maps: Sequence[torch.Tensor], slot: int, box: Letterbox) -> float | None:
        """How far the frame in that slot is from the head's training, 1 being the farthest that is usual. `maps` are the
        head's own inputs. None where the head's file does not know."""
        domain = self._domains.get(kind)
        if domain is None:
            return None
        features = maps[self._last[kind]][slot]
        rows = max(1, features.shape[1] * box.output_height // box.grid_height)
        columns = max(1, features.shape[2] * box.output_width // box.grid_width)
        return float(domain.distance(features[:, :rows, :columns])) / domain.threshold


def doubted(answer: Any, strangeness: float, ignore: bool) -> Any:
    """The answer with as much confidence as it deserves: all up to 1, a quarter at 2; with `ignore`, nothing beyond 1."""
    if strangeness <= 1:
        return answer
    lowered = None
    if isinstance(answer, (Segmentation, Depth)) and answer.confidence is not None:
        lowered = (answer.confidence * (0 if ignore else strangeness**-2)).astype(np.uint8)
    if isinstance(answer, Segmentation):
        if ignore:
            return dataclasses.replace(answer, mask=np.full_like(answer.mask, IGNORE), confidence=lowered)
        return dataclasses.replace(answer, confidence=lowered)
    if isinstance(answer, Depth):
        metres = np.full_like(answer.metres, np.nan) if ignore else answer.metres
        return dataclasses.replace(answer, metres=metres, confidence=lowered)
    return answer
