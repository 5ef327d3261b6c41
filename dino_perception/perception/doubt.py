"""What becomes of answers about a frame that is unlike what a head was trained on."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from dino_perception.models.domain import Domain, summary
from dino_perception.models.heads.base import Head
from dino_perception.perception.frame import IGNORE, Answer, Depth, Segmentation
from dino_perception.perception.geometry import Letterbox


class Doubt:
    """Compares frames with the statistics in the heads' files, on the device where the features are."""

    def __init__(self, heads: Mapping[str, Head], places: Mapping[str, Sequence[int]], device: torch.device):
        """`places` says for each head which of the pass's maps it reads."""
        known = {kind: head for kind, head in heads.items() if head.domain is not None}
        self._domains: dict[str, Domain] = {kind: head.domain.to(device) for kind, head in known.items()}
        self._read = {kind: places[kind][len(head.spec.taps) - 1] for kind, head in known.items()}

    def strangeness(
        self, maps: Sequence[torch.Tensor], chosen: Mapping[str, Sequence[int]], boxes: Sequence[Letterbox]
    ) -> dict[str, dict[int, torch.Tensor]]:
        """How far each frame is from its heads' training, by head and slot; 1 is the farthest that is usual. Tensors (),
        since reading them would wait for a GPU. Heads whose file does not know are left out."""
        seen: dict[tuple[int, int], torch.Tensor] = {}
        found: dict[str, dict[int, torch.Tensor]] = {}
        for kind, domain in self._domains.items():
            features = maps[self._read[kind]]
            for slot in chosen.get(kind, ()):
                key = self._read[kind], slot
                if key not in seen:
                    box = boxes[slot]
                    rows = max(1, features.shape[2] * box.output_height // box.grid_height)
                    columns = max(1, features.shape[3] * box.output_width // box.grid_width)
                    seen[key] = summary(features[slot, :, :rows, :columns])
                found.setdefault(kind, {})[slot] = domain.distances(seen[key][None])[0] / domain.threshold
        return found


def belief(strangeness: float) -> float:
    """The share of its confidence that an answer keeps: all up to 1, a quarter at 2."""
    return max(1.0, strangeness) ** -2


def doubted(answer: Any, strangeness: float, ignore: bool) -> Any:
    """The answer with as much confidence as it deserves (`belief`); with `ignore`, nothing beyond 1."""
    if strangeness <= 1:
        return answer
    lowered = None
    if isinstance(answer, (Segmentation, Depth)) and answer.confidence is not None:
        lowered = (answer.confidence * (0 if ignore else belief(strangeness))).astype(np.uint8)
    if isinstance(answer, Segmentation):
        if ignore:
            return dataclasses.replace(answer, mask=np.full_like(answer.mask, IGNORE), confidence=lowered)
        return dataclasses.replace(answer, confidence=lowered)
    if isinstance(answer, Depth):
        metres = np.full_like(answer.metres, np.nan) if ignore else answer.metres
        return dataclasses.replace(answer, metres=metres, confidence=lowered)
    if isinstance(answer, Answer):
        boxes = {
            o.name: _doubted_boxes(answer[o.name], strangeness, ignore) for o in answer.outputs if o.meaning == "boxes"
        }
        return dataclasses.replace(answer, arrays={**answer.arrays, **boxes}) if boxes else answer
    return answer


def _doubted_boxes(boxes: np.ndarray, strangeness: float, ignore: bool) -> np.ndarray:
    lowered = boxes.copy()
    lowered[:, 4] *= belief(strangeness)
    return lowered[:0] if ignore else lowered
