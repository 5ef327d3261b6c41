"""The dense prediction transformer's decoder (Ranftl et al. 2021) as DINOv2, Depth Anything V2 and CHMv2 released it."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from dino_perception.models.heads.decoders import Residual, Unfold, resize


class Dpt(nn.Module):
    """Four maps of one size become a pyramid (4, 2, 1 and 1/2 times the patch grid), are fused from coarse to fine, and
    enlarged once more: (B, C_i, h, w) four times -> (B, outputs, about 16 h, about 16 w).

    `pyramid` are the channels of the four levels, `width` those they are fused in. With `readout`, four CLS tokens
    (B, C_i) follow the maps and each is mixed into every patch of its map (DINOv2's); without, there are none. `bias`
    says whether the residual units' convolutions have one. With `project`, a 3x3 convolution precedes the output
    (DINOv2's); `mix` says whether a fused map's channels are mixed by a 1x1 convolution, and `hidden` is the width before
    the output. With `patch`, a fused map takes the size of the next level and the output is `patch` times the grid
    (Depth Anything's); with 0, sizes are doubled and levels are fitted to them (DINOv2's).
    """

    def __init__(
        self,
        channels: Sequence[int],
        outputs: int,
        pyramid: Sequence[int],
        width: int,
        readout: bool,
        bias: bool,
        project: bool,
        patch: int,
        mix: bool,
        hidden: int,
    ):
        super().__init__()
        if len(channels) != 4 or len(pyramid) != 4:
            raise ValueError(f"it reads four taps and has four levels, not {len(channels)} and {len(pyramid)}")
        self.patch = patch
        self.readout = nn.ModuleList(nn.Linear(2 * c, c) for c in channels if readout)
        self.reduce = nn.ModuleList(nn.Conv2d(c, p, 1) for c, p in zip(channels, pyramid))
        self.up4, self.up2 = Unfold(pyramid[0], pyramid[0], 4), Unfold(pyramid[1], pyramid[1], 2)
        self.down2 = nn.Conv2d(pyramid[3], pyramid[3], 3, stride=2, padding=1)
        self.level = nn.ModuleList(nn.Conv2d(p, width, 3, padding=1, bias=False) for p in pyramid)
        self.fuse = nn.ModuleList(Fusion(width, bias, two=i > 0, mix=mix) for i in range(4))
        self.project = nn.Conv2d(width, width, 3, padding=1) if project else None
        self.narrow = nn.Conv2d(width, width // 2, 3, padding=1)
        self.refine = nn.Conv2d(width // 2, hidden, 3, padding=1)
        self.out = nn.Conv2d(hidden, outputs, 1)

    def forward(self, *features: Tensor) -> Tensor:
        maps, tokens = features[:4], features[4:]
        if self.readout:
            maps = [mixed(m, t, linear) for m, t, linear in zip(maps, tokens, self.readout)]
        a, b, c, d = (conv(m) for conv, m in zip(self.reduce, maps))
        pyramid = [conv(m) for conv, m in zip(self.level, (self.up4(a), self.up2(b), c, self.down2(d)))]
        sizes = [level.shape[2:] for level in pyramid]
        x = None
        for i, fuse in enumerate(self.fuse):  # the coarsest first
            level, finer = pyramid[3 - i], sizes[2 - i] if self.patch and i < 3 else None
            x = fuse(level, None, finer) if x is None else fuse(x, level, finer)
        if self.project is not None:
            x = F.relu(self.project(x))
        x = self.narrow(x)
        rows, columns = maps[0].shape[2:]
        size = (self.patch * rows, self.patch * columns) if self.patch else (2 * x.shape[2], 2 * x.shape[3])
        return self.out(F.relu(self.refine(enlarged(x, size))))


class Fusion(nn.Module):
    """Add a level (fitted to the size of what comes), mix, enlarge, mix channels. The first one has nothing to add to."""

    def __init__(self, width: int, bias: bool, two: bool, mix: bool):
        super().__init__()
        self.first = Residual(width, bias) if two else None
        self.second = Residual(width, bias)
        self.out = nn.Conv2d(width, width, 1) if mix else nn.Identity()

    def forward(self, x: Tensor, level: Tensor | None, size: Sequence[int] | None) -> Tensor:
        if level is not None:
            x = x + self.first(resize(level, x.shape[2:]))
        x = self.second(x)
        return self.out(enlarged(x, size or (2 * x.shape[2], 2 * x.shape[3])))


def mixed(patches: Tensor, token: Tensor, linear: nn.Linear) -> Tensor:
    """gelu(linear(patch and CLS token, joined)) at every patch. The CLS token's part is one vector an image, so it is
    computed once and added: (B, C, h, w), (B, C) -> (B, C, h, w)."""
    channels = patches.shape[1]
    own = F.conv2d(patches, linear.weight[:, :channels, None, None])
    same = F.linear(token, linear.weight[:, channels:], linear.bias)
    return F.gelu(own + same[:, :, None, None])


def enlarged(x: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear with the corners' centres kept in place, as these decoders were trained."""
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=True)
