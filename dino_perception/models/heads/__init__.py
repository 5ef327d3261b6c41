"""The heads: one head, one file; `base` states the contract."""

from dino_perception.models.heads.base import (
    LABELS,
    Head,
    HeadError,
    HeadSpec,
    Label,
    create_head,
    kinds,
    load_head,
    packed_head,
    save_head,
)

__all__ = [
    "LABELS",
    "Label",
    "Head",
    "HeadError",
    "HeadSpec",
    "create_head",
    "kinds",
    "load_head",
    "packed_head",
    "save_head",
]
