"""A class shown to a running perceiver: which patches a region means, and what the head knows after it."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dino_perception.models.heads.base import Head
from dino_perception.models.heads.prototypes import UNUSED, alike, centres_of
from dino_perception.models.label_sets import Label, numbered
from dino_perception.models.palette import CLASSES, OTHERS
from dino_perception.perception.geometry import Letterbox, whole_patches

BACKGROUND = "background"
"""The class of everything that was not shown, where a head has one of that name in the first place."""


class TeachError(ValueError):
    """What was shown cannot be learnt; the message says why."""


@dataclass(frozen=True)
class Region:
    """Where a class is in an image, in its pixels: a `box` (left, top, right, bottom), or `points` (x, y) of it."""

    box: tuple[int, int, int, int] | None = None
    points: Sequence[tuple[int, int]] = ()

    def check(self, height: int, width: int) -> None:
        """Raises TeachError when it does not lie in an image of that size."""
        size = f"the image of {width}x{height} pixels"
        if bool(self.box) == bool(self.points):
            raise TeachError("show the class by a box or by points, one of them")
        if self.box:
            left, top, right, bottom = self.box
            if not (0 <= left < right <= width and 0 <= top < bottom <= height):
                raise TeachError(f"the box {left},{top},{right},{bottom} is empty or not within {size}")
        for x, y in self.points:
            if not (0 <= x < width and 0 <= y < height):
                raise TeachError(f"the point {x},{y} is not within {size}")

    def patches(self, features: Tensor, box: Letterbox) -> Tensor:
        """Which patches (h, w) bool of the network's input show the class, by their features (C, h, w); those of padding
        never do."""
        rows, columns = features.shape[1:]
        shown = torch.zeros(rows, columns, dtype=torch.bool)
        inside = whole_patches(box, rows, columns)
        for x, y in self.points or [((self.box[0] + self.box[2] - 1) / 2, (self.box[1] + self.box[3] - 1) / 2)]:
            at = (box.to_input(np.array([x, y])) + 0.5) / [box.input_width / columns, box.input_height / rows]
            shown[min(int(at[1]), inside[0] - 1), min(int(at[0]), inside[1] - 1)] = True
        part = slice(0, inside[0]), slice(0, inside[1])
        if self.points:
            shown[part] |= alike(features[:, part[0], part[1]], shown[part])
            return shown
        left, top, right, bottom = self.box
        low, high = (
            (box.to_input(np.array(c)) + 0.5) / [box.input_width / columns, box.input_height / rows]
            for c in ((left - 0.5, top - 0.5), (right - 0.5, bottom - 0.5))
        )
        y, x = torch.arange(inside[0]) + 0.5, torch.arange(inside[1]) + 0.5
        shown[part] |= ((y >= low[1]) & (y < high[1]))[:, None] & ((x >= low[0]) & (x < high[0]))
        return shown


def can_learn(head: Head | None) -> bool:
    """Whether a head is one that classes can be shown to."""
    return head is not None and head.spec.arch == "prototypes"


def label_of(labels: Sequence[Label], name: str) -> Label:
    """The label of that name, or the one it would get."""
    known = next((label for label in labels if label.name == name), None)
    index = len(labels)
    return known or Label(index, name, CLASSES.get(name) or (*OTHERS, *(n.colour for n in numbered(256)))[index])


def check_name(head: Head, name: str) -> None:
    """Raises TeachError for a class that the head cannot take in."""
    if not (0 < len(name) <= 200 and name.isprintable()) or name == BACKGROUND:
        raise TeachError(f"'{name[:50]}' cannot be the name of a class; accepted is a short text, not '{BACKGROUND}'")
    slots = len(head.net.offset)
    if label_of(head.spec.labels, name).id >= slots:
        raise TeachError(
            f"the head has room for {slots} classes and knows {len(head.spec.labels)}; teach fewer of them"
        )


def learnt(head: Head, features: Tensor, shown: Tensor, name: str, inside: tuple[int, int]) -> Head:
    """The head that also knows the class `name` by the patches `shown` (h, w) of a map (C, h, w), of which the first
    `inside` rows and columns are image. What it took for background and is not shown, the background learns. Patches that
    another class was shown by stay with it. Raises TeachError."""
    check_name(head, name)
    label, made = label_of(head.spec.labels, name), copy.deepcopy(head)
    net = made.net
    with torch.no_grad():
        now = net(features[None])[0].argmax(dim=0)
        untaught = bool((net.offset <= UNUSED / 2).all())
        part = torch.zeros_like(shown)
        part[: inside[0], : inside[1]] = True
        _join(net, label.id, features[:, shown].T)
        if head.spec.labels[0].name == BACKGROUND:
            rest = part & ~shown & (torch.ones_like(shown) if untaught else now == 0)
            if rest.any():
                _join(net, 0, features[:, rest].T)
    labels = (*head.spec.labels, *([label] if label.id == len(head.spec.labels) else []))
    made.spec = dataclasses.replace(head.spec, labels=labels)
    return made


def _join(net, index: int, vectors: Tensor) -> None:
    """The class's centres among these patches and the centres it has, which together count as much."""
    each, weights = net.centres.shape[1], torch.ones(len(vectors))
    if float(net.offset[index]) > UNUSED / 2 and bool(net.centres[index].any()):
        vectors = torch.cat(
            [torch.nn.functional.normalize(net.centres[index], dim=1), torch.nn.functional.normalize(vectors, dim=1)]
        )
        weights = torch.cat([torch.full((each,), len(weights) / each), weights])
    net.centres[index] = centres_of(vectors, each, weights) * net.scale
    net.offset[index] = 0.0
