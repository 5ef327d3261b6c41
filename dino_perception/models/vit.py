"""DINOv3's vision transformer: pre-norm blocks, LayerScale, rotary positions in two axes, CLS and register tokens."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dino_perception.models.backbone import Backbone, FixedBackbone
from dino_perception.models.catalog import BackboneSpec


class VisionTransformer(Backbone):
    """The weights. Tokens are CLS, registers, then the patches row by row.

    `periods` (head dim / 4,) are the rotary periods 100^(k / (head dim / 4)) (DINOv3 paper, sec. 3.2); the released
    original files carry them rounded to bfloat16, and then those are used.
    """

    def __init__(self, spec: BackboneSpec):
        super().__init__(spec)
        dim = spec.dim
        self.patch = nn.Conv2d(3, dim, spec.patch, spec.patch)
        self.cls = nn.Parameter(torch.zeros(1, 1, dim))
        if spec.registers:
            self.registers = nn.Parameter(torch.zeros(1, spec.registers, dim))
        self.blocks = nn.ModuleList(Block(spec) for _ in range(spec.depth))
        self.norm = nn.LayerNorm(dim, spec.eps)
        self.register_buffer("periods", self.default_periods(spec))

    @staticmethod
    def default_periods(spec: BackboneSpec) -> Tensor:
        """The periods of files that carry none."""
        quarter = spec.dim // spec.heads // 4
        # Computed on the CPU even where everything is made on "meta": torch's arange there imports its compiler, a second.
        periods = 100.0 ** (torch.arange(quarter, dtype=torch.float32, device="cpu") / quarter)
        return periods.to(torch.get_default_device())

    def prefix(self) -> Tensor:
        """The tokens before the patches, (1, 1 + registers, D)."""
        return torch.cat([self.cls, self.registers], dim=1) if self.spec.registers else self.cls

    def _fixed(self, *arguments) -> FixedTransformer:
        return FixedTransformer(self, *arguments)


class FixedTransformer(FixedBackbone):
    """The transformer for one image size, its rotary table a constant."""

    def __init__(self, backbone: VisionTransformer, *arguments):
        super().__init__(backbone, *arguments)
        rows, columns = self.height // backbone.spec.patch, self.width // backbone.spec.patch
        self.rows, self.columns = rows, columns
        cos, sin = self.positions()
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def positions(self) -> tuple[Tensor, Tensor]:
        return rotary_table(self.backbone.periods, self.rows, self.columns, 1 + self.backbone.spec.registers)

    def patches(self, image: Tensor) -> Tensor:
        """The patch tokens (B, H/patch * W/patch, D) that enter the first block."""
        return self.backbone.patch(image).flatten(2).transpose(1, 2)

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        net, spec = self.backbone, self.backbone.spec
        x = self.patches(self.image(pixels))
        x = torch.cat([net.prefix().expand(x.shape[0], -1, -1), x], dim=1)
        tapped = {}
        for index in range(max(t.layer for t in self.taps) + 1):
            x = net.blocks[index](x, self.cos, self.sin)
            for norm in sorted({t.norm for t in self.taps if t.layer == index}):
                tapped[index, norm] = net.norm(x) if norm else x
        tokens = [tapped[t.layer, t.norm] for t in self.taps]
        first = 1 + spec.registers
        out = [x[:, first:].transpose(1, 2).unflatten(2, (self.rows, self.columns)) for x in tokens]
        out += [x[:, 0] for t, x in zip(self.taps, tokens) if t.cls]
        if self.registers:
            out += [x[:, 1:first] for x in tokens]
        return tuple(out)


class Block(nn.Module):
    """x + scale1 * attention(norm1(x)), then x + scale2 * feed_forward(norm2(x))."""

    def __init__(self, spec: BackboneSpec):
        super().__init__()
        self.heads = spec.heads
        self.norm1 = nn.LayerNorm(spec.dim, spec.eps)
        self.qkv = nn.Linear(spec.dim, 3 * spec.dim, bias=spec.qkv_bias)
        self.proj = nn.Linear(spec.dim, spec.dim)
        self.scale1 = nn.Parameter(torch.ones(spec.dim))
        self.norm2 = nn.LayerNorm(spec.dim, spec.eps)
        self.mlp = (GatedMlp if spec.gated else Mlp)(spec.dim, spec.hidden)
        self.scale2 = nn.Parameter(torch.ones(spec.dim))

    def forward(self, x: Tensor, cos: Tensor | None, sin: Tensor | None) -> Tensor:
        x = x + self.attention(self.norm1(x), cos, sin) * self.scale1
        return x + self.mlp(self.norm2(x)) * self.scale2

    def attention(self, x: Tensor, cos: Tensor | None, sin: Tensor | None) -> Tensor:
        """(B, T, D) -> (B, T, D); `cos` and `sin` (T, D / heads) turn queries and keys, None leaves them."""
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        if cos is not None:
            q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.up = nn.Linear(dim, hidden)
        self.down = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x)))


class GatedMlp(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x))."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.gate = nn.Linear(dim, hidden)
        self.up = nn.Linear(dim, hidden)
        self.down = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


def rotary_table(periods: Tensor, rows: int, columns: int, prefix: int) -> tuple[Tensor, Tensor]:
    """cos and signed sin, (prefix + rows * columns, 4 * len(periods)) float32, for `rotate`.

    Patch centres are scaled to -1..1 along each axis by itself; an angle is 2 pi centre / period, first all periods
    of y, then all of x, then both again for the second half of the head. The `prefix` tokens (CLS, registers) have
    angle 0. The first half of sin carries the minus sign of the rotation.
    """
    y, x = ((torch.arange(n, dtype=torch.float32, device=periods.device) + 0.5) / n * 2 - 1 for n in (rows, columns))
    centres = torch.stack(torch.meshgrid(y, x, indexing="ij"), dim=-1).flatten(0, 1)
    angles = (2 * math.pi * centres[:, :, None] / periods.float()).flatten(1)
    angles = F.pad(angles, (0, 0, prefix, 0))
    sin = angles.sin()
    return torch.cat([angles.cos()] * 2, dim=1), torch.cat([-sin, sin], dim=1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair (x[i], x[i + d/2]) by its token's angle; `sin` is signed, see `rotary_table`."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([second, first], dim=-1) * sin
