"""Trains a head on cached features: batches, steps, validation, and the weights that did best."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dino_perception.models.heads import Head
from dino_perception.models.heads.decoders import Residual
from dino_perception.training.datasets import DataError
from dino_perception.training.features import Item
from dino_perception.training.tasks import task_of


@dataclass(frozen=True)
class Recipe:
    """How a head is trained. `epochs` passes over the frames, but at least `least_steps` steps, so that a handful of
    frames is enough; training ends early after `patience` validations without a better one."""

    epochs: int = 30
    least_steps: int = 400
    batch: int = 8
    rate: float = 1e-3
    weight_decay: float = 0.01
    label_smoothing: float = 0.0
    class_weights: str = "none"
    overlap: float = 0.0
    relief: float = 0.0
    patience: int = 12
    seed: int = 0


@dataclass(frozen=True)
class TrainingStep:
    """How far training is: told after every step."""

    step: int
    steps: int
    loss: float
    score: float
    best: float


@dataclass
class FitOutcome:
    """What came of it. `history` has one row a validation: step, loss since the last one, score."""

    steps: int
    best_step: int
    stopped_early: bool
    history: list[tuple[int, float, float]] = field(default_factory=list)
    metrics: dict[str, object] = field(default_factory=dict)


def fit(
    head: Head,
    train: Sequence[Item],
    validation: Sequence[Item],
    recipe: Recipe,
    device: torch.device | str = "cpu",
    progress: Callable[[TrainingStep], None] | None = None,
    begun: Head | None = None,
) -> FitOutcome:
    """Train `head` in place and leave it in eval mode on the CPU, with the weights that did best on `validation`, or
    the last ones where that is empty. The same seed gives the same weights on the same machine.

    AdamW, a linear warm-up over a twentieth of the steps, then a cosine to zero. A segmentation head is judged by mIoU,
    a depth head by AbsRel. An untrained head takes over all but the last layer of `begun`, a trained one of the same
    architecture. Raises DataError for frames in which nothing is known, and for a `begun` of other layers.
    """
    task = task_of(head.spec.kind)
    reads, judged = (
        [functools.partial(np.load, item.truth, mmap_mode="r") for item in of] for of in (train, validation)
    )
    for truths, what in ((reads, "to learn from"), (judged, "to judge by")):
        if truths and (why := task.unknown(head, truths)):
            raise DataError(f"the {len(truths)} {task.truths_name} {what} {why}")
    torch.manual_seed(recipe.seed)
    order = torch.Generator().manual_seed(recipe.seed)
    if not head.trained:
        _begin_small(head)
        if begun is not None:
            _take_over(head, begun)
        task.begin(head, reads)
    head.to(device).requires_grad_(True)
    decayed = [p for p in head.parameters() if p.dim() >= 2]
    others = [p for p in head.parameters() if p.dim() < 2]
    optimiser = torch.optim.AdamW(
        [dict(params=decayed, weight_decay=recipe.weight_decay), dict(params=others, weight_decay=0.0)], lr=recipe.rate
    )
    epoch_steps = max(1, math.ceil(len(train) / recipe.batch))
    steps = max(recipe.epochs * epoch_steps, recipe.least_steps)
    every = max(epoch_steps, steps // 30)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _rate(step, steps))
    weights = task.weights(head, reads, recipe)
    weights = None if weights is None else weights.to(device)
    sign = task.better
    outcome, best, kept, losses, since = FitOutcome(0, 0, False), -math.inf, None, [], 0
    shown = math.nan
    batches = _endless(len(train), recipe.batch, order)
    for step in range(1, steps + 1):
        head.train()
        features, truth = load([train[i] for i in next(batches)], device)
        loss = task.loss(head, head(*features), truth, weights, recipe)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(head.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        losses.append(loss.item())
        outcome.steps = step
        if step % every == 0 or step == steps:
            shown = score(head, validation, device) if validation else math.nan
            outcome.history.append((step, float(np.mean(losses)), shown))
            losses, since = [], since + 1
            if validation and sign * shown > best:
                best, kept, outcome.best_step, since = sign * shown, copy.deepcopy(head.state_dict()), step, 0
        if progress:
            progress(TrainingStep(step, steps, loss.item(), shown, sign * best))
        if validation and since >= recipe.patience:
            outcome.stopped_early = True
            break
    if kept is not None:
        head.load_state_dict(kept)
    else:
        outcome.best_step = outcome.steps
    head.to("cpu").eval().requires_grad_(False)
    head.trained = True
    return outcome


def measure(head: Head, items: Sequence[Item], device: torch.device | str = "cpu") -> dict[str, object]:
    """The head's numbers on cached features, at the size of the truth: mIoU, IoU a class, pixel accuracy and ECE, or
    AbsRel, RMSE and deltas up to 30 m."""
    return {**task_of(head.spec.kind).report(head, _measured(head, items, device)), "looks": len(items)}


def score(head: Head, items: Sequence[Item], device: torch.device | str = "cpu") -> float:
    """The one number that decides (tasks.py): mIoU or AbsRel."""
    return task_of(head.spec.kind).number(_measured(head, items, device))


def load(items: Sequence[Item], device: torch.device | str) -> tuple[list[Tensor], Tensor]:
    """Feature maps (B, C, h, w) float32 of each tap, and truth (B, H, W)."""
    loaded = [item.load() for item in items]
    taps = zip(*(features for features, _ in loaded))
    features = [torch.from_numpy(np.stack(maps)).to(device).float() for maps in taps]
    return features, torch.from_numpy(np.stack([truth for _, truth in loaded])).to(device)


def recipe_record(recipe: Recipe) -> dict[str, object]:
    return asdict(recipe)


@torch.inference_mode()
def _measured(head: Head, items: Sequence[Item], device) -> Any:
    head.to(device).eval()
    task = task_of(head.spec.kind)
    numbers = task.score(head)
    for start in range(0, len(items), 8):
        features, truth = load(items[start : start + 8], device)
        reduced = [t.cpu().numpy() for t in head.reduce(head(*features), *truth.shape[1:])]
        for i, true in enumerate(truth.cpu().numpy()):
            task.add(numbers, true, {output.name: array[i] for output, array in zip(head.OUTPUTS, reduced)})
    return numbers


@torch.no_grad()
def _begin_small(head: Head) -> None:
    """Residual branches begin at zero (Zhang et al. 2019) and logits near their bias. Drawn at full size they are tens from one
    another, and the first steps drive the softmax into a corner where nothing more is learnt."""
    for module in head.modules():
        if isinstance(module, Residual):
            module.second.weight.zero_()
    if hasattr(head.net, "out"):
        head.net.out.weight.mul_(0.3)


@torch.no_grad()
def _take_over(head: Head, begun: Head) -> None:
    """All but the last layer, which begins at nothing: it may have other classes or bins, and bins to which a softmax gives
    no weight any more get no gradient either."""
    own = head.state_dict()
    taken = {name: t for name, t in begun.state_dict().items() if not name.startswith("net.out.")}
    if "net.out.weight" not in own or any(name not in own or own[name].shape != t.shape for name, t in taken.items()):
        raise DataError(f"a {begun.spec.arch} {begun.spec.kind} head has other layers than the one to be trained")
    head.load_state_dict({**own, **taken})
    head.net.out.weight.zero_()


def _endless(count: int, batch: int, generator: torch.Generator):
    """Batches of indices, every one once before any comes again."""
    while True:
        order = torch.randperm(count, generator=generator).tolist()
        for start in range(0, count, batch):
            yield order[start : start + batch]


def _rate(step: int, steps: int) -> float:
    warm = max(1, steps // 20)
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warm) / max(1, steps - warm))))
