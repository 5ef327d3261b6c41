"""The head contract: what a head says about itself, what it computes, and how one is made, loaded and saved.

A head is one file in this folder. It defines a `Head` subclass named in `HEAD`, whose `ARCHES` maps the name of each
architecture to a module that turns feature maps into raw maps; nothing else has to know it.
"""

from __future__ import annotations

import importlib
import pkgutil
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import files
from ..backbone import Backbone
from ..catalog import Normalisation


BUNDLED = Path(__file__).parents[1] / "weights"


class HeadError(ValueError):
    """A head cannot be made or loaded; the message says why and what is accepted."""


@dataclass(frozen=True)
class ClassLabel:
    """A class of a segmentation head: its id in the mask, its name, its overlay colour (RGB, 0..255)."""

    id: int
    name: str
    colour: tuple[int, int, int]


# AI4Mars' four classes and sky. The colours are Okabe and Ito's, which people with any colour vision tell apart.
LABELS = (
    ClassLabel(0, "soil", (230, 159, 0)),
    ClassLabel(1, "bedrock", (0, 158, 115)),
    ClassLabel(2, "sand", (240, 228, 66)),
    ClassLabel(3, "big_rock", (213, 94, 0)),
    ClassLabel(4, "sky", (86, 180, 233)),
)


@dataclass(frozen=True)
class HeadSpec:
    """What travels with a head's weights.

    `taps` are the backbone layers that it reads, all with the final norm, and `channels` their widths. `backbone_hash`
    is `Backbone.weights_hash` of the weights it was trained on. `depth_range` is in metres. `options` are the
    architecture's own numbers. `training` and `metrics` are the trainer's to fill with plain data.
    """

    kind: str
    arch: str
    backbone: str
    backbone_hash: str
    taps: tuple[int, ...]
    channels: tuple[int, ...]
    normalisation: Normalisation
    version: int = 1
    labels: tuple[ClassLabel, ...] = ()
    depth_range: tuple[float, float] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)


class Head(nn.Module):
    """A small network on the maps of one backbone's taps.

    `forward(*features)` takes one map (B, C_i, h_i, w_i) float32 a tap, in the order of `spec.taps`, and returns the
    raw map that a loss is computed on, at the head's own resolution. `reduce` turns it into the final arrays.
    `trained` says whether the weights came from a file.
    """

    KIND = ""
    ARCHES: Mapping[str, type[nn.Module]] = {}

    def __init__(self, spec: HeadSpec):
        super().__init__()
        self.spec = spec
        self.trained = False

    def reduce(self, raw: Tensor, height: int, width: int) -> tuple[Tensor, ...]:
        """The final arrays at `height` x `width` from the raw map."""
        raise NotImplementedError

    def at(self, height: int, width: int) -> FixedHead:
        """The graph features -> final arrays at `height` x `width`, sharing these parameters."""
        return FixedHead(self, height, width)

    @classmethod
    def needs_weights(cls) -> bool:
        """Whether files of this head exist at all."""
        return True

    @classmethod
    def complete(cls, spec: HeadSpec, backbone: Backbone) -> HeadSpec:
        """`spec` with this head's defaults in what the caller left open. Raises HeadError."""
        return spec


class FixedHead(nn.Module):
    """A head at one output size."""

    def __init__(self, head: Head, height: int, width: int):
        super().__init__()
        self.head, self.height, self.width = head, height, width
        self.eval()

    def forward(self, *features: Tensor) -> tuple[Tensor, ...]:
        return self.head.reduce(self.head(*features), self.height, self.width)


def kinds() -> list[str]:
    """The head kinds that exist: the files of this folder that define a head."""
    folder = [str(Path(__file__).parent)]
    return [m.name for m in pkgutil.iter_modules(folder) if hasattr(_module(m.name), "HEAD")]


def create_head(kind: str, backbone: Backbone, arch: str = "", *, labels: Sequence[ClassLabel] = LABELS,
                depth_range: tuple[float, float] | None = None, taps: Sequence[int] | None = None,
                **options: Any) -> Head:
    """An untrained head for `backbone`: float32, in eval mode, drawn from a fixed seed. Raises HeadError.

    `arch` empty takes the kind's first. `labels` (segmentation) and `depth_range` (depth, metres) say what it
    predicts; `taps` are the layers it reads, by default those its architecture is meant for.
    """
    cls = _class(kind)
    arch = arch or next(iter(cls.ARCHES))
    b = backbone.spec
    spec = HeadSpec(kind, arch, b.id, backbone.weights_hash, tuple(taps or ()), (), b.normalisation,
                    labels=tuple(labels), depth_range=depth_range, options=dict(options))
    head = _build(cls, cls.complete(spec, backbone), backbone)
    _draw(head)
    return head


def load_head(kind: str, backbone: Backbone, weights: str | Path = "") -> Head:
    """The head with its weights, checked against `backbone`; float32, eval mode, no gradients. Raises HeadError.

    Without `weights` it is the file bundled for this backbone or, where there is none, an untrained one.
    """
    bundled = BUNDLED / f"{backbone.spec.id}-{kind}.safetensors"
    if weights or (_class(kind).needs_weights() and bundled.is_file()):
        return read_head(kind, backbone, weights or bundled).requires_grad_(False)
    return create_head(kind, backbone).requires_grad_(False)


def read_head(kind: str, backbone: Backbone, path: str | Path) -> Head:
    """The head in a file that `save_head` wrote. Raises HeadError on anything that does not fit `backbone`."""
    cls = _class(kind)
    try:
        tensors, metadata = files.read(path)
    except files.FileError as error:
        raise HeadError(str(error)) from None
    if metadata.get("content") != "head":
        raise HeadError(f"{path} is not a head file of this package")
    spec = spec_from(metadata["spec"], path)
    b = backbone.spec
    for what, has, wants in (("is a head for", spec.kind, kind), ("was trained on the backbone", spec.backbone, b.id),
                             ("has format version", spec.version, HeadSpec.version),
                             ("was trained on backbone weights with hash", spec.backbone_hash, backbone.weights_hash),
                             ("expects pixels normalised with", spec.normalisation, b.normalisation)):
        if has != wants:
            raise HeadError(f"{path} {what} {has}, not {wants}")
    head = _build(cls, spec, backbone)
    if head.spec.channels != spec.channels:
        raise HeadError(f"{path} expects taps with {list(spec.channels)} channels; {b.id} gives {list(head.spec.channels)}")
    if problem := files.mismatch(head.state_dict(), tensors):
        raise HeadError(f"{path} does not fit a {spec.arch} {kind} head: {problem}")
    head.load_state_dict(tensors)
    head.trained = True
    return head


def save_head(head: Head, path: str | Path) -> None:
    """Write the weights with `head.spec` beside them; `dataclasses.replace(head.spec, metrics=...)` first to fill it in."""
    files.write(path, head.state_dict(), {"content": "head", "spec": asdict(head.spec)})


def spec_from(data: Mapping[str, Any], path: str | Path) -> HeadSpec:
    """The spec from a file's metadata. Raises HeadError."""
    try:
        data = dict(data)
        labels = tuple(ClassLabel(int(l["id"]), str(l["name"]), tuple(l["colour"])) for l in data.pop("labels"))
        n = data.pop("normalisation")
        reach = data.pop("depth_range")
        return HeadSpec(**{**data, "taps": tuple(data["taps"]), "channels": tuple(data["channels"])}, labels=labels,
                        normalisation=Normalisation(tuple(n["mean"]), tuple(n["std"])),
                        depth_range=tuple(reach) if reach else None)
    except (KeyError, TypeError, ValueError) as error:
        raise HeadError(f"{path} does not describe its head completely ({error})") from None


def _build(cls: type[Head], spec: HeadSpec, backbone: Backbone) -> Head:
    if spec.arch not in cls.ARCHES:
        raise HeadError(f"there is no {cls.KIND} head '{spec.arch}'; accepted are {', '.join(cls.ARCHES)}")
    depth = backbone.spec.depth
    if not spec.taps or any(not 0 <= tap < depth for tap in spec.taps):
        raise HeadError(f"taps {list(spec.taps)} do not fit {spec.backbone}; accepted are layers 0 to {depth - 1}")
    return cls(replace(spec, channels=tuple(backbone.spec.channels(tap) for tap in spec.taps))).eval()


def _draw(head: Head) -> None:
    generator = torch.Generator().manual_seed(zlib.crc32(f"{head.spec.backbone} {head.spec.kind}".encode()))
    with torch.no_grad():
        for p in head.parameters():
            if p.dim() >= 2:
                p.normal_(0, (2 / p[0].numel()) ** 0.5, generator=generator)
            # norms and biases stay at one and zero


def _class(kind: str) -> type[Head]:
    if kind not in kinds():
        raise HeadError(f"there is no head '{kind}'; accepted are {', '.join(kinds())}")
    return _module(kind).HEAD


def _module(name: str):
    return importlib.import_module(f"{__package__}.{name}") if name != "base" else None
