"""The two decoders of dinov3_ros (Raessan, Apache-2.0), which read the last normed layer alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dino_perception.models.heads.decoders import resize


class Pyramid(nn.Module):
    """Four levels from one map, each convolution in two: the depth decoder of dinov3_ros (Raessan, "DepthHeadLite").

    (B, C, h, w) -> (B, outputs, 8 h, 8 w). `widths` are the channels of the levels of 4, 2, 1 and 1/2 times the grid,
    `width` those they are fused in.
    """

    def __init__(self, channels: Sequence[int], outputs: int, widths: Sequence[int], width: int):
        super().__init__()
        if len(channels) != 1 or len(widths) != 4:
            raise ValueError(f"it reads one tap and has four levels, not {len(channels)} and {len(widths)}")
        self.reduce = nn.ModuleList(nn.Conv2d(channels[0], w, 1, bias=False) for w in widths)
        self.down = Separable(widths[3], widths[3], stride=2)
        self.level = nn.ModuleList(Separable(w, width) for w in widths)
        self.mix = nn.ModuleList(nn.Conv2d(width, width, 1, bias=False) for _ in widths)
        self.norm = nn.ModuleList(groups(width) for _ in widths)
        self.refine = nn.ModuleList(Separable(width, width) for _ in widths)
        self.to_half, self.to_half_norm = nn.Conv2d(width, width // 2, 3, padding=1), groups(width // 2)
        self.to_quarter, self.to_quarter_norm = nn.Conv2d(width // 2, width // 4, 3, padding=1), groups(width // 4)
        self.out = nn.Conv2d(width // 4, outputs, 1)

    def forward(self, *features: Tensor) -> Tensor:
        rows, columns = features[0].shape[2:]
        maps = [conv(features[0]) for conv in self.reduce]
        maps = [resize(maps[0], (4 * rows, 4 * columns)), resize(maps[1], (2 * rows, 2 * columns)), *maps[2:]]
        maps[3] = self.down(maps[3])
        levels = [conv(m) for conv, m in zip(self.level, maps)]
        x = None
        for i in (3, 2, 1, 0):
            x = levels[i] if x is None else resize(x, levels[i].shape[2:])
            x = F.gelu(self.norm[i](self.mix[i](x)))
            x = self.refine[i](x if i == 3 else x + levels[i])
        x = F.relu(self.to_half_norm(self.to_half(x)))
        x = resize(x, (2 * x.shape[2], 2 * x.shape[3]))
        return self.out(F.relu(self.to_quarter_norm(self.to_quarter(x))))


class Separable(nn.Module):
    """A 3x3 convolution a channel, then a 1x1 one across channels, each with group norm and GELU."""

    def __init__(self, channels: int, outputs: int, stride: int = 1):
        super().__init__()
        self.each = nn.Conv2d(channels, channels, 3, stride, padding=1, groups=channels, bias=False)
        self.each_norm = groups(channels)
        self.across = nn.Conv2d(channels, outputs, 1, bias=False)
        self.across_norm = groups(outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.each_norm(self.each(x)))
        return F.gelu(self.across_norm(self.across(x)))


def groups(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(min(8, channels), channels)


class Branches(nn.Module):
    """Four 3x3 convolutions side by side between 1x1 ones: the segmentation decoder of dinov3_ros (Raessan,
    "ASPPDecoder"). (B, C, h, w) -> (B, outputs, h, w)."""

    def __init__(self, channels: Sequence[int], outputs: int, width: int, branch: int):
        super().__init__()
        if len(channels) != 1:
            raise ValueError(f"it reads one tap, not {len(channels)}")
        self.initial, self.initial_norm = nn.Conv2d(channels[0], width, 1), nn.BatchNorm2d(width)
        self.project, self.project_norm = nn.Conv2d(width, branch, 1), nn.BatchNorm2d(branch)
        self.branches = nn.ModuleList(nn.Conv2d(branch, branch, 3, padding=1) for _ in range(4))
        self.norms = nn.ModuleList(nn.BatchNorm2d(branch) for _ in range(4))
        self.fuse, self.fuse_norm = nn.Conv2d(4 * branch, width, 1), nn.BatchNorm2d(width)
        self.each = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)
        self.across, self.across_norm = nn.Conv2d(width, width, 1), nn.BatchNorm2d(width)
        self.out = nn.Conv2d(width, outputs, 1)

    def forward(self, *features: Tensor) -> Tensor:
        x = F.relu(self.initial_norm(self.initial(features[0])))
        x = F.relu(self.project_norm(self.project(x)))
        x = torch.cat([F.relu(norm(conv(x))) for conv, norm in zip(self.branches, self.norms)], dim=1)
        x = F.relu(self.fuse_norm(self.fuse(x)))
        return self.out(F.relu(self.across_norm(self.across(self.each(x)))))
