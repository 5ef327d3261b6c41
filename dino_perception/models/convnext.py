"""DINOv3's ConvNeXt: four stages of depthwise 7x7 blocks at 1/4, 1/8, 1/16 and 1/32 of the image."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dino_perception.models.backbone import Backbone, FixedBackbone
from dino_perception.models.catalog import BackboneSpec

EPS = 1e-6


class ConvNext(Backbone):
    """The weights. A tap is a stage, 0 to 3."""

    def __init__(self, spec: BackboneSpec):
        super().__init__(spec)
        before = (3, *spec.dims)
        self.stages = nn.ModuleList(Stage(before[i], spec.dims[i], spec.depths[i]) for i in range(4))
        self.norm = nn.LayerNorm(spec.dim, EPS)

    def _fixed(self, *arguments) -> FixedConvNext:
        return FixedConvNext(self, *arguments)


class FixedConvNext(FixedBackbone):
    """The network for one image size. The final norm belongs to the last stage: maps of the others are returned as
    they are, with or without `norm`. The CLS token of a map is its mean, as DINOv3 defines it."""

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        net = self.backbone
        x = self.image(pixels)
        maps = {}
        for index in range(max(self.taps) + 1):
            x = net.stages[index](x)
            maps[index] = x
        tapped = [maps[tap] for tap in self.taps]
        means = [m.mean(dim=(2, 3)) for m in tapped] if "cls" in self.extras else []
        if self.norm:
            last = len(net.stages) - 1
            tapped = [normalise(m, net.norm) if tap == last else m for tap, m in zip(self.taps, tapped)]
            means = [net.norm(c) if tap == last else c for tap, c in zip(self.taps, means)]
        return (*tapped, *means)


class Stage(nn.Module):
    """Halve (the first: quarter) the map, then `depth` blocks."""

    def __init__(self, channels: int, dim: int, depth: int):
        super().__init__()
        self.entry = Entry(channels, dim)
        self.blocks = nn.ModuleList(Block(dim) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        x = self.entry(x)
        for block in self.blocks:
            x = block(x)
        return x


class Entry(nn.Module):
    """The stem (4x4 convolution, then norm) for an image, otherwise norm, then 2x2 convolution."""

    def __init__(self, channels: int, dim: int):
        super().__init__()
        self.stem = channels == 3
        size = 4 if self.stem else 2
        self.conv = nn.Conv2d(channels, dim, size, size)
        self.norm = nn.LayerNorm(dim if self.stem else channels, EPS)

    def forward(self, x: Tensor) -> Tensor:
        return normalise(self.conv(x), self.norm) if self.stem else self.conv(normalise(x, self.norm))


class Block(nn.Module):
    """x + gamma * down(gelu(up(norm(depthwise 7x7(x)))))"""

    def __init__(self, dim: int):
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, 7, padding=3, groups=dim)
        self.norm = nn.LayerNorm(dim, EPS)
        self.up = nn.Linear(dim, 4 * dim)
        self.down = nn.Linear(4 * dim, dim)
        self.gamma = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x).permute(0, 2, 3, 1))
        y = self.down(F.gelu(self.up(y))) * self.gamma
        return x + y.permute(0, 3, 1, 2)


def normalise(x: Tensor, norm: nn.LayerNorm) -> Tensor:
    """LayerNorm over the channels of (B, C, H, W)."""
    return norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
