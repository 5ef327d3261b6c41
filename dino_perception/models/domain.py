"""Does a frame look like those a head was trained on? A Gaussian of whole frames, in the features the head reads.

A frame is told by the mean and the standard deviation of every channel over its patches. Where the training frames vary,
distance is counted in their own spread (Lee et al. 2018, arXiv 1807.03888, one class); where they hardly do, all other
directions count together against what is left of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

DIRECTIONS = 160
"""Most directions that have a spread of their own; never more than a quarter of the frames, nor than a third of
the values of a frame: the rest must stay worth counting."""
QUANTILE = 0.99
"""The threshold is this quantile of held-out distances, and farther by `margin`."""
FEWEST = 8


class DomainError(ValueError):
    """Statistics cannot be made or read; the message says why."""


@dataclass(frozen=True)
class Domain:
    """`mean` (2C,), `basis` (2C, K) with columns of one over the spread along them, `rest` the root mean square of what
    they leave. A frame is `unlike` the training where `distance` is over `threshold`. `about` says what it was made of."""

    mean: Tensor
    basis: Tensor
    rest: float
    threshold: float
    about: Mapping[str, Any] = field(default_factory=dict)

    def distance(self, features: Tensor) -> Tensor:
        """(C, h, w) of one frame, the head's last tap, its padding cut off -> how many of its own spreads it is away."""
        return self.distances(summary(features)[None])[0]

    def to(self, device: torch.device) -> Domain:
        return Domain(self.mean.to(device), self.basis.to(device), self.rest, self.threshold, self.about)

    def distances(self, frames: Tensor) -> Tensor:
        """(N, 2C) summaries -> (N,)"""
        off = frames - self.mean
        along = off @ self.basis
        scale = (self.basis * self.basis).sum(dim=0)
        left = (off * off).sum(dim=1) - (along * along / scale).sum(dim=1)
        return ((along * along).mean(dim=1) + left.clamp_min(0) / self.rest**2).mul(0.5).sqrt()

    def tensors(self) -> dict[str, Tensor]:
        """What a head's file holds, with `metadata` beside it."""
        return {"domain.mean": self.mean, "domain.basis": self.basis}

    def metadata(self) -> dict[str, Any]:
        return {"rest": self.rest, "threshold": self.threshold, "about": dict(self.about)}


def summary(features: Tensor) -> Tensor:
    """(C, h, w) -> (2C,): mean and standard deviation of each channel."""
    x = features.flatten(1)
    mean = x.mean(dim=1)
    # The norm reads the features once and keeps no squares: a tenth of the time.
    return torch.cat([mean, torch.linalg.vector_norm(x - mean[:, None], dim=1) / x.shape[1] ** 0.5])


def fit(frames: Tensor, held_out: Tensor, **about: Any) -> Domain:
    """Statistics of `frames` (N, 2C), with a threshold from `held_out` (M, 2C), which should be of other places. Raises
    DomainError."""
    if len(frames) < FEWEST or len(held_out) < FEWEST // 2:
        raise DomainError(
            f"{len(frames)} frames and {len(held_out)} held-out ones are too few to know what is usual; "
            f"accepted are {FEWEST} and {FEWEST // 2}"
        )
    mean = frames.mean(dim=0)
    directions = min(DIRECTIONS, len(frames) // 4, frames.shape[1] // 3)
    _, sizes, axes = torch.linalg.svd(frames - mean, full_matrices=False)
    spread = sizes[:directions] / len(frames) ** 0.5
    left = (sizes[directions:] ** 2).sum() / len(frames)
    rest = float(left.sqrt().clamp_min(1e-6))
    domain = Domain(mean, (axes[:directions] / spread.clamp_min(1e-6)[:, None]).t().contiguous(), rest, 1.0)
    seen = domain.distances(held_out)
    threshold = margin(len(held_out)) * float(torch.quantile(seen, QUANTILE))
    about = {"frames": len(frames), "held_out": len(held_out), **about}
    return Domain(domain.mean, domain.basis, rest, threshold, about)


def margin(held_out: int) -> float:
    """How much farther than the quantile of so many held-out frames the threshold is: of a few the farthest is passed by
    many a usual frame, of hundreds the quantile is what it says."""
    return 1 + 0.15 * min(1.0, 20 / held_out)


def from_file(tensors: Mapping[str, Tensor], metadata: Any, channels: Sequence[int]) -> Domain | None:
    """The statistics of a head's file, checked, or None where it has none. Raises DomainError."""
    if metadata is None and not tensors:
        return None
    try:
        mean, basis = (tensors[f"domain.{name}"].float() for name in ("mean", "basis"))
        rest, threshold = float(metadata["rest"]), float(metadata["threshold"])
        about = dict(metadata.get("about", {}))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DomainError(f"its statistics of training frames are incomplete ({error})") from None
    fits = (
        mean.shape == (2 * channels[-1],) and basis.dim() == 2 and len(basis) == len(mean) and 0 < basis.shape[1] <= 512
    )
    finite = bool(torch.isfinite(mean).all() and torch.isfinite(basis).all()) and 0 < rest < 1e9 and 0 < threshold < 1e9
    if not fits or not finite:
        raise DomainError("its statistics of training frames do not fit its last tap, or are not finite")
    return Domain(mean, basis, rest, threshold, about)
