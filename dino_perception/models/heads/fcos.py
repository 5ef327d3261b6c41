"""A fully convolutional one-stage detector (Tian et al. 2019, "FCOS") on a small pyramid made of one map."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dino_perception.models.heads.boxes import points
from dino_perception.models.heads.decoders import Unfold, resize


class Fcos(nn.Module):
    """Maps (B, C_i, h, w) of one size or more, resized to the last, with cells of `stride` input pixels -> (B, L, K + 8).

    L are the cells of `up` finer levels, each with cells of half the size, of the map's own level and of `down` coarser
    ones, the finest first, each level row by row. Of a cell there are: K class logits, the distances from its middle to the
    left, top, right and bottom of its box in input pixels, the logit of how central it is, and the constants x, y of its
    middle and the stride of its level.

    With `up` 0 and `down` 2, 192 channels, 4 `convolutions` and norms of 32 `groups` it is the detector of dinov3_ros
    (Raessan, "DinoFCOSHead").
    """

    def __init__(
        self,
        channels: Sequence[int],
        outputs: int,
        stride: int,
        width: int,
        convolutions: int,
        up: int,
        down: int,
        groups: int,
    ):
        super().__init__()
        if stride % 2**up:
            raise ValueError(f"cells of {stride} pixels cannot be halved {up} times")
        self.strides = [stride * 2**i // 2**up for i in range(up + 1 + down)]
        groups = min(groups, width)
        self.project, self.project_norm = nn.Conv2d(sum(channels), width, 1, bias=False), nn.GroupNorm(groups, width)
        self.up = nn.ModuleList(Unfold(width, width, 2) for _ in range(up))
        self.down = nn.ModuleList(Step(width, groups, 2) for _ in range(down))
        self.smooth = nn.ModuleList(Step(width, groups) for _ in self.strides)
        self.class_tower = nn.Sequential(*(Step(width, groups) for _ in range(convolutions)))
        self.box_tower = nn.Sequential(*(Step(width, groups) for _ in range(convolutions)))
        self.classes = nn.Conv2d(width, outputs, 3, padding=1)
        self.boxes = nn.Conv2d(width, 4, 3, padding=1)
        self.centre = nn.Conv2d(width, 1, 3, padding=1)
        self.scales = nn.ParameterList(nn.Parameter(torch.tensor(4.0 * stride)) for stride in self.strides)

    def forward(self, *features: Tensor) -> Tensor:
        found = [self._level(i, level) for i, level in enumerate(self._pyramid(features))]
        return torch.cat(found, dim=1)

    def _pyramid(self, features: Sequence[Tensor]) -> list[Tensor]:
        size = features[-1].shape[2:]
        x = torch.cat([resize(f, size) for f in features], dim=1) if len(features) > 1 else features[0]
        levels = [F.relu(self.project_norm(self.project(x)))]
        for step in self.down:
            levels.append(step(levels[-1]))
        for unfold in self.up:
            levels.insert(0, F.relu(unfold(levels[0])))
        smoothed = [self.smooth[-1](levels[-1])]
        # What comes down is the smoothed coarser level, but at the top the level itself, as in dinov3_ros.
        above = levels[-1]
        for level, smooth in zip(levels[-2::-1], list(self.smooth)[-2::-1]):
            above = smooth(level + F.interpolate(above, size=level.shape[2:], mode="nearest"))
            smoothed.insert(0, above)
        return smoothed

    def _level(self, i: int, level: Tensor) -> Tensor:
        boxes = self.box_tower(level)
        distances = F.softplus(self.boxes(boxes)) * self.scales[i]
        own = [self.classes(self.class_tower(level)), distances, self.centre(boxes)]
        where = torch.from_numpy(points(*level.shape[2:], self.strides[i])).to(level.device)
        cells = [map.flatten(2).transpose(1, 2) for map in own]
        return torch.cat([*cells, where[None].expand(level.shape[0], -1, -1)], dim=2)


class Step(nn.Module):
    """A 3x3 convolution without bias, group norm and ReLU."""

    def __init__(self, width: int, groups: int, stride: int = 1):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.norm = nn.GroupNorm(groups, width)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv(x)))
