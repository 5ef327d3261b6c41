"""Heads that only say in another way what the backbone says: there is nothing to train and no file to load."""

from __future__ import annotations

from dataclasses import replace

from dino_perception.models.backbone import Backbone
from dino_perception.models.heads.base import Head, HeadSpec


class WeightlessHead(Head):
    """A head without weights on the last layer's features, where its taps are not given."""

    def __init__(self, spec: HeadSpec):
        super().__init__(spec)
        self.trained = True

    @classmethod
    def needs_weights(cls) -> bool:
        return False

    @classmethod
    def complete(cls, spec: HeadSpec, backbone: Backbone) -> HeadSpec:
        return replace(spec, taps=spec.taps or (backbone.spec.depth - 1,), labels=(), depth_range=None)
