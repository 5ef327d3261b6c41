"""The head contract: what a head says about itself, what it computes, and how one is made, loaded and saved.

A head is one file in this folder. It defines a `Head` subclass named in `HEAD`, whose `ARCHES` maps the name of each
architecture to a module that turns feature maps into raw maps, and whose `OUTPUTS` say what its arrays mean: by that
they are checked, kept, drawn, reported and compared (outputs.py). What it publishes stands in messages/topics.py.
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

from dino_perception.models import domain, files, head_catalog, label_sets, weights_folder
from dino_perception.models.backbone import Backbone
from dino_perception.models.catalog import Normalisation
from dino_perception.models.domain import Domain
from dino_perception.models.heads.released import LayoutError, release_from
from dino_perception.models.heads.spec_check import check_spec
from dino_perception.models.label_sets import LABELS, Label
from dino_perception.models.outputs import Output
from dino_perception.models.palette import CLASSES
from dino_perception.models.taps import Tap, tap

BUNDLED = Path(__file__).parents[1] / "weights"


class HeadError(ValueError):
    """A head cannot be made or loaded; the message says why and what is accepted."""


@dataclass(frozen=True)
class HeadSpec:
    """What travels with a head's weights.

    `taps` are the backbone layers that it reads (a layer alone is that with the final norm and without the CLS token),
    and `channels` their widths. `backbone_hash` is `Backbone.weights_hash` of the weights it was trained on. `depth_range` is in metres. `options` are the
    architecture's own numbers. `worth` says what each of the 256 levels of the network's own confidence was found to be
    worth, 0 to 255; () takes them as they are. `training` and `metrics` are the trainer's to fill with plain data.
    """

    kind: str
    arch: str
    backbone: str
    backbone_hash: str
    taps: tuple[Tap, ...]
    channels: tuple[int, ...]
    normalisation: Normalisation
    version: int = 1
    labels: tuple[Label, ...] = ()
    depth_range: tuple[float, float] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    worth: tuple[int, ...] = ()
    training: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        object.__setattr__(self, "taps", tuple(map(tap, self.taps)))


class Head(nn.Module):
    """A small network on the maps of one backbone's taps.

    `forward(*features)` takes one map (B, C_i, h_i, w_i) float32 a tap, in the order of `spec.taps`, then the CLS token
    (B, C_i) of each tap that asks for it, and returns the raw map that a loss is computed on, at the head's own resolution. `reduce` turns it into the final arrays.
    `trained` says whether the weights came from a file.
    """

    DERIVED = ("domain",)  # it is no part of the graph
    KIND = ""
    ARCHES: Mapping[str, type[nn.Module]] = {}
    OUTPUTS: tuple[Output, ...] = ()
    """What `reduce` gives, in order."""
    shares = False
    """Whether a graph of it takes, after everything else, the share (B, h, w) float32 of each patch of the first map that is
    image and not padding."""

    def __init__(self, spec: HeadSpec):
        super().__init__()
        self.spec = spec
        self.trained = False
        self.domain: Domain | None = None
        """What the frames looked like that it was trained on, if its file says so."""

    @property
    def state(self) -> tuple[Tensor, ...]:
        """What may change while a graph of this head runs: a graph may take it as inputs after the features, which then
        count instead of the head's own."""
        return ()

    def reduce(self, raw: Tensor, height: int, width: int) -> tuple[Tensor, ...]:
        """The final arrays at `height` x `width` from the raw map."""
        raise NotImplementedError

    def arrays(self, features: Sequence[Tensor], height: int, width: int) -> tuple[Tensor, ...]:
        """All of `OUTPUTS` at `height` x `width`. A head whose network says more than the raw map holds overrides it."""
        return self.reduce(self(*features), height, width)

    def at(self, height: int, width: int) -> FixedHead:
        """The graph features -> final arrays at `height` x `width`, sharing these parameters, put in eval mode."""
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

    @property
    def meanings(self) -> tuple[str, ...]:
        """What each output means (outputs.py)."""
        return tuple(output.meaning for output in self.head.OUTPUTS)

    def forward(self, *features: Tensor) -> tuple[Tensor, ...]:
        return self.head.arrays(features, self.height, self.width)


def kinds() -> list[str]:
    """The head kinds that exist: the files of this folder that define a head."""
    folder = [str(Path(__file__).parent)]
    return [m.name for m in pkgutil.iter_modules(folder) if hasattr(_module(m.name), "HEAD")]


def create_head(
    kind: str,
    backbone: Backbone,
    arch: str = "",
    *,
    labels: Sequence[Label] = LABELS,
    depth_range: tuple[float, float] | None = None,
    taps: Sequence[int | Tap] | None = None,
    **options: Any,
) -> Head:
    """An untrained head for `backbone`: float32, in eval mode, drawn from a fixed seed. Raises HeadError.

    `arch` empty takes the kind's first. `labels` (segmentation) and `depth_range` (depth, metres) say what it
    predicts; `taps` are the layers it reads, by default those its architecture is meant for.
    """
    cls = _class(kind)
    arch = arch or next(iter(cls.ARCHES))
    b = backbone.spec
    spec = HeadSpec(
        kind,
        arch,
        b.id,
        backbone.weights_hash,
        tuple(taps or ()),
        (),
        b.normalisation,
        labels=tuple(labels),
        depth_range=depth_range,
        options=dict(options),
    )
    head = _build(cls, cls.complete(spec, backbone), backbone)
    _draw(head)
    return head


def load_head(
    kind: str,
    backbone: Backbone,
    weights: str | Path = "",
    *,
    labels: Sequence[Label] | None = None,
    depth_range: tuple[float, float] | None = None,
    untrained: bool = False,
) -> Head:
    """The head with its weights, checked against `backbone`; float32, eval mode, no gradients. Raises HeadError.

    Without `weights` it is the file bundled for this backbone or, where there is none, an untrained one. `weights` is a
    file, or the name of a released head in the weights folder (head_catalog.py, weights_folder.py). The file may
    be a head that others released (released.py); as such files do not say so themselves, `labels` name its classes
    (else the catalogue's for a file of that name, else "class_0", ...) and `depth_range` is how far it reaches in metres.
    With `untrained`, a released head that is not here becomes one of its layout with random weights.
    """
    try:
        named = weights_folder.head_file(backbone.spec.id, kind, weights)
    except weights_folder.MissingWeights as error:
        entry = head_catalog.find(backbone.spec.id, str(weights)) if untrained else None
        if entry and entry.task == kind:
            from dino_perception.models.heads.stand_in import stand_in

            return stand_in(entry, backbone).requires_grad_(False)
        raise HeadError(f"{kind}.weights: {error}") from None
    if named and not backbone.trained:
        raise HeadError(
            f"{kind}.weights: '{weights}' needs the released weights of {backbone.spec.id}, which are not in "
            f"{weights_folder.folder()}; fetch them: {weights_folder.command(backbone.spec.id)}"
        )
    weights = named or weights
    bundled = BUNDLED / f"{backbone.spec.id}-{kind}.safetensors"
    if not weights and not (_class(kind).needs_weights() and bundled.is_file()):
        return create_head(kind, backbone, labels=labels or LABELS, depth_range=depth_range).requires_grad_(False)
    path = Path(weights or bundled).expanduser()
    cls = _class(kind)
    try:
        content, metadata = files.read(path)
    except files.FileError as error:
        raise HeadError(str(error)) from None
    usual = None
    if metadata.get("content") == "head":
        spec = spec_from(metadata.get("spec", {}), path)
        tensors = {name: t for name, t in content.items() if not name.startswith("domain.")}
        try:
            of_frames = {name: t for name, t in content.items() if name.startswith("domain.")}
            usual = domain.from_file(of_frames, metadata.get("domain"), spec.channels)
        except domain.DomainError as error:
            raise HeadError(f"{path}: {error}") from None
        _check(spec, kind, backbone, path)
    else:
        spec, tensors = _released(kind, backbone, content, labels, depth_range, path)
    head = _build(cls, cls.complete(spec, backbone), backbone)
    if spec.channels and head.spec.channels != spec.channels:
        raise HeadError(
            f"{path} expects taps with {list(spec.channels)} channels; {spec.backbone} gives {list(head.spec.channels)}"
        )
    if problem := files.mismatch(head.state_dict(), tensors):
        raise HeadError(f"{path} does not fit a {spec.arch} {kind} head: {problem}")
    if bad := [name for name, t in tensors.items() if not torch.isfinite(t.float()).all()]:
        raise HeadError(f"{path} holds values that are not finite in {bad[0]}; it is damaged")
    head.load_state_dict(tensors)
    head.trained, head.domain = True, usual
    return head.requires_grad_(False)


def save_head(head: Head, path: str | Path) -> None:
    """Write the weights with `head.spec` beside them; `head.spec = replace(head.spec, metrics=...)` fills it in."""
    files.put(Path(path), packed_head(head))


def packed_head(head: Head) -> bytes:
    """The content of the file that `save_head` writes."""
    tensors, metadata = head.state_dict(), {"content": "head", "spec": described(head.spec)}
    if head.domain is not None:
        tensors = {**tensors, **head.domain.tensors()}
        metadata["domain"] = head.domain.metadata()
    return files.packed(tensors, metadata)


def described(spec: HeadSpec) -> dict[str, Any]:
    """The spec as plain data, which `spec_from` reads."""
    labels = [
        {**asdict(l), "colour": None if CLASSES.get(l.name) == tuple(l.colour) else l.colour} for l in spec.labels
    ]
    return {**asdict(spec), "taps": [t.plain for t in spec.taps], "labels": labels}


def spec_from(data: Mapping[str, Any], path: str | Path) -> HeadSpec:
    """The spec from a file's metadata. Raises HeadError."""
    try:
        data = dict(data)
        check_spec(data)
        labels = tuple(
            Label(int(l["id"]), str(l["name"]), tuple(l["colour"] or CLASSES[l["name"]])) for l in data.pop("labels")
        )
        n = data.pop("normalisation")
        reach, worth = data.pop("depth_range"), tuple(data.pop("worth", ()))
        return HeadSpec(
            **{**data, "taps": tuple(data["taps"]), "channels": tuple(data["channels"])},
            worth=worth,
            labels=labels,
            normalisation=Normalisation(tuple(n["mean"]), tuple(n["std"])),
            depth_range=tuple(reach) if reach else None,
        )
    except KeyError as error:
        raise HeadError(f"{path} does not describe its head completely: {error} is missing") from None
    except (TypeError, ValueError, AttributeError) as error:
        raise HeadError(f"{path} does not describe its head completely and rightly: {error}") from None


def _check(spec: HeadSpec, kind: str, backbone: Backbone, path: Path) -> None:
    b = backbone.spec
    if spec.kind != kind:
        raise HeadError(f"{path} is a {spec.kind} head, not a {kind} head")
    if spec.version != HeadSpec.version:
        raise HeadError(
            f"{path} has version {spec.version} of the head format; this package reads version {HeadSpec.version}"
        )
    if spec.backbone != b.id:
        raise HeadError(f"{path} was trained on {spec.backbone}, not on {b.id}")
    if spec.backbone_hash != backbone.weights_hash:
        raise HeadError(
            f"{path} was trained on weights of {b.id} with hash {spec.backbone_hash}, and those loaded "
            f"have {backbone.weights_hash}; load the ones it was trained on or train it again"
        )
    if spec.normalisation != b.normalisation:
        raise HeadError(f"{path} expects pixels normalised with {spec.normalisation}, not with {b.normalisation}")


def _released(kind: str, backbone: Backbone, content: Any, labels, depth_range, path: Path):
    """The spec and the state of a head that others released, bound to the backbone that is loaded: such files name
    none. What the catalogue knows of a file of that name must agree."""
    b, entry = backbone.spec, head_catalog.by_file(path.name)
    try:
        found = release_from(content, b)
    except LayoutError as error:
        raise HeadError(f"{path} {error}") from None
    if found is None or found.kind != kind:
        raise HeadError(
            f"{path} holds no {kind} head{f' but a {found.kind} head' if found else ''}; accepted are this package's "
            "head files and the released ones of DINOv2, Depth Anything V2, dinov3_ros and DINOv3's evaluation"
        )
    if entry and entry.backbone != b.id:
        raise HeadError(f"{path} was trained on {entry.backbone}, not on {b.id}")
    if found.backbone and _hash_in(path, b.id) != backbone.weights_hash:
        raise HeadError(f"{path} holds the backbone that it was trained with; load that one by 'weights: {path}'")
    outputs = len(found.tensors["classes.bias" if kind == "detection" else "out.bias"])
    if kind != "depth":
        labels = labels or (entry.labels if entry else label_sets.numbered(outputs))
        if len(labels) != outputs:
            raise HeadError(f"{path} tells {outputs} classes apart; {len(labels)} labels were given")
    else:
        depth_range = depth_range or (entry.depth_range if entry else _RANGES.get(found.by))
        if depth_range is None:
            raise HeadError(
                f"{path} does not say how far its depth reaches; give it the name under which it was released, such as "
                f"{head_catalog.example(b.id, kind)}"
            )
    training = {"by": found.by, **({"data": entry.data} if entry else {})}
    spec = HeadSpec(
        kind, found.arch, b.id, backbone.weights_hash, found.taps, (), b.normalisation,
        labels=tuple(labels or ()), depth_range=depth_range, options=found.options, training=training,
    )  # fmt: skip
    return spec, {f"net.{name}": tensor for name, tensor in found.tensors.items()}


_RANGES = {"DINOv3's evaluation code": (0.001, 10.0), "dinov3_ros": (0.001, 100.0)}
"""Metres: DINOv3's setting for NYUv2; dinov3_ros' head has no limit of its own."""


def _hash_in(path: Path, backbone_id: str) -> str:
    """The hash of the backbone in a file that holds one beside its head."""
    from dino_perception.models.checkpoints import load_backbone

    return load_backbone(backbone_id, path).weights_hash


def _build(cls: type[Head], spec: HeadSpec, backbone: Backbone) -> Head:
    if spec.arch not in cls.ARCHES:
        raise HeadError(f"there is no {cls.KIND} head '{spec.arch}'; accepted are {', '.join(cls.ARCHES)}")
    depth = backbone.spec.depth
    if not spec.taps or any(not 0 <= t.layer < depth for t in spec.taps):
        raise HeadError(
            f"taps {[t.layer for t in spec.taps]} do not fit {spec.backbone}; accepted are layers 0 to {depth - 1}"
        )
    spec = replace(spec, channels=tuple(backbone.spec.channels(t.layer) for t in spec.taps))
    try:
        with torch.random.fork_rng(devices=[]):  # torch's own start would move everybody's random numbers
            return cls(spec).eval()
    except (TypeError, ValueError, RuntimeError, KeyError) as error:
        name = f"{spec.arch} {spec.kind} head"
        raise HeadError(f"the options {dict(spec.options)} do not fit a {name}: {error}") from None


def _draw(head: Head) -> None:
    generator = torch.Generator().manual_seed(zlib.crc32(f"{head.spec.backbone} {head.spec.kind}".encode()))
    with torch.no_grad():
        for name, p in head.named_parameters():
            if p.dim() >= 2:
                p.normal_(0, (2 / p[0].numel()) ** 0.5, generator=generator)
            elif name.endswith("bias"):
                p.zero_()  # torch draws those of convolutions from its own, unseeded stream


def _class(kind: str) -> type[Head]:
    if kind not in kinds():
        raise HeadError(f"there is no head '{kind}'; accepted are {', '.join(kinds())}")
    return _module(kind).HEAD


def _module(name: str):
    return importlib.import_module(f"{__package__}.{name}") if name != "base" else None
