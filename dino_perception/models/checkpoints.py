"""One loader for every file that backbone weights come in."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dino_perception.models import catalog, files, layouts, weights_folder
from dino_perception.models.backbone import Backbone, hash_of
from dino_perception.models.catalog import BackboneSpec
from dino_perception.models.convnext import ConvNext
from dino_perception.models.dinov2 import DinoV2
from dino_perception.models.vit import VisionTransformer

BUNDLED = Path(__file__).parent / "weights"
CLASSES = {"dinov3-vit": VisionTransformer, "dinov3-convnext": ConvNext, "dinov2-vit": DinoV2}


class CheckpointError(ValueError):
    """Backbone weights cannot be loaded; the message says which, why and what is accepted."""


def load_backbone(backbone_id: str, weights: str | Path = "") -> Backbone:
    """The backbone with its weights: float32, in eval mode, without gradients.

    `weights` is a file or folder in the original, Hugging Face, timm or this package's format, or a training
    checkpoint that contains one of these; which it is, is found from its tensors. `backbone_id` "auto" takes the
    architecture from the file as well. Without `weights` it is the file bundled with the package, else the released one
    in the weights folder or, where there is none, a random initialisation from a fixed seed (`trained` is then False). Raises CheckpointError.
    """
    if backbone_id == "auto":
        if not weights:
            raise CheckpointError("backbone 'auto' needs a weights file to find the architecture from")
        spec = None
    else:
        try:
            spec = catalog.get(backbone_id)
        except catalog.UnknownBackbone as error:
            raise CheckpointError(str(error)) from None
    bundled = BUNDLED / f"{backbone_id}.safetensors"
    if not weights:
        weights = bundled if bundled.is_file() else weights_folder.backbone_file(spec)
    return _load(spec, Path(weights).expanduser()) if weights else untrained(spec)


def untrained(spec: BackboneSpec) -> Backbone:
    """The backbone with random weights from a fixed seed, see `Backbone.draw`."""
    with torch.device("meta"):  # torch's own start would cost time and move everybody's random numbers
        backbone = CLASSES[spec.family](spec)
    backbone.to_empty(device="cpu")
    if spec.family == "dinov3-vit":
        backbone.periods.copy_(VisionTransformer.default_periods(spec))
    backbone.draw()
    return backbone.eval().requires_grad_(False)


def save_backbone(backbone: Backbone, path: str | Path, *, dtype: torch.dtype = torch.float32, **notes: Any) -> None:
    """Write this package's own file; `notes` (plain data) go into its metadata.

    With a narrower `dtype` the weights are rounded, and the file's hash is that of the rounded ones: train heads on
    the file as loaded, not on `backbone`.
    """
    parameters = {name: p.detach().to(dtype) for name, p in backbone.named_parameters()}
    files.write(
        path,
        {**backbone.state_dict(), **parameters},
        {
            "content": "backbone",
            "backbone": backbone.spec.id,
            "weights_hash": hash_of(parameters),
            "offset": backbone.spec.offset,
            "antialias": backbone.spec.antialias,
            "notes": notes,
        },
    )


def _load(spec: BackboneSpec | None, path: Path) -> Backbone:
    try:
        content, metadata = files.read(path)
    except files.FileError as error:
        raise CheckpointError(str(error)) from None
    if metadata.get("content") == "head":
        raise CheckpointError(f"{path} holds a head, not a backbone; give it as the weights of that head")
    try:
        return _loaded(spec, path, content, metadata)
    except CheckpointError:
        raise
    except (
        Exception
    ) as error:  # a tensor of an impossible shape or kind, a name that is no text: a file may hold anything
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise CheckpointError(f"{path} holds tensors that are cut as no backbone's are ({reason})") from None


def _loaded(spec: BackboneSpec | None, path: Path, content: Any, metadata: Mapping[str, Any]) -> Backbone:
    if metadata.get("content") == "backbone":
        backbone = assemble(*_own(spec, path, content, metadata), str(path))
        if metadata.get("weights_hash") != backbone.weights_hash:
            raise CheckpointError(
                f"{path} is damaged: its weights do not have the hash {metadata.get('weights_hash')} that it states"
            )
        return backbone
    return assemble(*_foreign(spec, path, content), str(path))


def assemble(spec: BackboneSpec, own: Mapping[str, Tensor], source: str) -> Backbone:
    """The backbone of `spec` made of tensors under this package's names; `source` is what an error calls them.
    Raises CheckpointError."""
    with torch.device("meta"):
        backbone = CLASSES[spec.family](spec)
    own = {name: t.to(torch.float32).contiguous() for name, t in own.items()}
    if spec.family == "dinov3-vit":
        own.setdefault("periods", VisionTransformer.default_periods(spec))
    if problem := files.mismatch(backbone.state_dict(), own):
        raise CheckpointError(f"{source} does not fit {spec.id}: {problem}")
    if bad := [name for name, t in own.items() if not torch.isfinite(t.sum())]:
        raise CheckpointError(f"{source} holds values that are not finite in {bad[0]}; it is damaged")
    backbone.load_state_dict(own, assign=True)
    backbone.trained = True
    return backbone.eval().requires_grad_(False)


def _own(
    spec: BackboneSpec | None, path: Path, tensors: dict[str, Tensor], metadata: Mapping[str, Any]
) -> tuple[BackboneSpec, dict[str, Tensor]]:
    try:
        stated = catalog.get(str(metadata["backbone"]))
        offset, antialias = metadata["offset"], metadata["antialias"]
        if type(offset) not in (int, float) or not abs(offset) <= 1 or type(antialias) is not bool:
            raise CheckpointError(f"{path} states the offset {offset!r} and antialias {antialias!r}, which cannot be")
        stated = replace(stated, offset=offset, antialias=antialias)
    except catalog.UnknownBackbone as error:
        raise CheckpointError(f"{path} is from another version of this package: {error}") from None
    except KeyError as error:
        raise CheckpointError(f"{path} does not describe its backbone completely: {error} is missing") from None
    if spec and spec.id != stated.id:
        raise CheckpointError(f"{path} holds {stated.id}, not {spec.id}")
    return stated, tensors


def _foreign(spec: BackboneSpec | None, path: Path, content: Any) -> tuple[BackboneSpec, dict[str, Tensor]]:
    found = identify(content, str(path))
    fitting = [s for s in map(catalog.get, catalog.all_ids()) if found.fits(s)]
    stated = _normalisation(found, path, spec)
    if spec is None:
        spec = _only(found, [s for s in fitting if stated in (None, s.normalisation)], path)
    if not found.fits(spec):
        names = " or ".join(s.id for s in fitting)
        raise CheckpointError(f"{path} holds {found}" + (f" ({names})" if names else "") + f", not {spec.id}")
    if stated and stated != spec.normalisation and (stated, spec.normalisation) != (catalog.SATELLITE, catalog.CANOPY):
        other = next((s.id for s in fitting if s.normalisation == stated), "another backbone")
        raise CheckpointError(
            f"{path} belongs to {other}, whose pixels are normalised differently from those of {spec.id}"
        )
    if spec.family == "dinov2-vit" and found.layout != "original":  # each library scales the position table its own way
        spec = replace(spec, offset=0.0, antialias=spec.antialias or found.layout == "timm")
    if found.layout == "own":
        return spec, found.tensors
    own, missing, unexpected = layouts.from_layout(found.tensors, spec, found.layout)
    if problem := files.names(missing, unexpected):
        raise CheckpointError(f"{path} does not fit {spec.id}: {problem}")
    return spec, own


def _only(found: Found, fitting: list[BackboneSpec], path: Path) -> BackboneSpec:
    """The one backbone that a file can be: by its released name, or because nothing else has the shape."""
    fitting = [s for s in fitting if s.file == path.name and s.file] or [s for s in fitting if not s.tuned]
    if not fitting:
        raise CheckpointError(f"{path} holds {found}; no backbone of this package has that shape")
    if len(fitting) > 1:
        raise CheckpointError(f"{path} holds {found}, which may be {' or '.join(s.id for s in fitting)}; say which")
    return fitting[0]


@dataclass(frozen=True)
class Found:
    """What a file's tensors turned out to be."""

    layout: str
    family: str
    dims: tuple[int, ...]
    depths: tuple[int, ...]
    gated: bool
    patch: int
    registers: int
    tensors: Mapping[str, Tensor]

    def __str__(self) -> str:
        kind = {"dinov3-vit": "a DINOv3 ViT", "dinov2-vit": "a DINOv2 ViT", "dinov3-convnext": "a ConvNeXt"}[
            self.family
        ]
        if self.family == "dinov3-convnext":
            return f"{kind} of depths {list(self.depths)} and widths {list(self.dims)}"
        return (
            f"{kind} with {self.depths[0]} layers of {self.dims[0]} channels, patch {self.patch}, "
            f"{self.registers} registers{', SwiGLU' if self.gated else ''}"
        )

    def fits(self, spec: BackboneSpec) -> bool:
        same = (self.family, self.dims, self.depths) == (spec.family, spec.dims, spec.depths)
        return same and (
            spec.convolutional or (self.gated, self.patch, self.registers) == (spec.gated, spec.patch, spec.registers)
        )


# A tensor that every file of a layout has, and a pattern on the remaining names that tells the family.
_ANCHORS = (
    ("embeddings.patch_embeddings.projection.weight", "huggingface", "dinov2-vit"),
    ("embeddings.patch_embeddings.weight", "huggingface", "dinov3-vit"),
    ("stages.0.downsample_layers.0.weight", "huggingface", "dinov3-convnext"),
    ("patch_embed.proj.weight", "", ""),  # original or timm, DINOv2 or DINOv3
    ("downsample_layers.0.0.weight", "original", "dinov3-convnext"),
    ("stem.0.weight", "timm", "dinov3-convnext"),
    ("stages.0.entry.conv.weight", "own", "dinov3-convnext"),
    ("patch.weight", "own", ""),
)


def identify(content: Any, source: str) -> Found:
    """Which architecture and layout a file's content is, whatever wraps it; `source` is what an error calls it.
    Raises CheckpointError."""
    tensors = dict(_flat(content))
    for anchor, layout, family in _ANCHORS:
        prefixes = {name[: -len(anchor)] for name in tensors if name == anchor or name.endswith("." + anchor)}
        if prefixes:
            break
    else:
        some = ", ".join(list(tensors)[:3]) or "none"
        raise CheckpointError(f"{source} holds no backbone that this package knows; its first tensors are: {some}")
    # A training checkpoint holds several: the averaged teacher is the one to use.
    prefix = min(prefixes, key=lambda p: ("teacher" not in p, "ema" not in p, "student" in p, len(p), p))
    if (layout, family) == ("huggingface", "dinov3-convnext"):
        prefix = prefix.removesuffix("model.")  # the final norm is outside `model`
    tensors = {name[len(prefix) :]: t for name, t in tensors.items() if name.startswith(prefix)}
    if layout == "huggingface":
        tensors = dict(_hub_names(tensors, family))
    if not family:
        if layout == "own":
            family = "dinov2-vit" if "position" in tensors else "dinov3-vit"
        elif "pos_embed" in tensors:
            family, layout = "dinov2-vit", "original" if "mask_token" in tensors else "timm"
        else:
            family, layout = "dinov3-vit", "original" if "storage_tokens" in tensors else "timm"
    return _measure(layout, family, tensors)


def _measure(layout: str, family: str, tensors: dict[str, Tensor]) -> Found:
    if family == "dinov3-convnext":
        dims, depths = [], []
        for stage in range(4):
            pattern = re.compile(rf"stages\.{stage}\.(?:layers\.|blocks\.)?(\d+)\.gamma")
            blocks = {int(m[1]): name for name in tensors if (m := pattern.fullmatch(name))}
            depths.append(max(blocks, default=-1) + 1)
            dims.append(tensors[blocks[0]].shape[0] if 0 in blocks else 0)
        return Found(layout, family, tuple(dims), tuple(depths), False, 4, 0, tensors)
    blocks = [int(m[1]) for name in tensors if (m := re.match(r"(?:blocks|(?:encoder\.)?layer)\.(\d+)\.", name))]
    first = re.compile(r"(embeddings\.)?patch\w*(\.proj|\.projection)?\.weight")
    patch = tensors[next(n for n in tensors if first.fullmatch(n))]
    register = next(
        (
            t
            for n, t in tensors.items()
            if n.rsplit(".", 1)[-1] in ("storage_tokens", "register_tokens", "reg_token", "registers")
        ),
        None,
    )
    gated = any(re.search(r"\.0\.mlp\.(w1|w12|gate_proj|weights_in|fc1_g|gate)\.weight", n) for n in tensors)
    if (layout, family) == ("timm", "dinov2-vit") and patch.shape[0] == 1536:
        gated = True  # fc1 holds gate and up
    return Found(
        layout,
        family,
        (patch.shape[0],),
        (max(blocks, default=-1) + 1,),
        gated,
        patch.shape[-1],
        0 if register is None else register.shape[1],
        tensors,
    )


def _normalisation(found: Found, path: Path, spec: BackboneSpec | None) -> catalog.Normalisation | None:
    """What a file proves about its pixels: a preprocessor beside it, its released name, or the second norm that of all
    released ViT-L only the satellite one has. Web weights used as satellite weights would be silently wrong."""
    folder = path if path.is_dir() else path.parent
    try:
        data = json.loads((folder / "preprocessor_config.json").read_text())
        return catalog.Normalisation(tuple(data["image_mean"]), tuple(data["image_std"]))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        pass
    for entry in map(catalog.get, catalog.all_ids()):
        if entry.file == path.name:
            return entry.normalisation
    released = spec is None or spec.id.startswith("dinov3-")
    if released and found.dims == (1024,) and "local_cls_norm.weight" in found.tensors:
        return catalog.SATELLITE
    return None


def _flat(content: Any, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    if isinstance(content, Tensor):
        yield prefix[:-1], content
    elif isinstance(content, Mapping):
        for name, value in content.items():
            yield from _flat(value, f"{prefix}{str(name).replace('_orig_mod.', '')}.")


def _hub_names(tensors: Mapping[str, Tensor], family: str) -> Iterator[tuple[str, Tensor]]:
    """Hugging Face's library renamed and cut tensors from version 5 on; this gives the names of its hub's files."""
    version4 = (
        ("attention.q_proj", "attention.attention.query"),
        ("attention.k_proj", "attention.attention.key"),
        ("attention.v_proj", "attention.attention.value"),
        ("attention.o_proj", "attention.output.dense"),
        ("mlp.gate_proj", "mlp.weights_in"),
        ("mlp.down_proj", "mlp.weights_out"),
    )
    for name, tensor in tensors.items():
        if family != "dinov2-vit":
            yield re.sub(r"^model\.(layer|stages)\.", r"\1.", name), tensor
            continue
        if ".mlp.up_proj." in name:
            continue  # comes with gate_proj
        if ".mlp.gate_proj." in name:
            tensor = torch.cat([tensor, tensors.get(name.replace("gate_proj", "up_proj"), tensor[:0])])
        for now, was in version4:
            name = name.replace(now, was)
        yield name, tensor
