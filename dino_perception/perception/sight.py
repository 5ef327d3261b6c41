"""A frame on its way through the pass, and what comes out of its first half."""

from __future__ import annotations

from collections.abc import Collection
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import torch

from dino_perception.perception.frame import Frame, Percept
from dino_perception.perception.geometry import Letterbox


@dataclass(frozen=True)
class Sight:
    """One frame that was looked at: `percept` is all that is known at once; `matches` come from another thread."""

    percept: Percept
    matches: Future | None = None

    @property
    def pending(self) -> frozenset[str]:
        """The heads whose answer is still to come."""
        return frozenset() if self.matches is None else frozenset({"correspondences"})


@dataclass
class Asked:
    """A frame on its way through the pass."""

    frame: Frame
    box: Letterbox
    wanted: Collection[str]
    answers: dict[str, Any] = field(default_factory=dict)
    strangeness: dict[str, float] = field(default_factory=dict)
    picture: Future | None = None
    descriptors: torch.Tensor | None = None
    matches: Future | None = None
