"""Which frames a head is trained on and which judge it meanwhile."""

from __future__ import annotations

import dataclasses

import numpy as np

from dino_perception.training.datasets import DataError, Dataset
from dino_perception.training.tasks import task_of


def with_truth(data: Dataset, kind: str) -> Dataset:
    """The samples that a head of this kind can learn from. Raises DataError when there are none."""
    task = task_of(kind)
    has = [i for i, sample in enumerate(data.samples) if task.reader(sample)]
    if not has:
        raise DataError(f"{data.source} has no {task.truths_name}, so no {kind} head can be trained on it")
    if len(has) == len(data.samples):
        return data
    new = {old: place for place, old in enumerate(has)}
    splits = {name: tuple(new[i] for i in part if i in new) for name, part in data.splits.items()}
    chosen = data.chosen(has)
    return dataclasses.replace(chosen, splits={n: p for n, p in splits.items() if p})


def limited(data: Dataset, count: int, seed: int) -> Dataset:
    """`count` samples drawn by the seed, in order; a larger count keeps those of a smaller one."""
    if count <= 0 or count >= len(data.samples):
        return data
    return data.chosen(sorted(np.random.default_rng(seed).permutation(len(data.samples))[:count].tolist()))


def split(data: Dataset, share: float, seed: int) -> tuple[Dataset, Dataset]:
    """(training, validation): the data's own parts where it has them (a "test" part is not touched), else `share` of
    it set aside.

    Whole drives when there are five or more. In a drive, neighbouring frames look alike, so its end is set aside;
    pictures that are no drive are set aside at even distances.
    """
    if "val" in data.splits:
        return data.part("train"), data.part("val")
    if "train" in data.splits:
        data = data.part("train")
    count = len(data.samples)
    wanted = round(share * count)
    if share > 0 and count > 1:
        wanted = min(max(wanted, 1), count - 1)
    scenes = data.scenes()
    if wanted == 0:
        held: set[int] = set()
    elif len(scenes) >= 5:
        names = [list(scenes)[i] for i in np.random.default_rng(seed).permutation(len(scenes))]
        held = {i for name in names[: max(1, round(share * len(names)))] for i in scenes[name]}
    elif data.continuous:
        held = {i for part in scenes.values() for i in part[len(part) - round(share * len(part)) :]} or {count - 1}
    else:
        held = {round((k + 0.5) * count / wanted - 0.5) for k in range(wanted)}
    return (data.chosen([i for i in range(count) if i not in held]), data.chosen(sorted(held)))
