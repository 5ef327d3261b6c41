"""The one folder where released weights lie: `models --download` fills it, and whoever names a model without a file looks
into it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from dino_perception.models import head_catalog
from dino_perception.models.catalog import BackboneSpec

VARIABLE = "DINO_PERCEPTION_WEIGHTS"


class MissingWeights(ValueError):
    """Weights that were asked for by name are not here; the message says which command fetches them."""


def folder() -> Path:
    """$DINO_PERCEPTION_WEIGHTS, or dino_perception/weights below $XDG_DATA_HOME or ~/.local/share."""
    if given := os.environ.get(VARIABLE):
        return Path(given).expanduser()
    base = os.environ.get("XDG_DATA_HOME") or "~/.local/share"
    return Path(base).expanduser() / "dino_perception" / "weights"


def backbone_file(spec: BackboneSpec) -> Path | None:
    """The file or folder with the backbone's released weights, or None."""
    return next((path for path in _candidates(spec) if path.exists()), None)


def head_file(backbone: str, kind: str, weights: str | Path) -> Path | None:
    """The file that a head's `weights` mean if they are the name of a released head of that backbone, else None. A file
    of that name wins. Raises MissingWeights when the released head is not here."""
    name = str(weights)
    if not name or Path(name).expanduser().exists() or name.endswith((".safetensors", ".pth", ".pt", ".bin")):
        return None
    entry = head_catalog.find(backbone, name)
    if entry is None:
        if "/" in name or not (known := head_catalog.names(backbone, kind)):
            return None
        raise MissingWeights(
            f"there is no file '{name}', and no released {kind} head of {backbone} has that name; its names are "
            f"{', '.join(known)}"
        )
    path = folder() / entry.file
    if not path.is_file():
        raise MissingWeights(f"{entry.file} is not in {folder()}; fetch it: {command(entry.id)}")
    return path


def command(*ids: str) -> str:
    """What a user types to fetch these."""
    return f"dino-perception models --download {' '.join(ids)}"


def _candidates(spec: BackboneSpec) -> Iterator[Path]:
    if spec.file:
        yield folder() / spec.file
    yield folder() / f"{spec.id}.safetensors"
    for repository in (spec.huggingface, spec.timm):
        if repository:
            yield folder() / repository.rpartition("/")[2]
