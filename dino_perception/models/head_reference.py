"""Do released heads compute what an independent implementation computes? For the DPT heads that is Hugging Face's
transformers, backbone included; for the others a few lines of torch, written from the description of each.

Every head gets random weights in the layout in which it was released, goes through a file, and is loaded as a user's
would be. Only this file needs transformers.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dino_perception.models import catalog, reference
from dino_perception.models.backbone import Backbone
from dino_perception.models.checkpoints import untrained
from dino_perception.models.heads.base import load_head

SIZES = ((480, 640), (518, 518), (280, 952))
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Case:
    """A released layout: the head's `kind`, its `file` name, what it is compared `against`, and how."""

    name: str
    kind: str
    backbone: str
    file: str
    against: str
    prepare: Callable[[Case], tuple[Backbone, Mapping[str, Tensor], Callable[[Tensor], Tensor]]]


@dataclass(frozen=True)
class HeadParity:
    """Largest absolute difference of the raw map (metres or logits), and its largest value, for scale."""

    case: Case
    height: int
    width: int
    difference: float
    largest: float


def compare(case: Case, sizes=SIZES) -> list[HeadParity]:
    """Both implementations on a random image of each size, rounded to the backbone's patches."""
    backbone, state, wanted = case.prepare(case)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / case.file
        torch.save(state, path)
        head = load_head(case.kind, backbone, path)
    out = []
    for size in sizes:
        height, width = (round(side / backbone.spec.stride) * backbone.spec.stride for side in size)
        image = torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(height + width))
        with torch.inference_mode():
            ours = head(*backbone.at(height, width, head.spec.taps, pixels="float")(image))
            theirs = wanted(image)
        if ours.shape != theirs.shape:
            raise ValueError(f"{case.name} gives {list(ours.shape)} and its reference {list(theirs.shape)}")
        difference, largest = float((ours - theirs).abs().max()), float(theirs.abs().max())
        if float(theirs.std()) < 1e-3 * largest:
            raise ValueError(f"the reference of {case.name} says the same everywhere; nothing would be compared")
        out.append(HeadParity(case, height, width, difference, largest))
    return out


def drawn(shapes: Mapping[str, tuple[int, ...]], seed: int = 0) -> dict[str, Tensor]:
    """Random tensors that keep the variance of what goes through, variances and norms' weights positive."""
    generator = torch.Generator().manual_seed(seed)
    out = {}
    for name, shape in shapes.items():
        if len(shape) >= 2:
            out[name] = torch.randn(shape, generator=generator)
            out[name] *= (1.5 / out[name][0].numel()) ** 0.5
        elif name.endswith(("weight", "running_var")):
            out[name] = torch.rand(shape, generator=generator) + 0.5
        else:
            out[name] = torch.randn(shape, generator=generator) * 0.2
    return out


def _features(backbone: Backbone, image: Tensor, layers, norm: bool) -> tuple[list[Tensor], list[Tensor]]:
    """Maps and CLS tokens of some layers, all of one kind."""
    out = backbone.at(*image.shape[2:], layers, norm=norm, pixels="float", extras=("cls",))(image)
    return list(out[: len(layers)]), list(out[len(layers) :])


# ---- DINOv2's linear heads -------------------------------------------------------------------------------------------


def _mmseg(layers: int):
    """Maps resized to the first and joined; batch norm; 1x1 convolution (mmseg's BNHead)."""

    def prepare(case: Case):
        backbone = untrained(catalog.get(case.backbone))
        taps = backbone.spec.taps if layers == 4 else (backbone.spec.depth - 1,)
        width = layers * backbone.spec.dim
        names = {"bn.weight": (width,), "bn.bias": (width,), "bn.running_mean": (width,), "bn.running_var": (width,)}
        classes = 150 if "ade" in case.file else 21
        shapes = {**names, "conv_seg.weight": (classes, width, 1, 1), "conv_seg.bias": (classes,)}
        state = {f"decode_head.{n}": t for n, t in drawn(shapes).items()}
        state["decode_head.bn.num_batches_tracked"] = torch.tensor(40000)

        def wanted(image: Tensor) -> Tensor:
            maps, _ = _features(backbone, image, taps, True)
            bn = [state[f"decode_head.bn.{n}"] for n in ("running_mean", "running_var", "weight", "bias")]
            x = F.batch_norm(torch.cat(maps, dim=1), *bn)
            return F.conv2d(x, state["decode_head.conv_seg.weight"], state["decode_head.conv_seg.bias"])

        return backbone, {"state_dict": state}, wanted

    return prepare


def _linear_depth(layers: int):
    """Each raw map with its CLS token at every patch, four times enlarged, all joined; 1x1 convolution; bins."""

    def prepare(case: Case):
        backbone = untrained(catalog.get(case.backbone))
        taps = backbone.spec.taps if layers == 4 else (backbone.spec.depth - 1,)
        width = 2 * layers * backbone.spec.dim
        shapes = {"decode_head.conv_depth.weight": (256, width, 1, 1), "decode_head.conv_depth.bias": (256,)}
        state = drawn(shapes)
        far = 10.0 if "nyu" in case.file else 80.0

        def wanted(image: Tensor) -> Tensor:
            maps, tokens = _features(backbone, image, taps, False)
            pairs = [torch.cat([m, t[:, :, None, None].expand_as(m)], dim=1) for m, t in zip(maps, tokens)]
            x = torch.cat([F.interpolate(p, scale_factor=4, mode="bilinear") for p in pairs], dim=1)
            logits = F.conv2d(x, *state.values()).relu() + 0.1
            bins = torch.linspace(0.001, far, 256)
            return torch.einsum("bkhw,k->bhw", logits / logits.sum(1, keepdim=True), bins)[:, None]

        return backbone, {"state_dict": state}, wanted

    return prepare


# ---- DPT, against transformers ---------------------------------------------------------------------------------------


def _hf_state(model: nn.Module) -> dict[str, Tensor]:
    """Random weights, drawn such that depth varies and stays within a few metres."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lambda1" in name:
                p.uniform_(0.1, 1, generator=generator)
            elif p.dim() >= 2:
                p.normal_(0, (1.0 / p[0].numel()) ** 0.5, generator=generator)
            elif name.endswith("weight"):
                p.uniform_(0.5, 1.5, generator=generator)
            else:
                p.normal_(0, 0.2, generator=generator)
    model.eval().requires_grad_(False)
    return model.state_dict()


def _backbone_of(model: nn.Module, state: Mapping[str, Tensor], spec: catalog.BackboneSpec) -> Backbone:
    """Ours with the weights of the backbone inside transformers' model."""
    own = {n.removeprefix("backbone."): t for n, t in state.items() if n.startswith("backbone.")}
    holder = nn.Module()
    holder.state_dict = lambda: own
    return reference.converted(holder, spec)


_REASSEMBLED = (
    (r"^(?:neck|head)\.reassemble_stage\.readout_projects\.(\d)\.0", r"reassemble_blocks.readout_projects.\1.0"),
    (r"^(?:neck|head)\.reassemble_stage\.layers\.(\d)\.projection", r"reassemble_blocks.projects.\1.conv"),
    (r"^(?:neck|head)\.reassemble_stage\.layers\.(\d)\.resize", r"reassemble_blocks.resize_layers.\1"),
    (r"^(?:neck|head)\.convs\.(\d)", r"convs.\1.conv"),
)
"""transformers' names of what makes a pyramid of the taps -> those of Meta's files."""


def _dinov2_dpt(case: Case):
    import transformers as hf

    spec = catalog.get(case.backbone)
    config = hf.DPTConfig(
        backbone_config=_dinov2_config(hf, spec, apply_layernorm=False), add_projection=True, readout_type="project",
        neck_hidden_sizes=[spec.dim // n for n in (8, 4, 2, 1)], fusion_hidden_size=256, hidden_act="gelu",
        reassemble_factors=[4, 2, 1, 0.5], use_bias_in_fusion_residual=False, use_batch_norm_in_fusion_residual=False,
    )  # fmt: skip
    model = hf.DPTForDepthEstimation(config)
    state = _hf_state(model)
    backbone = _backbone_of(model, state, spec)
    rules = (
        *_REASSEMBLED,
        (r"^neck\.fusion_stage\.layers\.(\d)\.projection", r"fusion_blocks.\1.project.conv"),
        (r"^neck\.fusion_stage\.layers\.(\d)\.residual_layer(\d)\.convolution(\d)",
         r"fusion_blocks.\1.res_conv_unit\2.conv\3.conv"),
        (r"^head\.projection", "project.conv"), (r"^head\.head\.(\d)", r"conv_depth.head.\1"),
    )  # fmt: skip
    released = _renamed(state, rules, "decode_head.")
    return backbone, {"state_dict": released}, lambda image: model(image).predicted_depth[:, None] + 0.001


def _depth_anything(case: Case):
    import transformers as hf

    spec = catalog.get(case.backbone)
    pyramid = {"s": ([48, 96, 192, 384], 64), "b": ([96, 192, 384, 768], 128), "l": ([256, 512, 1024, 1024], 256)}
    sizes, width = pyramid[case.file[-5]]
    far = 20 if "hypersim" in case.file else 80
    config = hf.DepthAnythingConfig(
        backbone_config=_dinov2_config(hf, spec, apply_layernorm=True), patch_size=14, neck_hidden_sizes=sizes,
        reassemble_hidden_size=spec.dim, fusion_hidden_size=width, depth_estimation_type="metric", max_depth=far,
    )  # fmt: skip
    model = hf.DepthAnythingForDepthEstimation(config)
    state = _hf_state(model)
    backbone = _backbone_of(model, state, spec)
    rules = (
        (r"^neck\.reassemble_stage\.layers\.(\d)\.projection", r"projects.\1"),
        (r"^neck\.reassemble_stage\.layers\.(\d)\.resize", r"resize_layers.\1"),
        *((rf"^neck\.convs\.{i}", f"scratch.layer{i + 1}_rn") for i in range(4)),
        *((rf"^neck\.fusion_stage\.layers\.{i}\.", f"scratch.refinenet{4 - i}.") for i in range(4)),
        (r"residual_layer(\d)\.convolution(\d)", r"resConfUnit\1.conv\2"), (r"(refinenet\d)\.projection", r"\1.out_conv"),
        (r"^head\.conv1", "scratch.output_conv1"), (r"^head\.conv2", "scratch.output_conv2.0"),
        (r"^head\.conv3", "scratch.output_conv2.2"),
    )  # fmt: skip
    released = _renamed(state, rules, "depth_head.")
    return backbone, released, lambda image: model(image).predicted_depth[:, None]


def _chmv2(case: Case):
    """On a backbone a quarter as wide, as random numbers for ViT-L take a minute. transformers has a 1x1 convolution in
    each fusion that the released head has not: it is set to pass everything on."""
    import transformers as hf

    spec = replace(catalog.get(case.backbone), dims=(256,), heads=4, hidden=1024)
    vit = hf.DINOv3ViTConfig(
        hidden_size=spec.dim, intermediate_size=spec.hidden, num_attention_heads=spec.heads, num_hidden_layers=spec.depth,
        num_register_tokens=spec.registers, layer_norm_eps=spec.eps, key_bias=False, image_size=416,
        out_indices=[tap + 1 for tap in spec.taps], reshape_hidden_states=True, apply_layernorm=True,
        return_class_token=True,
    )  # fmt: skip
    model = hf.CHMv2ForDepthEstimation(hf.CHMv2Config(backbone_config=vit))
    state = _hf_state(model)
    for layer in model.head.fusion_layers:
        nn.init.dirac_(layer.projection.weight)
        nn.init.zeros_(layer.projection.bias)
    backbone = _backbone_of(model, state, spec)
    rules = (
        *_REASSEMBLED,
        (r"^head\.fusion_layers\.(\d)\.residual_layer(\d)\.convolution(\d)",
         r"fusion_blocks.\1.res_conv_unit\2.conv\3.conv"),
        (r"^head\.conv_depth", "conv_depth"),
    )  # fmt: skip
    released = {name: t for name, t in _renamed(state, rules, "").items() if not name.startswith("head.fusion")}
    return backbone, released, lambda image: model(image).predicted_depth[:, None]


def _dinov2_config(hf, spec: catalog.BackboneSpec, **more):
    return hf.Dinov2Config(
        hidden_size=spec.dim, num_hidden_layers=spec.depth, num_attention_heads=spec.heads, patch_size=14, image_size=518,
        layer_norm_eps=spec.eps, out_indices=[tap + 1 for tap in spec.taps], reshape_hidden_states=False, **more,
    )  # fmt: skip


def _renamed(state: Mapping[str, Tensor], rules, prefix: str) -> dict[str, Tensor]:
    out = {}
    for name, tensor in state.items():
        if name.startswith(("neck.", "head.")):
            for old, new in rules:
                name = re.sub(old, new, name)
            out[prefix + name] = tensor
    return out


# ---- dinov3_ros ------------------------------------------------------------------------------------------------------


def _ros_depth(case: Case):
    backbone = untrained(catalog.get(case.backbone))
    c, widths, w = backbone.spec.dim, (32, 64, 96, 128), 160
    shapes: dict[str, tuple[int, ...]] = {f"proj{i}.weight": (n, c, 1, 1) for i, n in enumerate(widths)}

    def block(name: str, into: int, out: int) -> None:
        shapes.update({f"{name}.dw.weight": (into, 1, 3, 3), f"{name}.pw.weight": (out, into, 1, 1)})
        shapes.update({f"{name}.{n}.{p}": (k,) for n, k in (("bn1", into), ("bn2", out)) for p in ("weight", "bias")})

    block("down3", 128, 128)
    for i, n in enumerate(widths):
        block(f"to_c{i}", n, w)
        block(f"fuse{i}.res.0", w, w)
        shapes.update({f"fuse{i}.proj.weight": (w, w, 1, 1), f"fuse{i}.bn.weight": (w,), f"fuse{i}.bn.bias": (w,)})
    shapes.update({"h1.weight": (80, w, 3, 3), "h1.bias": (80,), "h1_bn.weight": (80,), "h1_bn.bias": (80,)})
    shapes.update({"h2.weight": (40, 80, 3, 3), "h2.bias": (40,), "h2_bn.weight": (40,), "h2_bn.bias": (40,)})
    shapes.update({"out.weight": (1, 40, 1, 1), "out.bias": (1,)})
    p = drawn(shapes)

    def norm(x: Tensor, name: str) -> Tensor:
        return F.group_norm(x, 8, p[f"{name}.weight"], p[f"{name}.bias"])

    def separable(x: Tensor, name: str, stride: int = 1) -> Tensor:
        x = F.conv2d(x, p[f"{name}.dw.weight"], stride=stride, padding=1, groups=x.shape[1])
        return F.gelu(norm(F.conv2d(F.gelu(norm(x, f"{name}.bn1")), p[f"{name}.pw.weight"]), f"{name}.bn2"))

    def to(x: Tensor, size) -> Tensor:
        return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)

    def wanted(image: Tensor) -> Tensor:
        (x,), _ = _features(backbone, image, (backbone.spec.depth - 1,), True)
        h, width = x.shape[2:]
        b = [F.conv2d(x, p[f"proj{i}.weight"]) for i in range(4)]
        b[3] = separable(b[3], "down3", 2)
        f = [
            separable(y, f"to_c{i}")
            for i, y in enumerate((to(b[0], (4 * h, 4 * width)), to(b[1], (2 * h, 2 * width)), *b[2:]))
        ]
        y = f[3]
        for i in (3, 2, 1, 0):
            y = F.gelu(norm(F.conv2d(to(y, f[i].shape[2:]), p[f"fuse{i}.proj.weight"]), f"fuse{i}.bn"))
            y = separable(y if i == 3 else y + f[i], f"fuse{i}.res.0")
        y = F.relu(norm(F.conv2d(y, p["h1.weight"], p["h1.bias"], padding=1), "h1_bn"))
        y = to(y, (8 * h, 8 * width))
        y = F.relu(norm(F.conv2d(y, p["h2.weight"], p["h2.bias"], padding=1), "h2_bn"))
        return F.softplus(F.conv2d(y, p["out.weight"], p["out.bias"])) + 1e-3

    return backbone, p, wanted


def _ros_segmentation(case: Case):
    backbone = untrained(catalog.get(case.backbone))
    c, w, b = backbone.spec.dim, 576, 288
    shapes: dict[str, tuple[int, ...]] = {}

    def conv(name: str, norm: str, into: int, out: int, side: int = 1) -> None:
        shapes.update({f"{name}.weight": (out, into, side, side), f"{name}.bias": (out,)})
        shapes.update({f"{norm}.{n}": (out,) for n in ("weight", "bias", "running_mean", "running_var") if norm})

    conv("initial.0", "initial.1", c, w)
    conv("project.0", "project.1", w, b)
    for i in range(4):
        conv(f"branches.{i}", f"branches_bn.{i}", b, b, 3)
    conv("fuse.0", "fuse.1", 4 * b, w)
    shapes["ds.dw.weight"] = (w, 1, 3, 3)
    conv("ds.pw", "ds.bn", w, w)
    conv("classifier", "", w, 134)
    p = drawn(shapes)
    state = {**p, **{f"{n}.num_batches_tracked": torch.tensor(1) for n in
                     ("initial.1", "project.1", "fuse.1", "ds.bn", *(f"branches_bn.{i}" for i in range(4)))}}  # fmt: skip

    def step(x: Tensor, name: str, norm: str, **more) -> Tensor:
        x = F.conv2d(x, p[f"{name}.weight"], p[f"{name}.bias"], **more)
        return F.batch_norm(x, *(p[f"{norm}.{n}"] for n in ("running_mean", "running_var", "weight", "bias"))).relu()

    def wanted(image: Tensor) -> Tensor:
        (x,), _ = _features(backbone, image, (backbone.spec.depth - 1,), True)
        x = step(step(x, "initial.0", "initial.1"), "project.0", "project.1")
        x = torch.cat([step(x, f"branches.{i}", f"branches_bn.{i}", padding=1) for i in range(4)], dim=1)
        x = F.conv2d(step(x, "fuse.0", "fuse.1"), p["ds.dw.weight"], padding=1, groups=w)
        return F.conv2d(step(x, "ds.pw", "ds.bn"), p["classifier.weight"], p["classifier.bias"])

    return backbone, state, wanted


def _ros_detection(case: Case):
    backbone = untrained(catalog.get(case.backbone))
    c, w = backbone.spec.dim, 192
    shapes: dict[str, tuple[int, ...]] = {
        "fpn.proj.0.weight": (w, c, 1, 1),
        "fpn.proj.1.weight": (w,),
        "fpn.proj.1.bias": (w,),
    }
    towers = [f"head.{tower}.{i}" for tower in ("cls_tower", "reg_tower") for i in range(4)]
    for name in ("fpn.down1", "fpn.down2", "fpn.smooth3", "fpn.smooth4", "fpn.smooth5", *towers):
        shapes.update({f"{name}.conv.weight": (w, w, 3, 3), f"{name}.gn.weight": (w,), f"{name}.gn.bias": (w,)})
    for name, n in (("cls_logits", 80), ("bbox_reg", 4), ("centerness", 1)):
        shapes.update({f"head.{name}.weight": (n, w, 3, 3), f"head.{name}.bias": (n,)})
    p = drawn(shapes)
    p.update({f"head.scales.{i}": torch.tensor(20.0 + 10 * i) for i in range(3)})

    def step(x: Tensor, name: str, stride: int = 1) -> Tensor:
        x = F.conv2d(x, p[f"{name}.conv.weight"], stride=stride, padding=1)
        return F.group_norm(x, 32, p[f"{name}.gn.weight"], p[f"{name}.gn.bias"]).relu()

    def last(x: Tensor, name: str) -> Tensor:
        return F.conv2d(x, p[f"head.{name}.weight"], p[f"head.{name}.bias"], padding=1)

    def wanted(image: Tensor) -> Tensor:
        (x,), _ = _features(backbone, image, (backbone.spec.depth - 1,), True)
        x = F.group_norm(F.conv2d(x, p["fpn.proj.0.weight"]), 32, p["fpn.proj.1.weight"], p["fpn.proj.1.bias"]).relu()
        middle = step(x, "fpn.down1", 2)
        coarse = step(middle, "fpn.down2", 2)
        middle = step(middle + F.interpolate(coarse, size=middle.shape[2:]), "fpn.smooth4")
        fine = step(x + F.interpolate(middle, size=x.shape[2:]), "fpn.smooth3")
        rows = []
        for i, level in enumerate((fine, middle, step(coarse, "fpn.smooth5"))):
            classes = boxes = level
            for k in range(4):
                classes, boxes = step(classes, f"head.cls_tower.{k}"), step(boxes, f"head.reg_tower.{k}")
            distances = F.softplus(last(boxes, "bbox_reg")) * p[f"head.scales.{i}"]
            stride = 16 * 2**i
            y, x = torch.meshgrid(
                *(torch.arange(n) * stride + (stride - 1) / 2 for n in level.shape[2:]), indexing="ij"
            )
            own = torch.stack([x, y, torch.full_like(x, stride)])[None].expand(len(image), -1, -1, -1)
            found = torch.cat([last(classes, "cls_logits"), distances, last(boxes, "centerness"), own], dim=1)
            rows.append(found.flatten(2).transpose(1, 2))
        return torch.cat(rows, dim=1)

    return backbone, p, wanted


_SMALL, _ROS = "dinov2-vits14", "dinov3-vits16plus"
_OURS = "torch, from the description"
CASES = (
    Case("DINOv2 linear (mmseg BNHead)", "segmentation", _SMALL, "dinov2_vits14_ade20k_linear_head.pth", _OURS, _mmseg(1)),
    Case("DINOv2 ms (four layers)", "segmentation", _SMALL, "dinov2_vits14_voc2012_ms_head.pth", _OURS, _mmseg(4)),
    Case("DINOv2 linear depth", "depth", _SMALL, "dinov2_vits14_nyu_linear_head.pth", _OURS, _linear_depth(1)),
    Case("DINOv2 linear4 depth", "depth", _SMALL, "dinov2_vits14_kitti_linear4_head.pth", _OURS, _linear_depth(4)),
    Case("DINOv2 DPT", "depth", _SMALL, "dinov2_vits14_kitti_dpt_head.pth", "transformers", _dinov2_dpt),
    Case("Depth Anything V2 metric", "depth", "depth-anything-v2-small-vkitti", "depth_anything_v2_metric_vkitti_vits.pth",
         "transformers", _depth_anything),
    Case("CHMv2", "depth", "dinov3-vitl16-chmv2", "dinov3_vitl16_chmv2_dpt_head-3703d643.pth", "transformers", _chmv2),
    Case("dinov3_ros ASPP", "segmentation", _ROS, "dinov3_ros_segmentation_head.pth", _OURS, _ros_segmentation),
    Case("dinov3_ros DinoFCOSHead", "detection", _ROS, "dinov3_ros_detection_head.pth", _OURS, _ros_detection),
    Case("dinov3_ros DepthHeadLite", "depth", _ROS, "dinov3_ros_depth_head.pth", _OURS, _ros_depth),
)  # fmt: skip
