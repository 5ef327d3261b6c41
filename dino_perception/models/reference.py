"""Do the backbones compute what an independent implementation computes? Compared with Hugging Face's transformers.

Both get the same random weights, converted by the loader. LayerScale, norms and biases are drawn away from their usual
starts: at LayerScale 1e-5 a wrong attention would hardly change an output. Only this file needs transformers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from types import ModuleType

import torch
from torch import Tensor, nn

from dino_perception.models import cost, layouts
from dino_perception.models.backbone import Backbone
from dino_perception.models.catalog import BackboneSpec
from dino_perception.models.checkpoints import assemble, identify

SIZES = ((224, 224), (96, 160), (480, 640))
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Parity:
    """Largest absolute difference over all layers of CLS, registers and patches, `plain` without and `normed` with the
    final norm; `largest` is the largest absolute value without it, for scale."""

    spec: BackboneSpec
    height: int
    width: int
    plain: float
    normed: float
    largest: float


def shortened(spec: BackboneSpec, depth: int) -> BackboneSpec:
    """The same architecture with at most `depth` layers (a ConvNeXt: blocks a stage)."""
    depths = tuple(min(d, depth) for d in spec.depths)
    return replace(spec, depths=depths, taps=() if spec.convolutional or depths[0] >= 4 else tuple(range(depths[0])))


def affordable_depth(spec: BackboneSpec, parameters: int = 450_000_000) -> int:
    """How many layers to compare where all of them would take more than `parameters`: twice that, times four bytes."""
    whole = cost.parameters(spec)
    return max(spec.depths) if whole <= parameters else max(1, spec.depth * parameters // whole)


def reference_model(spec: BackboneSpec, seed: int = 0) -> nn.Module:
    """transformers' model of that architecture with random weights. Raises ImportError without transformers."""
    import transformers as hf
    from transformers.initialization import no_init_weights

    with no_init_weights():  # every parameter is drawn below
        model = _model(hf, spec)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.rsplit(".", 1)[-1] in ("lambda1", "gamma"):
                p.uniform_(0.1, 1, generator=generator)
            elif p.dim() >= 2 and name.endswith("weight"):
                p.normal_(0, p[0].numel() ** -0.5, generator=generator)
            elif name.endswith("weight"):
                p.uniform_(0.5, 1.5, generator=generator)
            else:
                p.normal_(0, 0.2, generator=generator)
    return model.eval().requires_grad_(False)


def _model(hf: ModuleType, spec: BackboneSpec) -> nn.Module:
    if spec.convolutional:
        return hf.DINOv3ConvNextModel(hf.DINOv3ConvNextConfig(hidden_sizes=list(spec.dims), depths=list(spec.depths)))
    shared = dict(
        patch_size=spec.patch, hidden_size=spec.dim, num_hidden_layers=spec.depth, num_attention_heads=spec.heads
    )
    registers = dict(num_register_tokens=spec.registers) if spec.registers else {}
    if spec.family == "dinov3-vit":
        return hf.DINOv3ViTModel(
            hf.DINOv3ViTConfig(
                **shared,
                **registers,
                intermediate_size=spec.hidden,
                use_gated_mlp=spec.gated,
                hidden_act="silu" if spec.gated else "gelu",
                query_bias=spec.qkv_bias,
                value_bias=spec.qkv_bias,
                key_bias=False,
            )
        )
    kind = "Dinov2WithRegisters" if spec.registers else "Dinov2"
    config = getattr(hf, kind + "Config")(
        **shared,
        **registers,
        mlp_ratio=4,
        use_swiglu_ffn=spec.gated,
        image_size=spec.grid * spec.patch,
        layer_norm_eps=spec.eps,
    )
    return getattr(hf, kind + "Model")(config)


def converted(model: nn.Module, spec: BackboneSpec) -> Backbone:
    """Our backbone with the weights of transformers' model, which is read as a file of its would be."""
    found = identify(model.state_dict(), "the model")
    own, missing, unexpected = layouts.from_layout(found.tensors, spec, found.layout)
    if missing or unexpected or not found.fits(spec):
        raise ValueError(f"conversion of {spec.id} left out {missing + unexpected}")
    if spec.family == "dinov2-vit":
        spec = replace(spec, offset=0.0)  # transformers scales the position table without it
    return assemble(spec, own, "the model")


def compare(
    spec: BackboneSpec,
    sizes: Iterable[tuple[int, int]] = SIZES,
    *,
    backbone: Backbone | None = None,
    model: nn.Module | None = None,
) -> list[Parity]:
    """Both implementations at every layer, on a random image of each size (rounded to the backbone's stride)."""
    model = model if model is not None else reference_model(spec)
    backbone = backbone if backbone is not None else converted(model, spec)
    out = []
    for size in sizes:
        height, width = (round(side / spec.stride) * spec.stride for side in size)
        image = torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(height + width))
        with torch.no_grad():
            wanted = _layers(model, image, spec)
            pairs = {}
            for norm in (False, True):
                extras = ("cls", "registers") if spec.registers else ("cls",)
                graph = backbone.at(height, width, range(spec.depth), norm=norm, pixels="float", extras=extras)
                got = graph(image)
                groups = [got[i : i + spec.depth] for i in range(0, len(got), spec.depth)]
                pairs[norm] = [(_tokens(*ours), theirs[norm]) for ours, theirs in zip(zip(*groups), wanted)]
        plain, normed = (max(float((a - b).abs().max()) for a, b in pairs[norm]) for norm in (False, True))
        largest = max(float(b.abs().max()) for _, b in pairs[False])
        out.append(Parity(spec, height, width, plain, normed, largest))
    return out


def _layers(model: nn.Module, image: Tensor, spec: BackboneSpec) -> list[tuple[Tensor, Tensor]]:
    """(tokens without, tokens with the final norm) of every layer of transformers' model."""
    result = model(image, output_hidden_states=True)
    states = result.hidden_states[1:]
    if not spec.convolutional:
        norm: Callable[[Tensor], Tensor] = model.norm if spec.family == "dinov3-vit" else model.layernorm
        layers = [(state, norm(state)) for state in states]
    else:
        layers = []
        for state in states:
            flat = state.flatten(2).transpose(1, 2)
            tokens = torch.cat([flat.mean(dim=1, keepdim=True), flat], dim=1)
            layers.append((tokens, tokens))
        layers[-1] = (layers[-1][0], result.last_hidden_state)  # the norm belongs to the last stage
    if len(layers) != spec.depth:
        raise ValueError(f"transformers gave {len(layers)} layers of {spec.depth}")
    if not torch.equal(layers[-1][1], result.last_hidden_state):
        raise ValueError("transformers' last hidden state is not the normed last layer")
    return layers


def _tokens(patches: Tensor, cls: Tensor, registers: Tensor | None = None) -> Tensor:
    """(B, C, h, w), (B, C), (B, R, C) -> (B, 1 + R + h * w, C), the reference's order."""
    first = [cls[:, None]] + ([registers] if registers is not None else [])
    return torch.cat([*first, patches.flatten(2).transpose(1, 2)], dim=1)
