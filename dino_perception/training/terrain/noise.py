"""Random fields on regular grids: spectral noise, smooth resampling between grids, and bilinear lookups."""

from __future__ import annotations

import math
import zlib

import torch
from torch import Tensor


def stream(seed: int, *names: object) -> torch.Generator:
    """A CPU generator of its own for each purpose: what one draws more leaves the others as they were."""
    text = "/".join(str(part) for part in (seed, *names))
    return torch.Generator().manual_seed(zlib.crc32(text.encode()) << 16 | zlib.crc32(text[::-1].encode()) & 0xFFFF)


def uniform(rng: torch.Generator, low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand((), generator=rng))


def spectral(
    rng: torch.Generator,
    size: int,
    cell: float,
    shortest: float,
    longest: float,
    slope: float = 1.0,
    device: torch.device | str = "cpu",
    stretch: float = 1.0,
) -> Tensor:
    """Periodic Gaussian noise (size, size) of unit variance.

    Its amplitude spectrum falls as frequency ** -(slope + 1) between the wavelengths `shortest` and `longest` (metres;
    `cell` is the grid spacing): slope 0 gives equal variance an octave, 1 self-affine rock and soil. `stretch` > 1
    makes it longer along x.
    """
    white = torch.randn((size, size), generator=rng).to(device)
    fy = torch.fft.fftfreq(size, cell, device=device)[:, None]
    fx = torch.fft.rfftfreq(size, cell, device=device)[None, :] * stretch
    frequency = torch.sqrt(fx * fx + fy * fy).clamp_min(0.5 / (size * cell))
    band = torch.sigmoid(8.0 * torch.log2(frequency * longest))
    band = band * torch.sigmoid(-8.0 * torch.log2(frequency * shortest))
    gain = band * frequency ** -(slope + 1.0)
    gain[0, 0] = 0.0
    noise = torch.fft.irfft2(torch.fft.rfft2(white) * gain, s=(size, size))
    return noise / noise.std().clamp_min(1e-12)


def cubic_weights(positions: Tensor, size: int) -> Tensor:
    """Catmull-Rom interpolation as a matrix: (len(positions), size) weights for fractional indices `positions`."""
    base = positions.floor()
    f = positions - base
    taps = (
        ((-0.5 * f + 1.0) * f - 0.5) * f,
        (1.5 * f - 2.5) * f * f + 1.0,
        ((-1.5 * f + 2.0) * f + 0.5) * f,
        (0.5 * f - 0.5) * f * f,
    )
    matrix = torch.zeros((len(positions), size), device=positions.device)
    rows = torch.arange(len(positions), device=positions.device)
    for k, weight in enumerate(taps):
        columns = (base.long() + k - 1).clamp(0, size - 1)
        matrix.index_put_((rows, columns), weight, accumulate=True)
    return matrix


def resample(grid: Tensor, cell: float, new_size: int, new_cell: float) -> Tensor:
    """A square grid centred on the origin, resampled (cubic) to another one centred there too."""
    axis = (torch.arange(new_size, device=grid.device, dtype=torch.float32) - (new_size - 1) / 2) * (new_cell / cell)
    margin = max(0, int((grid.shape[0] - 1) / 2 - float(axis[-1])) - 4)
    inner = grid[margin : grid.shape[0] - margin, margin : grid.shape[0] - margin]
    weights = cubic_weights(axis + (inner.shape[0] - 1) / 2, inner.shape[0])
    return weights @ inner @ weights.T


def bilinear(flat: Tensor, index: Tensor, stride: int, fx: Tensor, fy: Tensor) -> Tensor:
    """Four-tap lookup in a flattened row-major grid. `flat` is (cells,) or (cells, C); returns (N,) or (N, C)."""
    if flat.dim() == 2:
        fx, fy = fx[:, None], fy[:, None]
    top = torch.lerp(flat.index_select(0, index), flat.index_select(0, index + 1), fx)
    below = torch.lerp(flat.index_select(0, index + stride), flat.index_select(0, index + stride + 1), fx)
    return torch.lerp(top, below, fy)


def smoothstep(low: float | Tensor, high: float | Tensor, x: Tensor) -> Tensor:
    s = ((x - low) / (high - low)).clamp(0.0, 1.0)
    return s * s * (3.0 - 2.0 * s)


def rotation(angle: float) -> tuple[float, float]:
    return math.cos(angle), math.sin(angle)
