"""How each library names and cuts the same tensors: original DINOv3 and DINOv2 files, Hugging Face's, timm's, and ours.

A layout is a table from our tensor names to pieces of a file's tensors, so that it can be read in both directions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from dino_perception.models.catalog import BackboneSpec

LAYOUTS = ("original", "huggingface", "timm")


@dataclass(frozen=True)
class Piece:
    """Part `index` of `count` equal parts along the first axis of the file's tensor `name`. An optional piece that
    the file lacks is zero."""

    name: str
    index: int = 0
    count: int = 1
    optional: bool = False


ZERO = Piece("", optional=True)  # a piece that no file of this layout has: the bias of the keys


def table(spec: BackboneSpec, layout: str) -> dict[str, tuple[Piece, ...]]:
    """Our name of every tensor of `spec` -> the pieces that make it, joined along the first axis."""
    rows = {"dinov3-vit": _vit3, "dinov2-vit": _vit2, "dinov3-convnext": _convnext}[spec.family](spec, layout)
    return {own: (pieces,) if isinstance(pieces, Piece) else pieces for own, pieces in rows}


def from_layout(
    tensors: Mapping[str, Tensor], spec: BackboneSpec, layout: str
) -> tuple[dict[str, Tensor], list[str], list[str]]:
    """(our tensors, names missing from the file, names in the file that nothing uses)."""
    tensors = _effective_bias(tensors)
    own, missing, used = {}, [], set()
    for name, pieces in table(spec, layout).items():
        used.update(p.name for p in pieces)
        present = {p: tensors[p.name].chunk(p.count)[p.index] for p in pieces if p.name in tensors}
        missing += [p.name for p in pieces if p not in present and not p.optional]
        if present:
            like = next(iter(present.values()))
            parts = [present[p] if p in present else torch.zeros_like(like) for p in pieces]
            own[name] = parts[0] if len(parts) == 1 else torch.cat(parts)
        elif name.endswith("qkv.bias") and all(p.optional for p in pieces):
            own[name] = torch.zeros(3 * spec.dim)
    if spec.family == "dinov2-vit" and "position" in own and "cls" in own:
        own["cls"], own["position"] = _split_position(own["cls"], own["position"])
    unexpected = [name for name in tensors if name not in used and not _ignored(name)]
    return own, sorted(set(missing)), sorted(unexpected)


def to_layout(own: Mapping[str, Tensor], spec: BackboneSpec, layout: str) -> dict[str, Tensor]:
    """The tensors as a file of that layout holds them; what only training needs is left out."""
    own = dict(own)
    if spec.family == "dinov2-vit" and not (layout == "timm" and spec.registers):
        own["position"] = torch.cat([torch.zeros_like(own["position"][:, :1]), own["position"]], dim=1)
    cut: dict[str, dict[int, Tensor]] = {}
    for name, pieces in table(spec, layout).items():
        for piece, part in zip(pieces, own[name].chunk(len(pieces))):
            if piece.name:
                cut.setdefault(piece.name, {})[piece.index] = part
    out = {name: torch.cat([parts[i] for i in sorted(parts)]).clone() for name, parts in cut.items()}
    if layout == "original" and spec.family == "dinov3-vit":
        for name in [n for n in out if n.endswith("attn.qkv.bias")]:
            out[name + "_mask"] = torch.ones(3 * spec.dim)
            out[name + "_mask"][spec.dim : 2 * spec.dim] = 0
    return out


def _vit3(spec: BackboneSpec, layout: str) -> Iterator[tuple[str, Piece | tuple[Piece, ...]]]:
    hf, timm = layout == "huggingface", layout == "timm"
    yield "cls", Piece("embeddings.cls_token" if hf else "cls_token")
    yield "registers", Piece("embeddings.register_tokens" if hf else "reg_token" if timm else "storage_tokens")
    yield from _pair("patch", "embeddings.patch_embeddings" if hf else "patch_embed.proj")
    yield from _pair("norm", "norm")
    if layout == "original":
        yield "periods", Piece("rope_embed.periods", optional=True)
    for i in range(spec.depth):
        b, f = f"blocks.{i}", f"layer.{i}" if hf else f"blocks.{i}"
        yield from _pair(f"{b}.norm1", f"{f}.norm1")
        yield from _pair(f"{b}.norm2", f"{f}.norm2")
        yield from _pair(f"{b}.proj", f"{f}.attention.o_proj" if hf else f"{f}.attn.proj")
        for n in "12":
            gamma = f"layer_scale{n}.lambda1" if hf else f"gamma_{n}" if timm else f"ls{n}.gamma"
            yield f"{b}.scale{n}", Piece(f"{f}.{gamma}")
        if hf:
            yield f"{b}.qkv.weight", tuple(Piece(f"{f}.attention.{n}_proj.weight") for n in "qkv")
        else:
            yield f"{b}.qkv.weight", Piece(f"{f}.attn.qkv.weight")
        if spec.qkv_bias and layout == "original":
            yield f"{b}.qkv.bias", Piece(f"{f}.attn.qkv.bias", optional=True)
        elif spec.qkv_bias:
            q, v = ((f"{f}.attention.{n}_proj.bias" if hf else f"{f}.attn.{n}_bias") for n in "qv")
            yield f"{b}.qkv.bias", (Piece(q, optional=True), ZERO, Piece(v, optional=True))
        names = {
            "original": ("w1", "w2", "w3"),
            "huggingface": ("gate_proj", "up_proj", "down_proj"),
            "timm": ("fc1_g", "fc1_x", "fc2"),
        }[layout]
        if not spec.gated:
            names = ("", "up_proj", "down_proj") if hf else ("", "fc1", "fc2")
        for own, name in zip(("gate", "up", "down"), names):
            if name:
                yield from _pair(f"{b}.mlp.{own}", f"{f}.mlp.{name}")


def _vit2(spec: BackboneSpec, layout: str) -> Iterator[tuple[str, Piece | tuple[Piece, ...]]]:
    hf, timm = layout == "huggingface", layout == "timm"
    yield "cls", Piece("embeddings.cls_token" if hf else "cls_token")
    if spec.registers:
        yield "registers", Piece("embeddings.register_tokens" if hf else "reg_token" if timm else "register_tokens")
    yield "position", Piece("embeddings.position_embeddings" if hf else "pos_embed")
    yield from _pair("patch", "embeddings.patch_embeddings.projection" if hf else "patch_embed.proj")
    yield from _pair("norm", "layernorm" if hf else "norm")
    for i in range(spec.depth):
        b, f = f"blocks.{i}", f"encoder.layer.{i}" if hf else f"blocks.{i}"
        yield from _pair(f"{b}.norm1", f"{f}.norm1")
        yield from _pair(f"{b}.norm2", f"{f}.norm2")
        yield from _pair(f"{b}.proj", f"{f}.attention.output.dense" if hf else f"{f}.attn.proj")
        for n in "12":
            yield f"{b}.scale{n}", Piece(f"{f}.layer_scale{n}.lambda1" if hf else f"{f}.ls{n}.gamma")
        for part in ("weight", "bias"):
            if hf:
                yield (
                    f"{b}.qkv.{part}",
                    tuple(Piece(f"{f}.attention.attention.{n}.{part}") for n in ("query", "key", "value")),
                )
            else:
                yield f"{b}.qkv.{part}", Piece(f"{f}.attn.qkv.{part}")
            if spec.gated:  # gate and up are one tensor, gate first
                joined, down = ("weights_in", "weights_out") if hf else ("fc1", "fc2") if timm else ("w12", "w3")
                yield f"{b}.mlp.gate.{part}", Piece(f"{f}.mlp.{joined}.{part}", 0, 2)
                yield f"{b}.mlp.up.{part}", Piece(f"{f}.mlp.{joined}.{part}", 1, 2)
                yield f"{b}.mlp.down.{part}", Piece(f"{f}.mlp.{down}.{part}")
            else:
                yield f"{b}.mlp.up.{part}", Piece(f"{f}.mlp.fc1.{part}")
                yield f"{b}.mlp.down.{part}", Piece(f"{f}.mlp.fc2.{part}")


def _convnext(spec: BackboneSpec, layout: str) -> Iterator[tuple[str, Piece]]:
    hf, timm = layout == "huggingface", layout == "timm"
    yield from _pair("norm", "layer_norm" if hf else "head.norm" if timm else "norm")
    for i, depth in enumerate(spec.depths):
        down = f"stages.{i}.downsample_layers" if hf else f"downsample_layers.{i}"
        if timm:
            down = f"stages.{i}.downsample" if i else "stem"
        conv, norm = (0, 1) if i == 0 else (1, 0)  # the stem convolves first, the others normalise first
        yield from _pair(f"stages.{i}.entry.conv", f"{down}.{conv}")
        yield from _pair(f"stages.{i}.entry.norm", f"{down}.{norm}")
        for j in range(depth):
            f = f"stages.{i}.{'layers.' if hf else 'blocks.' if timm else ''}{j}"
            names = {
                "original": ("dwconv", "norm", "pwconv1", "pwconv2"),
                "timm": ("conv_dw", "norm", "mlp.fc1", "mlp.fc2"),
                "huggingface": ("depthwise_conv", "layer_norm", "pointwise_conv1", "pointwise_conv2"),
            }[layout]
            for own, name in zip(("conv", "norm", "up", "down"), names):
                yield from _pair(f"stages.{i}.blocks.{j}.{own}", f"{f}.{name}")
            yield f"stages.{i}.blocks.{j}.gamma", Piece(f"{f}.gamma")


def _pair(own: str, name: str) -> Iterator[tuple[str, Piece]]:
    for part in ("weight", "bias"):
        yield f"{own}.{part}", Piece(f"{name}.{part}")


def _effective_bias(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """DINOv3's original files multiply the qkv bias with a mask that is zero for the keys. Released ones hold a mask
    of zeros, and an initialisation fault left NaN in others: both switch the bias off."""
    masks = {name: t for name, t in tensors.items() if name.endswith("attn.qkv.bias_mask")}
    out = {name: t for name, t in tensors.items() if name not in masks}
    for name, mask in masks.items():
        bias = name[: -len("_mask")]
        if bias in out:
            mask = torch.nan_to_num(mask.float(), nan=0.0)
            out[bias] = torch.where(mask == 0, torch.zeros_like(mask), out[bias].float() * mask)
    return out


def _split_position(cls: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
    """DINOv2's table has an entry for the CLS token, which is added to it for good; timm's files with registers come
    without it."""
    side = round(position.shape[1] ** 0.5)
    if side * side == position.shape[1]:
        return cls, position
    return cls.float() + position[:, :1].float(), position[:, 1:]


def _ignored(name: str) -> bool:
    """Tensors that only training needs: masked patches, the second final norm, a copy of the norm, distillation."""
    return name.rsplit(".", 1)[-1] in ("mask_token", "inv_freq") or name.startswith(
        ("local_cls_norm.", "norms.3.", "projectors.", "rope.")
    )
