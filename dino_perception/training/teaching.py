"""A segmentation head from a few shown pictures: centres of each class's patches, without training."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from dino_perception.models.backbone import Backbone
from dino_perception.models.heads import Head, Label, create_head
from dino_perception.models.heads.prototypes import EACH, UNUSED, best_scale, centres_of, slots_for
from dino_perception.models.taps import Tap
from dino_perception.perception.geometry import Letterbox, patch_matrix
from dino_perception.training.datasets import DataError
from dino_perception.training.features import Item

PURE, LEAST = 0.9, 0.25
"""Share of a patch's pixels that must be of a class for the patch to count for it; where a picture has no such patch of a
class, as of a small rock, its best one counts from the smaller share on."""
MOST = 8000
"""Patches of a class that centres are found among, evenly spread over all."""


@dataclass(frozen=True)
class Taught:
    """A head that was taught, the patches that each class was shown, and the share of held-out ones that it tells right,
    by class (NaN without any)."""

    head: Head
    patches: Mapping[str, int]
    told: Mapping[str, float]


def teach(
    backbone: Backbone, items: Sequence[Item], labels: Sequence[Label], *, tap: int = 0, **training: Any
) -> Taught:
    """A head that knows the classes in the truth of `items`, whose features at place `tap` are the backbone's last layer.

    Every other item (of a single one: every other patch) is held out to find how sure the head may be, and then used like
    the rest. A class that was not shown is never told. Raises DataError when nothing was shown.
    """
    return _taught(backbone, [of_item(item, len(labels), tap) for item in items], labels, **training)


def _taught(backbone: Backbone, shown: Sequence[list[Tensor]], labels: Sequence[Label], **training: Any) -> Taught:
    if not any(len(vectors) for frame in shown for vectors in frame):
        raise DataError("the pictures show no patch of any class; label more of them, or larger regions")
    if len(shown) > 1:
        halves = [_together(shown[start::2]) for start in (0, 1)]
    else:
        halves = [[vectors[start::2] for vectors in shown[0]] for start in (0, 1)]
    known = [i for i in range(len(labels)) if len(halves[0][i])]
    first = [centres_of(halves[0][i]) for i in known]
    scale = best_scale(first, [halves[1][i] for i in known])
    told = {labels[k].name: _right(first, i, halves[1][k]) for i, k in enumerate(known)}
    every = _together(shown)
    centres = {i: centres_of(vectors) for i, vectors in enumerate(every) if len(vectors)}
    head = made(backbone, labels, centres, scale)
    head.spec = dataclasses.replace(head.spec, training={"by": "teach", "frames": len(shown), **training})
    return Taught(head, {label.name: len(v) for label, v in zip(labels, every)}, told)


def made(backbone: Backbone, labels: Sequence[Label], centres: Mapping[int, Tensor], scale: float) -> Head:
    """The head of these centres (each, C) by class; classes without any are never told."""
    head = create_head(
        "segmentation", backbone, "prototypes", labels=labels, taps=[backbone.spec.depth - 1], scale=scale,
        slots=slots_for(len(labels)), each=EACH,
    )  # fmt: skip
    for index in range(len(labels)):
        if index in centres:
            head.net.centres[index] = centres[index] * scale
        else:
            head.net.offset[index] = UNUSED
    head.trained = True
    return head.requires_grad_(False)


def of_item(item: Item, classes: int, tap: int = 0) -> list[Tensor]:
    """(N, C) float32 of the patches that show each class in one picture."""
    features, truth = item.load()
    return patches(torch.from_numpy(np.asarray(features[tap], np.float32)), truth, classes)


def patches(features: Tensor, truth: np.ndarray, classes: int) -> list[Tensor]:
    """For each class the patches (N, C) of a map (C, h, w) that show it, by `truth` (H, W) uint8 ids, whole pixels a patch."""
    channels, rows, columns = features.shape
    cells = truth.reshape(rows, truth.shape[0] // rows, columns, truth.shape[1] // columns)
    flat = features.reshape(channels, -1).T
    found = []
    for index in range(classes):
        share = torch.from_numpy((cells == index).mean(axis=(1, 3)).ravel())
        pure = share >= PURE
        if not pure.any() and float(share.max()) >= LEAST:
            pure = share == share.max()
        found.append(flat[pure])
    return found


def shares_of(truth: np.ndarray, classes: int, rows: int, columns: int) -> Tensor:
    """(K, rows, columns) float32: the share of each class among a patch's labelled pixels, 0 where there are none."""
    cells = truth.reshape(rows, truth.shape[0] // rows, columns, truth.shape[1] // columns)
    counts = np.stack([(cells == index).sum(axis=(1, 3)) for index in range(classes)]).astype(np.float32)
    return torch.from_numpy(counts / np.maximum(counts.sum(axis=0), 1))


def made_of(backbone: Backbone, features: Tensor, truth: np.ndarray, labels: Sequence[Label]) -> Head:
    """The head that one frame's features (C, h, w) and truth (H, W) teach."""
    return _taught(backbone, [patches(features, truth, len(labels))], labels).head


def spread_over(grid: np.ndarray, box: Letterbox) -> np.ndarray:
    """Which pixels (H, W) bool of an image lie in patches (h, w) bool of the network's input that are set."""
    return cv2.warpAffine(
        grid.astype(np.uint8), patch_matrix(box, *grid.shape, (1.0, 1.0)), (box.image_width, box.image_height),
        flags=cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_REPLICATE,
    ).astype(bool)  # fmt: skip


def last_tap(backbone: Backbone) -> Tap:
    """What a taught head reads."""
    return Tap(backbone.spec.depth - 1)


def _together(frames: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """The patches of each class in all frames, at most `MOST`."""
    joined = [torch.cat(vectors) for vectors in zip(*frames)]
    return [v if len(v) <= MOST else v[torch.linspace(0, len(v) - 1, MOST).long()] for v in joined]


def _right(centres: Sequence[Tensor], index: int, vectors: Tensor) -> float:
    """The share of a class's patches that its own centres are nearest to."""
    if not len(vectors):
        return float("nan")
    x = torch.nn.functional.normalize(vectors, dim=1)
    return float((torch.stack([(x @ c.T).amax(dim=1) for c in centres], 1).argmax(1) == index).float().mean())
