"""Muon (Jordan 2024): momentum whose steps are made orthogonal, shared between processes."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as processes
from torch import Tensor

COEFFICIENTS = 3.4445, -4.7750, 2.0315
"""Coefficients of the quintic iteration: they lift small singular values fast and leave all between about 0.7 and
1.2."""


def orthogonal(matrices: Tensor, iterations: int = 5, dtype: torch.dtype = torch.float32) -> Tensor:
    """The matrices with all their singular values near one, by Newton and Schulz's iteration. (N, R, C) float32; products
    are computed in `dtype`."""
    a, b, c = COEFFICIENTS
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = (x / (torch.linalg.matrix_norm(x, keepdim=True) + 1e-7)).to(dtype)
    for _ in range(iterations):
        square = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(matrices.dtype)


class Muon(torch.optim.Optimizer):
    """For matrices. Steps have the root mean square that AdamW's have, 0.2 (Liu et al. 2025), so that both take one rate.

    Torch's own always computes in bfloat16, which a processor without it does slowly; here that is `dtype`. Processes of one
    group each do their share of the matrices and add up: gradients must be the same in all of them.
    """

    def __init__(
        self,
        matrices: Iterable[Tensor],
        rate: float,
        *,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        dtype: torch.dtype = torch.float32,
    ):
        self.dtype = dtype
        super().__init__(list(matrices), dict(lr=rate, momentum=momentum, weight_decay=weight_decay))

    @torch.no_grad()
    def step(self, closure=None) -> None:
        many = processes.is_available() and processes.is_initialized()
        rank, count = (processes.get_rank(), processes.get_world_size()) if many else (0, 1)
        for group in self.param_groups:
            given = [p for p in group["params"] if p.grad is not None]
            steps = [torch.zeros_like(p) for p in given]
            # The largest first, each to the next process: equal shares of work.
            order = sorted(range(len(given)), key=lambda i: -given[i].numel() * min(given[i].shape))
            shapes: dict[torch.Size, dict[int, Tensor]] = {}  # all of one shape at once: few calls for a GPU
            for turn, i in enumerate(order):
                p = given[i]
                mean = self.state[p].setdefault("mean", torch.zeros_like(p))
                mean.lerp_(p.grad, 1 - group["momentum"])
                if turn % count == rank:
                    shapes.setdefault(p.shape, {})[i] = p.grad.lerp(mean, group["momentum"])
            for shape, ahead in shapes.items():
                turned = orthogonal(torch.stack(list(ahead.values())), dtype=self.dtype) * (0.2 * max(shape) ** 0.5)
                for i, step in zip(ahead, turned):
                    steps[i] = step
            if count > 1:
                flat = torch.cat([s.flatten() for s in steps])
                processes.all_reduce(flat)
                steps = [s.view_as(p) for s, p in zip(flat.split([p.numel() for p in given]), given)]
            for p, step in zip(given, steps):
                p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(step, alpha=group["lr"])
