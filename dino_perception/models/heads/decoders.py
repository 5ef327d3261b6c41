"""The networks between feature maps and raw maps: a linear layer, and three light convolutional decoders."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Linear(nn.Module):
    """BatchNorm and a 1x1 convolution on the concatenated taps: the probe of DINOv3's evaluation (paper, D.10).

    Taps of other sizes are resized to the first. (B, C_i, h_i, w_i) ... -> (B, outputs, h_0, w_0).
    """

    def __init__(self, channels: Sequence[int], outputs: int, dropout: float):
        super().__init__()
        self.dropout = nn.Dropout2d(dropout)
        self.norm = nn.BatchNorm2d(sum(channels))
        self.out = nn.Conv2d(sum(channels), outputs, 1)

    def forward(self, *features: Tensor) -> Tensor:
        size = features[0].shape[2:]
        x = torch.cat([resize(f, size) for f in features], dim=1)
        return self.out(self.norm(self.dropout(x)))


class LinearWithToken(nn.Module):
    """A 1x1 convolution on the concatenated taps, each with its CLS token beside every patch, `upsample` times enlarged:
    DINOv2's linear depth heads. What the CLS tokens add is the same everywhere, so it is computed once an image.

    n maps (B, C_i, h, w) and then n tokens (B, C_i) -> (B, outputs, upsample * h, upsample * w).
    """

    def __init__(self, channels: Sequence[int], outputs: int, upsample: int):
        super().__init__()
        self.upsample = upsample
        self.out = nn.Conv2d(sum(channels), outputs, 1)
        self.token = nn.Linear(sum(channels), outputs, bias=False)

    def forward(self, *features: Tensor) -> Tensor:
        maps, tokens = features[: len(features) // 2], features[len(features) // 2 :]
        x = self.out(torch.cat(maps, dim=1)) + self.token(torch.cat(tokens, dim=1))[:, :, None, None]
        return resize(x, (self.upsample * x.shape[2], self.upsample * x.shape[3]))


class MultiTap(nn.Module):
    """A light decoder: taps are projected and summed at patch resolution, mixed there, refined at twice that.

    (B, C_i, h_i, w_i) ... -> (B, outputs, 2h, 2w), with h x w the grid of the second-finest size among the taps
    (all of a ViT's have one).
    """

    def __init__(self, channels: Sequence[int], outputs: int, width: int):
        super().__init__()
        self.norms = nn.ModuleList(nn.BatchNorm2d(c) for c in channels)
        self.project = nn.ModuleList(nn.Conv2d(c, width, 1) for c in channels)
        self.mix = Residual(width)
        self.refine = nn.Conv2d(width, width // 2, 3, padding=1)
        self.out = nn.Conv2d(width // 2, outputs, 1)

    def forward(self, *features: Tensor) -> Tensor:
        size = base_size(features)
        levels = [resize(p(n(f)), size) for n, p, f in zip(self.norms, self.project, features)]
        x = self.mix(sum(levels[1:], levels[0]))
        x = F.relu(self.refine(resize(x, doubled(x))))
        return self.out(x)


class LightDpt(nn.Module):
    """A dense prediction transformer's decoder (Ranftl et al. 2021, sec. 3.2) made small.

    Taps become a pyramid, the last at half the patch resolution, the first at twice it, and are fused from coarse to
    fine. (B, C_i, h_i, w_i) ... -> (B, outputs, 2h, 2w), h x w as in `MultiTap`.
    """

    def __init__(self, channels: Sequence[int], outputs: int, width: int):
        super().__init__()
        self.norms = nn.ModuleList(nn.BatchNorm2d(c) for c in channels)
        self.project = nn.ModuleList(nn.Conv2d(c, width, 1) for c in channels)
        self.coarse = nn.Conv2d(width, width, 3, stride=2, padding=1)
        self.fuse = nn.ModuleList(Residual(width) for _ in channels)
        self.refine = nn.Conv2d(width, width, 3, padding=1)
        self.out = nn.Conv2d(width, outputs, 1)

    def forward(self, *features: Tensor) -> Tensor:
        size = base_size(features)
        levels = [p(n(f)) for n, p, f in zip(self.norms, self.project, features)]
        x = self.fuse[-1](self.coarse(resize(levels[-1], size)))
        for level, fuse in zip(levels[-2::-1], list(self.fuse)[-2::-1]):
            x = fuse(resize(x, size) + resize(level, size))
        x = F.relu(self.refine(resize(x, doubled(x))))
        return self.out(x)


class SubPatch(nn.Module):
    """A light decoder with a weight of its own for every place within a patch: taps are projected and summed at patch
    resolution, mixed there, and unfolded to four times that, so that what a patch knows of its inside is not smeared.

    (B, C_i, h_i, w_i) ... -> (B, outputs, 4h, 4w), h x w as in `MultiTap`.
    """

    def __init__(self, channels: Sequence[int], outputs: int, width: int):
        super().__init__()
        self.norms = nn.ModuleList(nn.BatchNorm2d(c) for c in channels)
        self.project = nn.ModuleList(nn.Conv2d(c, width, 1) for c in channels)
        self.mix = Residual(width)
        self.unfold = Unfold(width, width // 2, 4)
        self.refine = nn.Conv2d(width // 2, width // 2, 3, padding=1)
        self.out = nn.Conv2d(width // 2, outputs, 1)

    def forward(self, *features: Tensor) -> Tensor:
        size = base_size(features)
        levels = [resize(p(n(f)), size) for n, p, f in zip(self.norms, self.project, features)]
        x = F.relu(self.mix(sum(levels[1:], levels[0])))
        return self.out(F.relu(self.refine(F.relu(self.unfold(x)))))


class Unfold(nn.Module):
    """A transposed convolution whose stride is its kernel, as the 1x1 convolution and the pixel shuffle that it is.

    Outputs of neighbouring cells do not overlap, so each cell becomes a block of `factor` x `factor` pixels by one matrix
    product: (B, C, h, w) -> (B, outputs, factor * h, factor * w). TensorRT has no bfloat16 kernel for transposed
    convolutions, and other runtimes take no longer this way. `weight` (C, outputs, factor, factor) and `bias` (outputs,)
    are those of `nn.ConvTranspose2d(C, outputs, factor, stride=factor)`.
    """

    def __init__(self, channels: int, outputs: int, factor: int):
        super().__init__()
        self.factor = factor
        like = nn.ConvTranspose2d(channels, outputs, factor, stride=factor)
        self.weight, self.bias = like.weight, like.bias

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight.flatten(1).t()[:, :, None, None]  # an output's factor^2 rows follow one another
        bias = self.bias.repeat_interleave(self.factor**2)
        return F.pixel_shuffle(F.conv2d(x, weight, bias), self.factor)


class Residual(nn.Module):
    """x + conv(relu(conv(relu(x))))"""

    def __init__(self, width: int, bias: bool = True):
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1, bias=bias)
        self.second = nn.Conv2d(width, width, 3, padding=1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.relu(self.first(F.relu(x))))


def resize(x: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear, half-pixel centres; a map that has the size already is left alone."""
    if tuple(x.shape[2:]) == tuple(size):
        return x
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)


def base_size(features: Sequence[Tensor]) -> tuple[int, int]:
    """The second-finest size among the maps: a ViT's patch grid, 1/8 of a ConvNeXt's image with all four stages."""
    sizes = sorted({tuple(f.shape[2:]) for f in features}, reverse=True)
    return sizes[min(1, len(sizes) - 1)]


def doubled(x: Tensor) -> tuple[int, int]:
    return 2 * x.shape[2], 2 * x.shape[3]
