"""From a head's arrays, on the engine's device and on the whole padded input, to what a percept says about the image."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from dino_perception.models.heads.base import HeadSpec
from dino_perception.models.label_sets import Label
from dino_perception.models.outputs import ON_GRID, Output
from dino_perception.perception.frame import ANSWERS, Answer
from dino_perception.perception.geometry import Letterbox
from dino_perception.perception.settings import HeadSettings


def answer(
    spec: HeadSpec, outputs: Sequence[Output], arrays: Sequence[torch.Tensor], box: Letterbox, settings: HeadSettings
) -> Any:
    """The answer of a head about one frame, as memory of its own on the host. `arrays` have no batch axis."""
    kind = spec.kind
    own = {o.name: _KEPT.get(o.meaning, _whole)(t, box) for o, t in zip(outputs, arrays)}
    if spec.worth:
        worth = np.array(spec.worth, np.uint8)
        own.update({o.name: worth[own[o.name]] for o in outputs if o.meaning == "levels"})
    least = getattr(settings, "min_score", 0.0) or spec.options.get("least", 0.0)
    for output in outputs:
        if output.meaning == "boxes":
            found = own[output.name]
            own[output.name] = found[found[:, 4] >= least][: getattr(settings, "max_boxes", None)]
    labels = {"labels": labels_of(spec)} if spec.labels else {}
    if kind in ANSWERS:
        return ANSWERS[kind](**own, **labels)
    return Answer(own, tuple(outputs), model=f"{spec.backbone} {spec.backbone_hash} {spec.kind} {spec.arch}", **labels)


def labels_of(spec: HeadSpec | None) -> tuple[Label, ...]:
    """The classes that a head knows."""
    return tuple(spec.labels) if spec else ()


def _whole(array: torch.Tensor, box: Letterbox) -> np.ndarray:
    return array.to("cpu", copy=True).contiguous().numpy()


def _image_part(grid: torch.Tensor, box: Letterbox) -> np.ndarray:
    return box.crop(grid).to("cpu", copy=True).contiguous().numpy()


def _boxes(array: torch.Tensor, box: Letterbox) -> np.ndarray:
    """Those that there are, in pixels of the image and cut to it; what lies on the padding is none."""
    found = _whole(array, box)
    found = found[found[:, 4] > 0]
    found[:, :4] = box.from_input(found[:, :4].reshape(-1, 2)).reshape(-1, 4)
    for corner in (0, 2):
        found[:, corner] = found[:, corner].clip(-0.5, box.image_width - 0.5)
        found[:, corner + 1] = found[:, corner + 1].clip(-0.5, box.image_height - 0.5)
    return found[(found[:, 2] > found[:, 0]) & (found[:, 3] > found[:, 1])]


_KEPT: Mapping[str, Callable[[torch.Tensor, Letterbox], np.ndarray]] = {
    **{meaning: _image_part for meaning in ON_GRID},
    "boxes": _boxes,
}
