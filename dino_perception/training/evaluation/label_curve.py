"""Label efficiency: how good a head gets with few labelled frames."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import torch

from dino_perception.models.backbone import Backbone
from dino_perception.models.heads import create_head
from dino_perception.training.datasets import Dataset
from dino_perception.training.evaluation.baselines import ColourNeighbours
from dino_perception.training.evaluation.metrics import SegmentationScore
from dino_perception.training.evaluation.sampling import nearest
from dino_perception.training.features import FeatureCache, Progress
from dino_perception.training.fit import Recipe, TrainingStep, fit, score
from dino_perception.training.looks import Look, views
from dino_perception.training.splitting import limited
from dino_perception.training.teaching import last_tap, teach

COUNTS = (5, 20, 100, 500)


def label_efficiency(
    backbone: Backbone,
    cache: FeatureCache,
    train: Dataset,
    test: Dataset,
    *,
    arch: str = "",
    taps: Sequence[int] | None = None,
    counts: Sequence[int] = COUNTS,
    seeds: int = 3,
    looks: int = 2,
    recipe: Recipe = Recipe(),
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> list[dict[str, float]]:
    """One row a number of labelled frames: `frames`, `miou` (mean over `seeds` draws of frames), `spread`
    (their standard deviation), `shown_miou`, a head that is only shown the same frames (teaching.py; NaN where `taps` lack
    the last layer), and `baseline_miou`, colour neighbours that know them.

    Every head is trained for all its steps without looking at `test`, which only judges it. Counts beyond the training
    frames there are end in one row with all of them.
    """
    tell = progress or (lambda *_: None)
    sizes = sorted({min(count, len(train.samples)) for count in counts})
    tests = cache.items(test, "segmentation", [Look()], progress)
    rows = []
    for size in sizes:
        own, shown, base = [], [], []
        for seed in range(seeds):
            part = limited(train, size, seed)
            items = cache.items(part, "segmentation", views(looks), progress)
            head = create_head("segmentation", backbone, arch, labels=train.labels, taps=taps)
            fit(
                head,
                items,
                [],
                dataclasses.replace(recipe, seed=seed),
                device,
                _steps(tell, f"{size} frames, draw {seed + 1}"),
            )
            own.append(score(head, tests, device))
            shown.append(_by_example(backbone, cache, items[::looks], tests, train, device))
            base.append(_by_colour(part, test))
        rows.append(
            {
                "frames": size,
                "miou": float(np.mean(own)),
                "spread": float(np.std(own)),
                "shown_miou": float(np.mean(shown)),
                "baseline_miou": float(np.mean(base)),
            }
        )
    return rows


def _by_example(backbone: Backbone, cache: FeatureCache, items, tests, train: Dataset, device) -> float:
    if last_tap(backbone) not in cache.taps:
        return float("nan")
    tap = cache.taps.index(last_tap(backbone))
    head = teach(backbone, items, train.labels, tap=tap).head
    return score(head, [dataclasses.replace(item, features=item.features[tap : tap + 1]) for item in tests], device)


def _by_colour(train: Dataset, test: Dataset) -> float:
    baseline = ColourNeighbours(len(train.labels))
    for sample in train.samples:
        image = sample.read_image()
        baseline.add(image, sample.truth("segmentation", image), baseline.samples // len(train.samples) + 1)
    numbers = SegmentationScore(len(train.labels))
    for sample in test.samples:
        image = sample.read_image()
        truth = sample.truth("segmentation", image)
        numbers.add(truth, nearest(baseline.predict(image), *truth.shape))
    return numbers.miou


def _steps(tell: Progress, what: str) -> Callable[[TrainingStep], None]:
    return lambda state: tell(f"training on {what}", state.step, state.steps)
