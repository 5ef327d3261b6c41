"""What patches are compared by: the backbone's features beside the gradients around each patch.

Features know what a patch shows and say little about where exactly its edges lie; those of neighbouring patches are
much alike, and part of what they say is where in the image they are. Histograms of gradient directions (the idea of
Lowe's SIFT, 2004, upright and on the patch grid) know edges and nothing else. Measured on rendered terrain with a
half-trained small backbone, mutual nearest neighbours within a patch of the truth, frames 1 s (and 3 s) apart: features
alone 188 of 561 (61 of 458), gradients alone 727 of 757 (401 of 479), both at this weight 745 of 778 (424 of 511).
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

import cv2
import numpy as np
import torch

from dino_perception.perception import compiled

FEATURE_SHARE = 0.2
"""What the backbone's features weigh in the comparison, of 1; the gradients weigh the rest."""
_KEPT = threading.local()
_OFFSETS = np.array([-3, -1, 2, 4])
"""Where a histogram's four columns (and rows) of cells are, in half patches from a patch's first half."""


def codes(features: torch.Tensor, gradients: torch.Tensor) -> torch.Tensor:
    """Vectors (N, D + E) by whose dot products patches are compared, from features (N, D) and gradients (N, E).

    Each part is taken without what all patches of the frame share, at unit length, times the root of its weight. On a
    CPU with AVX-512 they are 8-bit integers, which multiply in a quarter of float32's time.
    """
    eight_bits = features.device.type == "cpu" and torch.backends.cpu.get_cpu_capability() == "AVX512"
    largest = max((FEATURE_SHARE / features.shape[1]) ** 0.5, ((1 - FEATURE_SHARE) / gradients.shape[1]) ** 0.5)
    step = 4.5 * largest / 127
    made = compiled.library() if eight_bits else None
    if made is not None:
        halves = (features, FEATURE_SHARE**0.5), (gradients, (1 - FEATURE_SHARE) ** 0.5)
        return torch.from_numpy(
            compiled.codes(made, [(v.float().contiguous().numpy(), length) for v, length in halves], step)
        )
    joint = joined(features, gradients.to(features.device))
    return joint.mul_(1 / step).round_().clamp_(-127, 127).to(torch.int8) if eight_bits else joint


def joined(features: torch.Tensor, gradients: torch.Tensor) -> torch.Tensor:
    """`codes` in float32, on any device."""
    parts = []
    for vectors, share in ((features, FEATURE_SHARE), (gradients, 1 - FEATURE_SHARE)):
        centred = vectors - vectors.mean(dim=0)
        centred *= share**0.5 * centred.square().sum(dim=1, keepdim=True).clamp_min(1e-12).rsqrt()
        parts.append(centred)
    return torch.cat(parts, dim=1)


def similarities(a: torch.Tensor, b: torch.Tensor) -> np.ndarray:
    """Similarities (N, M) of all codes `a` (N, D) to all codes `b` (M, D), up to a common factor. Those of 8-bit codes are
    overwritten by the thread's next call: megabytes of fresh pages cost as much as the arithmetic."""
    if a.dtype == torch.int8:
        kept = getattr(_KEPT, "similarities", None)
        if kept is None or kept.shape != (len(a), len(b)):
            kept = _KEPT.similarities = torch.empty(len(a), len(b), dtype=torch.int32)
        return torch._int_mm(a, b.T, out=kept).numpy()
    return (a @ b.T).cpu().numpy()


def gradients(levels: Sequence[np.ndarray], rows: int, columns: int, patch: tuple[float, float]) -> torch.Tensor:
    """Histograms (rows * columns, 64) float32 of the gradients around each patch.

    `levels` is the image's pyramid, `patch` (x, y) a patch's size in image pixels. 4 x 4 cells, some five patches wide
    in all, hold the strength of the gradients to the right, to the left, down and up, as roots of their shares.
    """
    level = min(range(len(levels)), key=lambda i: abs(patch[0] / 2**i - 4))
    image = levels[level]
    dx, dy = (cv2.Sobel(image, cv2.CV_32F, *order, ksize=3) for order in ((1, 0), (0, 1)))
    strength = cv2.merge([np.maximum(d, 0) for d in (dx, -dx, dy, -dy)])
    halves = [max(2, round(2 * side * 2.0**level / size)) for side, size in zip(image.shape[::-1], patch)]
    cells = cv2.GaussianBlur(cv2.resize(strength, halves, interpolation=cv2.INTER_AREA), (0, 0), 1.2)
    made = compiled.library()
    if made is not None:
        return torch.from_numpy(compiled.histograms(made, cells, _OFFSETS, rows, columns))
    y = np.clip(2 * np.arange(rows)[:, None] + _OFFSETS, 0, halves[1] - 1)
    x = np.clip(2 * np.arange(columns)[:, None] + _OFFSETS, 0, halves[0] - 1)
    around = cells[y[:, None, :, None], x[None, :, None, :]].reshape(rows * columns, -1)
    return torch.from_numpy(np.sqrt(around / np.maximum(around.sum(axis=1, keepdims=True), 1e-6)))
