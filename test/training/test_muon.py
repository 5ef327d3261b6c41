"""Muon's steps: orthogonal, of AdamW's size, the same however many processes share them."""

from __future__ import annotations

import torch

from dino_perception.training.pretraining.muon import Muon, orthogonal


def matrix(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def test_singular_vectors_stay_and_singular_values_become_about_one():
    for shape in ((40, 160), (160, 40), (48, 80)):
        several = torch.stack([matrix(*shape, seed=seed) for seed in range(3)])
        for m, made in zip(several, orthogonal(several)):
            u, _, v = torch.linalg.svd(m, full_matrices=False)
            turned = u.T @ made @ v.T
            values = turned.diagonal()
            assert ((values > 0.4) & (values < 1.3)).all()
            assert (turned - torch.diag(values)).abs().max() < 1e-3


def test_a_step_is_that_of_torch_s_own():
    p, q = (torch.nn.Parameter(matrix(48, 96, seed=1)) for _ in range(2))
    mine = Muon([p], 0.02, weight_decay=0.1)
    theirs = torch.optim.Muon([q], lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for seed in range(3):
        p.grad = matrix(48, 96, seed=10 + seed)
        q.grad = p.grad.clone()
        mine.step()
        theirs.step()
    moved = (p - matrix(48, 96, seed=1)).norm()
    assert (p - q).norm() < 0.05 * moved  # theirs computes in bfloat16


def test_in_bfloat16_a_step_is_that_of_torch_s_own_but_for_rounding():
    p, q, exact = (torch.nn.Parameter(matrix(48, 96, seed=1)) for _ in range(3))
    for parameter in (p, q, exact):
        parameter.grad = matrix(48, 96, seed=10)
    Muon([p], 0.02, dtype=torch.bfloat16).step()
    Muon([exact], 0.02).step()
    torch.optim.Muon([q], lr=0.02, weight_decay=0.0, adjust_lr_fn="match_rms_adamw").step()
    moved = (p - matrix(48, 96, seed=1)).norm()
    assert p.dtype == torch.float32 and (p - q).norm() < 0.025 * moved
    assert 1e-3 * moved < (p - exact).norm() < 0.03 * moved


def test_processes_make_the_steps_that_one_makes(monkeypatch):
    alone = [torch.nn.Parameter(matrix(8, n, seed=n)) for n in (8, 16, 32)]
    for p in alone:
        p.grad = matrix(*p.shape, seed=100)
    shared = [[torch.nn.Parameter(p.detach().clone()) for p in alone] for _ in range(2)]
    Muon(alone, 0.1).step()
    seen = []
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    for rank in (0, 1):  # the first tells what it would send, the second gets it
        for p in shared[rank]:
            p.grad = matrix(*p.shape, seed=100)
        monkeypatch.setattr(torch.distributed, "get_rank", lambda: rank)
        monkeypatch.setattr(
            torch.distributed, "all_reduce", lambda flat: flat.add_(seen[0]) if seen else seen.append(flat.clone())
        )
        Muon(shared[rank], 0.1).step()
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(alone, shared[1]))
    assert not torch.allclose(shared[0][0], shared[1][0]) or not torch.allclose(shared[0][1], shared[1][1])
