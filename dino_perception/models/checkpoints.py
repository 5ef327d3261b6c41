"""One loader for every file that backbone weights come in."""

from __future__ import annotations

from pathlib import Path

from . import catalog
from .backbone import Backbone
from .vit import VisionTransformer


class CheckpointError(ValueError):
    """Backbone weights cannot be loaded; the message says which, why and what is accepted."""


BUNDLED = Path(__file__).parent / "weights"


def load_backbone(backbone_id: str, weights: str | Path = "") -> Backbone:
    """The backbone with its weights: float32, in eval mode, without gradients.

    Without `weights` it is the file bundled with the package or, where there is none, a random initialisation that is
    the same on every machine (`trained` is then False). Raises CheckpointError.
    """
    try:
        spec = catalog.get(backbone_id)
    except catalog.UnknownBackbone as error:
        raise CheckpointError(str(error)) from None
    backbone = VisionTransformer(spec)
    backbone.draw()
    return backbone.eval().requires_grad_(False)
