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
    they are, whatever a tap says. The CLS token of a map is its mean, as DINOv3 defines it."""

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        net = self.backbone
        x = self.image(pixels)
        maps, last = {}, len(net.stages) - 1
        for index in range(max(t.layer for t in self.taps) + 1):
            x = net.stages[index](x)
            maps[index] = x
        normed = [t.norm and t.layer == last for t in self.taps]
        tapped = [normalise(maps[t.layer], net.norm) if norm else maps[t.layer] for t, norm in zip(self.taps, normed)]
        means = [maps[t.layer].mean(dim=(2, 3)) for t in self.taps if t.cls]
        means = [net.norm(m) if norm else m for m, norm in zip(means, [n for t, n in zip(self.taps, normed) if t.cls])]
        return (*tapped, *means)


class Stage(nn.Module):
    """Halve (the first: quarter) the map, then `depth` blocks."""

    def __init__(self, channels: int, dim: int, depth: int):
        super().__init__()
        self.entry = Downsample(channels, dim)
        self.blocks = nn.ModuleList(ConvNextBlock(dim) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        x = self.entry(x)
        for block in self.blocks:
            x = block(x)
        return x


class Downsample(nn.Module):
    """The stem (4x4 convolution, then norm) for an image, otherwise norm, then 2x2 convolution."""

    def __init__(self, channels: int, dim: int):
        super().__init__()
        self.stem = channels == 3
        size = 4 if self.stem else 2
        self.conv = nn.Conv2d(channels, dim, size, size)
        self.norm = nn.LayerNorm(dim if self.stem else channels, EPS)

    def forward(self, x: Tensor) -> Tensor:
        return normalise(self.conv(x), self.norm) if self.stem else self.conv(normalise(x, self.norm))


class ConvNextBlock(nn.Module):
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
