"""What must be the same for a replay to go on: the content of the input and of the weights, the settings, what is written.

Names and places do not count: a recording that was moved is the same recording, and another one under the same name and
of the same size is not.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dino_perception
from dino_perception.bags.storage.reader import BagReader
from dino_perception.models import catalog, weights_folder
from dino_perception.models.heads.base import BUNDLED
from dino_perception.perception.settings import Settings

_WHOLE = 64 << 20
"""Bytes up to which a file of the input is hashed as a whole."""
_SAMPLES, _SAMPLE = 64, 64 << 10
"""The number and the size in bytes of the pieces that are hashed of a larger file; the first and the last are among
them."""
_ELSEWHERE = ("engine_cache", "threads", "autostart", "max_age")
"""Settings that do not change what is written."""


def fingerprint(bag: BagReader, settings: Settings, about: Mapping[str, Any]) -> dict[str, Any]:
    """The parts of a job by name, ready for JSON; `about` are the arguments that decide what is written. It takes the
    same moment for a bag of any length. Raises OSError when a file cannot be read."""
    return {
        "input": _input(bag),
        "weights": weights_of(settings),
        "settings": {
            p.name: p.value
            for p in settings.parameters()
            if p.name not in _ELSEWHERE and p.name.rpartition(".")[2] != "weights"
        },
        "version": dino_perception.__version__,
        **about,
    }


def brief(job: Mapping[str, Any]) -> dict[str, str]:
    """A short hash of each part of a job, for the bag to say what it was made of."""
    return {name: hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16] for name, value in job.items()}


def _input(bag: BagReader) -> list[Any]:
    """The span, the number of messages a topic, and a hash of each file: of all of it, or of the start, the end (where
    the times of all chunks stand in an indexed file) and pieces between."""
    counts = sorted([topic.name, topic.count] for topic in bag.topics.values())
    return [bag.start_ns, bag.end_ns, counts, [_sampled(file) for file in bag.files]]


def _sampled(file: Path) -> str:
    size = file.stat().st_size
    digest = hashlib.sha256(size.to_bytes(8, "little"))
    with open(file, "rb") as opened:
        if size <= _WHOLE:
            _update(digest, opened)
        else:
            for number in range(_SAMPLES):
                opened.seek((size - _SAMPLE) * number // (_SAMPLES - 1))
                digest.update(opened.read(_SAMPLE))
    return digest.hexdigest()


def weights_of(settings: Settings) -> dict[str, str]:
    """A hash of the files that the backbone and each head are loaded from, also where these are named and lie in the
    weights folder; "" for one that has none."""
    found = {"backbone": settings.weights or _backbone_file(settings.backbone)}
    for name in settings.heads:
        given, bundled = settings.head[name].weights, BUNDLED / f"{settings.backbone}-{name}.safetensors"
        try:
            found[name] = weights_folder.head_file(settings.backbone, name, given) or given or bundled
        except weights_folder.MissingWeights:
            found[name] = given
    return {name: _content(Path(file).expanduser()) for name, file in found.items()}


def _backbone_file(backbone: str) -> Path:
    bundled = BUNDLED / f"{backbone}.safetensors"
    if bundled.is_file() or backbone not in catalog.all_ids():
        return bundled
    return weights_folder.backbone_file(catalog.get(backbone)) or bundled


def _content(path: Path) -> str:
    files = sorted(f for f in path.iterdir() if f.is_file()) if path.is_dir() else [path]
    digest, some = hashlib.sha256(), False
    for file in files:
        if file.is_file():
            some = True
            with open(file, "rb") as opened:
                _update(digest, opened)
    return digest.hexdigest() if some else ""


def _update(digest: Any, opened: Any) -> None:
    while piece := opened.read(1 << 20):
        digest.update(piece)
