"""DINOv2: the same blocks without rotary positions; a learned position table is scaled to the image's patch grid."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dino_perception.models.catalog import BackboneSpec
from dino_perception.models.vit import FixedTransformer, VisionTransformer


class DinoV2(VisionTransformer):
    """The weights. `position` (1, grid * grid, D) is the table of the patches; the CLS token has its entry added."""

    def __init__(self, spec: BackboneSpec):
        super().__init__(spec)
        del self.periods
        self.position = nn.Parameter(torch.zeros(1, spec.grid**2, spec.dim))

    def _fixed(self, *arguments) -> FixedDinoV2:
        return FixedDinoV2(self, *arguments)


class FixedDinoV2(FixedTransformer):
    """The transformer for one image size, its position table scaled once."""

    def positions(self) -> tuple[None, None]:
        net = self.backbone
        table = scale_table(net.position.detach(), self.rows, self.columns, net.spec.offset, net.spec.antialias)
        self.register_buffer("position", table, persistent=False)
        return None, None

    def patches(self, image: Tensor) -> Tensor:
        return super().patches(image) + self.position


def scale_table(table: Tensor, rows: int, columns: int, offset: float, antialias: bool) -> Tensor:
    """(1, grid * grid, D) -> (1, rows * columns, D) by bicubic interpolation.

    The libraries differ. The original code scales by (rows + 0.1) / grid for models without registers, which shifts
    every sample a little, and antialiases for models with registers; Hugging Face's scales to the size and antialiases
    where the original does; timm's scales to the size and always antialiases.
    """
    grid = round(table.shape[1] ** 0.5)
    if rows == columns == grid:
        return table
    square = table.reshape(1, grid, grid, -1).permute(0, 3, 1, 2)
    factors = (rows + offset) / grid, (columns + offset) / grid
    to = dict(scale_factor=factors) if offset else dict(size=(rows, columns))
    scaled = F.interpolate(square, mode="bicubic", align_corners=False, antialias=antialias, **to)
    return scaled.permute(0, 2, 3, 1).flatten(1, 2)
