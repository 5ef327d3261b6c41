"""What a backbone costs: parameters, and operations at an image size."""

from __future__ import annotations

import torch

from dino_perception.models.catalog import BackboneSpec
from dino_perception.models.checkpoints import CLASSES


def parameters(spec: BackboneSpec) -> int:
    """Number of parameters of this package's module (no weights are allocated)."""
    with torch.device("meta"):
        return sum(p.numel() for p in CLASSES[spec.family](spec).parameters())


def flops(spec: BackboneSpec, height: int, width: int) -> int:
    """Floating-point operations of one image: two for each multiply-add of a convolution, a matrix product or
    attention; norms, activations and sums are left out, as is usual. Sides are rounded to the backbone's stride."""
    height, width = (max(1, round(side / spec.stride)) * spec.stride for side in (height, width))
    if spec.convolutional:
        total, before = 0, 3
        for stage, (dim, depth) in enumerate(zip(spec.dims, spec.depths)):
            cells = height * width // (4 * 2**stage) ** 2
            kernel = 16 if stage == 0 else 4
            total += cells * (before * kernel * dim + depth * (49 * dim + 8 * dim * dim))
            before = dim
        return 2 * total
    dim, patches = spec.dim, height * width // spec.patch**2
    tokens = patches + 1 + spec.registers
    layer = tokens * dim * (4 * dim + (3 if spec.gated else 2) * spec.hidden) + 2 * tokens * tokens * dim
    return 2 * (patches * 3 * spec.patch**2 * dim + spec.depth * layer)
