"""Heads that others released: what their files hold, under this package's names, and which network it belongs to.

A file is told by its tensors' names alone. What they do not say (the range of the depth, the names of the classes) the
catalogue knows by the file's name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from dino_perception.models.catalog import BackboneSpec
from dino_perception.models.heads.dinov3_linear import linear_state
from dino_perception.models.taps import Tap


@dataclass(frozen=True)
class Release:
    """A released head: `tensors` are the state of its network without "net.", `by` says whose layout it is. `backbone`
    holds the tensors of a backbone that was tuned with it and lies in the same file, {} where there is none."""

    kind: str
    arch: str
    by: str
    taps: tuple[Tap, ...]
    tensors: Mapping[str, Tensor]
    options: Mapping[str, Any] = field(default_factory=dict)
    backbone: Mapping[str, Tensor] = field(default_factory=dict)


DINOV3_ROS_DETECTOR: Mapping[str, Any] = dict(up=0, down=2, groups=32, root=False, least=0.2, overlap=0.1)
"""What the detector of dinov3_ros is beside the sizes of its tensors, and how its node is configured."""


CHMV2: Mapping[str, Any] = dict(spacing="mixlog", weighting="bare-relu", bias=True, project=False)
"""What the canopy height model is beside the sizes of its tensors."""


class LayoutError(ValueError):
    """A file is a released head, but not one for this backbone; the message says why."""


def release_from(content: Any, spec: BackboneSpec) -> Release | None:
    """The released head that a file's content is, or None. Raises LayoutError."""
    if not isinstance(content, Mapping):
        return None
    state = content.get("state_dict", content)
    state = {str(n): t for n, t in state.items() if isinstance(t, Tensor)} if isinstance(state, Mapping) else {}
    for anchor, read in _LAYOUTS:
        if anchor in state:
            return read(state, spec)
    for kind in ("segmentation", "depth"):
        if (tensors := linear_state(kind, content)) is not None:
            return _dinov3_linear(kind, {n.removeprefix("net."): t for n, t in tensors.items()}, spec)
    return None


def _dinov3_linear(kind: str, tensors: Mapping[str, Tensor], spec: BackboneSpec) -> Release:
    outputs, width = tensors["out.weight"].shape[:2]
    taps = next((taps for taps in ((spec.depth - 1,), spec.taps) if sum(map(spec.channels, taps)) == width), None)
    if taps is None:
        four = sum(map(spec.channels, spec.taps))
        raise LayoutError(
            f"reads {width} channels; {spec.id} gives {spec.dim} for its last layer and {four} for four "
            "(heads of DINOv3's evaluation that also read the CLS token are not supported)"
        )
    options = {"bins": outputs} if kind == "depth" else {}
    return Release(kind, "linear", "DINOv3's evaluation code", tuple(map(Tap, taps)), tensors, options)


def _dinov2_segmentation(state: Mapping[str, Tensor], spec: BackboneSpec) -> Release:
    """mmseg's BNHead: batch norm and a 1x1 convolution on one or four normed taps."""
    names = (("bn.", "norm."), ("conv_seg.", "out."))
    tensors = _renamed(state, "decode_head.", [(rf"^{re.escape(old)}", new) for old, new in names])
    taps = _taps(tensors["out.weight"].shape[1], spec, 1)
    return Release("segmentation", "linear", "DINOv2", tuple(Tap(layer) for layer in taps), tensors)


def _dinov2_linear_depth(state: Mapping[str, Tensor], spec: BackboneSpec) -> Release:
    """A 1x1 convolution on one or four raw taps, each followed by its CLS token at every patch."""
    tensors = _renamed(state, "decode_head.", [(r"^conv_depth\.", "out.")])
    weight = tensors["out.weight"]
    taps = _taps(weight.shape[1], spec, 2)
    pairs = weight.flatten(1).unflatten(1, (len(taps), 2, -1))
    tensors["out.weight"] = pairs[:, :, 0].flatten(1)[:, :, None, None].contiguous()
    tensors["token.weight"] = pairs[:, :, 1].flatten(1).contiguous()
    taps = tuple(Tap(layer, norm=False, cls=True) for layer in taps)
    options = {"bins": len(weight), "spacing": "linear", "weighting": "relu", "upsample": 4}
    return Release("depth", "linear-cls", "DINOv2", taps, tensors, options)


def _dinov2_dpt(state: Mapping[str, Tensor], spec: BackboneSpec) -> Release:
    units = [(rf"^fuse\.(\d)\.res_conv_unit{n}\.conv{m}\.conv\.", rf"fuse.\1.{own}.{part}.")
             for n, own in ((1, "first"), (2, "second")) for m, part in ((1, "first"), (2, "second"))]  # fmt: skip
    tensors = _renamed(state, "decode_head.", [
        (r"^reassemble_blocks\.readout_projects\.(\d)\.0\.", r"readout.\1."),
        (r"^reassemble_blocks\.projects\.(\d)\.conv\.", r"reduce.\1."),
        *_resizing(r"reassemble_blocks\.resize_layers"),
        (r"^convs\.(\d)\.conv\.", r"level.\1."),
        (r"^fusion_blocks\.", "fuse."), *units, (r"^fuse\.(\d)\.project\.conv\.", r"fuse.\1.out."),
        (r"^project\.conv\.", "project."),
        *((rf"^conv_depth\.head\.{i}\.", f"{own}.") for i, own in ((0, "narrow"), (2, "refine"), (4, "out"))),
    ])  # fmt: skip
    options = {"bins": 0, "weighting": "relu", **_dpt_options(tensors, readout=True, bias=False, project=True, patch=0)}
    return Release("depth", "dpt", "DINOv2", _four(spec, Tap(0, norm=False, cls=True)), tensors, options)


def _chmv2(state: Mapping[str, Tensor], spec: BackboneSpec) -> Release:
    """The canopy height model: DINOv2's DPT on normed taps, with bins."""
    like = _dinov2_dpt({f"decode_head.{name}": tensor for name, tensor in state.items()}, spec)
    bins, hidden = like.tensors["out.weight"].shape[:2]
    options = {**like.options, **CHMV2, "bins": bins, "hidden": hidden, "mix": "fuse.0.out.weight" in like.tensors}
    return Release("depth", "dpt", "CHMv2", _four(spec, Tap(0, cls=True)), like.tensors, options)


def _depth_anything(state: Mapping[str, Tensor], spec: BackboneSpec) -> Release:
    units = [(rf"^fuse\.(\d)\.resConfUnit{n}\.conv{m}\.", rf"fuse.\1.{own}.{part}.")
             for n, own in ((1, "first"), (2, "second")) for m, part in ((1, "first"), (2, "second"))]  # fmt: skip
    tensors = _renamed(state, "depth_head.", [
        (r"^projects\.(\d)\.", r"reduce.\1."), *_resizing("resize_layers"),
        *((rf"^scratch\.layer{k}_rn\.", f"level.{k - 1}.") for k in range(1, 5)),
        *((rf"^scratch\.refinenet{k}\.", f"fuse.{4 - k}.") for k in range(1, 5)),
        *units, (r"^fuse\.(\d)\.out_conv\.", r"fuse.\1.out."),
        (r"^scratch\.output_conv1\.", "narrow."),
        (r"^scratch\.output_conv2\.0\.", "refine."), (r"^scratch\.output_conv2\.2\.", "out."),
    ])  # fmt: skip
    options = _dpt_options(tensors, readout=False, bias=True, project=False, patch=spec.patch)
    backbone = {n: t for n, t in state.items() if n.startswith("pretrained.")}
    options = {"bins": 0, "weighting": "sigmoid", **options}
    return Release("depth", "dpt", "Depth Anything V2", _four(spec, Tap(0)), tensors, options, backbone)


def _dinov3_ros_depth(state: Mapping[str, Tensor], spec: BackboneSpec) -> Release:
    separable = [
        (r"\.dw\.", ".each."),
        (r"\.bn1\.", ".each_norm."),
        (r"\.pw\.", ".across."),
        (r"\.bn2\.", ".across_norm."),
    ]
    tensors = _renamed(state, "", [
        (r"^proj(\d)\.", r"reduce.\1."), (r"^down3\.", "down."), (r"^to_c(\d)\.", r"level.\1."),
        (r"^fuse(\d)\.res\.0\.", r"refine.\1."), (r"^fuse(\d)\.proj\.", r"mix.\1."), (r"^fuse(\d)\.bn\.", r"norm.\1."),
        (r"^h1\.", "to_half."), (r"^h1_bn\.", "to_half_norm."), (r"^h2\.", "to_quarter."), (r"^h2_bn\.", "to_quarter_norm."),
        *separable,
    ])  # fmt: skip
    widths = [tensors[f"reduce.{i}.weight"].shape[0] for i in range(4)]
    width = tensors["mix.0.weight"].shape[0]
    _same(tensors["reduce.0.weight"].shape[1], spec)
    options = {"bins": 0, "weighting": "softplus", "widths": widths, "width": width}
    return Release("depth", "pyramid", "dinov3_ros", (Tap(spec.depth - 1),), tensors, options)


def _dinov3_ros_segmentation(state: Mapping[str, Tensor], spec: BackboneSpec) -> Release:
    tensors = _renamed(state, "", [
        *((rf"^{part}\.0\.", f"{part}.") for part in ("initial", "project", "fuse")),
        *((rf"^{part}\.1\.", f"{part}_norm.") for part in ("initial", "project", "fuse")),
        (r"^branches_bn\.", "norms."), (r"^ds\.dw\.", "each."), (r"^ds\.pw\.", "across."), (r"^ds\.bn\.", "across_norm."),
        (r"^classifier\.", "out."),
    ])  # fmt: skip
    _same(tensors["initial.weight"].shape[1], spec)
    options = {"width": tensors["initial.weight"].shape[0], "branch": tensors["project.weight"].shape[0]}
    return Release("segmentation", "branches", "dinov3_ros", (Tap(spec.depth - 1),), tensors, options)


def _dinov3_ros_detection(state: Mapping[str, Tensor], spec: BackboneSpec) -> Release:
    tensors = _renamed(state, "", [
        (r"^fpn\.proj\.0\.", "project."), (r"^fpn\.proj\.1\.", "project_norm."),
        *((rf"^fpn\.down{i + 1}\.", f"down.{i}.") for i in range(2)),
        *((rf"^fpn\.smooth{i + 3}\.", f"smooth.{i}.") for i in range(3)),
        (r"^head\.cls_tower\.", "class_tower."), (r"^head\.reg_tower\.", "box_tower."), (r"\.gn\.", ".norm."),
        (r"^head\.cls_logits\.", "classes."), (r"^head\.bbox_reg\.", "boxes."), (r"^head\.centerness\.", "centre."),
        (r"^head\.scales\.", "scales."),
    ])  # fmt: skip
    width, read = tensors["project.weight"].shape[:2]
    _same(read, spec)
    convolutions = sum(re.fullmatch(r"class_tower\.\d+\.conv\.weight", name) is not None for name in tensors)
    options = {"width": width, "convolutions": convolutions, **DINOV3_ROS_DETECTOR}
    return Release("detection", "fcos", "dinov3_ros", (Tap(spec.depth - 1),), tensors, options)


_LAYOUTS: Sequence[tuple[str, Callable[[Mapping[str, Tensor], BackboneSpec], Release]]] = (
    ("decode_head.conv_seg.weight", _dinov2_segmentation),
    ("decode_head.conv_depth.weight", _dinov2_linear_depth),
    ("decode_head.conv_depth.head.0.weight", _dinov2_dpt),
    ("conv_depth.head.0.weight", _chmv2),
    ("depth_head.scratch.output_conv1.weight", _depth_anything),
    ("fuse0.res.0.dw.weight", _dinov3_ros_depth),
    ("branches_bn.0.weight", _dinov3_ros_segmentation),
    ("fpn.proj.0.weight", _dinov3_ros_detection),
)


def _renamed(state: Mapping[str, Tensor], prefix: str, rules: Sequence[tuple[str, str]]) -> dict[str, Tensor]:
    """The tensors under `prefix` with every rule applied in turn. The first fusion block has nothing to add to, so that
    its first unit, which some files carry, is never used."""
    out = {}
    for name, tensor in state.items():
        if not name.startswith(prefix):
            continue
        name = name[len(prefix) :]
        for old, new in rules:
            name = re.sub(old, new, name)
        if not name.startswith("fuse.0.first."):
            out[name] = tensor if name.endswith("num_batches_tracked") else tensor.float()
    return out


def _resizing(prefix: str) -> list[tuple[str, str]]:
    return [(rf"^{prefix}\.{i}\.", f"{own}.") for i, own in ((0, "up4"), (1, "up2"), (3, "down2"))]


def _dpt_options(tensors: Mapping[str, Tensor], **options: Any) -> dict[str, Any]:
    try:
        pyramid = [tensors[f"reduce.{i}.weight"].shape[0] for i in range(4)]
        return {"pyramid": pyramid, "width": tensors["narrow.weight"].shape[1], **options}
    except KeyError as error:
        raise LayoutError(f"is a DPT head without {error}; it is not whole") from None


def _four(spec: BackboneSpec, like: Tap) -> tuple[Tap, ...]:
    if len(spec.taps) != 4:
        raise LayoutError(f"reads four layers; {spec.id} has none to read them from")
    return tuple(Tap(layer, like.norm, like.cls) for layer in spec.taps)


def _taps(width: int, spec: BackboneSpec, tokens: int) -> tuple[int, ...]:
    """One or four layers, by how many channels are read."""
    for taps in ((spec.depth - 1,), spec.taps):
        if tokens * sum(map(spec.channels, taps)) == width:
            return taps
    more = " with as many of their CLS tokens" if tokens == 2 else ""
    raise LayoutError(f"reads {width} channels; {spec.id} gives {spec.dim} a layer{more}, and one or four are read")


def _same(width: int, spec: BackboneSpec) -> None:
    if width != spec.dim:
        raise LayoutError(f"reads {width} channels; {spec.id} gives {spec.dim}")
