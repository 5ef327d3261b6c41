"""Each kind of head that can be trained says all of it in one place."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from dino_perception.models.checkpoints import load_backbone
from dino_perception.models.heads import create_head
from dino_perception.training.datasets import Dataset, Sample
from dino_perception.training.fit import Recipe
from dino_perception.training.splitting import with_truth
from dino_perception.training.tasks import TASKS, TaskError, task_of


@dataclass(frozen=True)
class Made:
    head: object
    right: np.ndarray
    wrong: np.ndarray


@pytest.fixture(params=sorted(TASKS))
def made(request):
    """A head of the kind, truth that it can tell, and other truth of the same kind."""
    head = create_head(
        request.param, load_backbone("rover-tiny"), **task_of(request.param).options(LABELS, (0.5, 50.0))
    )
    right = {"segmentation": np.array([[0, 1], [1, 2]], np.uint8), "depth": np.array([[1, 2], [3, 4]], np.float32)}
    wrong = {"segmentation": np.array([[2, 2], [0, 1]], np.uint8), "depth": np.array([[2, 4], [6, 8]], np.float32)}
    # Two boxes, with their class in the column of a truth and in that of an answer.
    right["detection"] = np.array([[0, 0, 9, 9, 1, 1], [9, 9, 20, 22, 1, 1]], np.float32)
    wrong["detection"] = np.array([[0, 0, 4, 9, 1, 1], [9, 9, 20, 22, 1, 2]], np.float32)
    return Made(head, right[request.param], wrong[request.param])


LABELS = create_head("segmentation", load_backbone("rover-tiny")).spec.labels


def test_the_number_that_decides_is_best_for_the_truth_itself(made):
    task = task_of(made.head.spec.kind)
    numbers = []
    for said in (made.right, made.wrong):
        score = task.score(made.head)
        arrays = {output.name: np.full(said.shape, 255, np.uint8) for output in made.head.OUTPUTS}
        arrays[made.head.OUTPUTS[0].name] = said
        task.add(score, made.right, arrays)
        numbers.append(task.better * task.number(score))
        assert task.report(made.head, score)
    assert numbers[0] > numbers[1]


@pytest.mark.parametrize("made", [kind for kind in sorted(TASKS) if TASKS[kind].dense], indirect=True)
def test_what_is_empty_costs_nothing(made):
    """Where there is no object, a detector learns that there is none (test_detection.py)."""
    task, head = task_of(made.head.spec.kind), made.head
    raw = torch.rand(1, len(head.spec.labels) or 1, 2, 2) + 1
    nothing = torch.from_numpy(np.full((1, 2, 2), task.empty))
    assert task.loss(head, raw, nothing, None, Recipe()) == 0
    assert task.loss(head, raw, torch.from_numpy(made.wrong[None]), None, Recipe()) > 0


def test_data_is_for_the_heads_whose_truth_it_has():
    def samples(**truth):
        return Dataset("pictures", (Sample("a", "s", "k", lambda: np.zeros((2, 2, 3), np.uint8), **truth),))

    masks = samples(read_classes=lambda: np.zeros((2, 2), np.uint8))
    assert with_truth(masks, "segmentation") is masks
    with pytest.raises(ValueError, match="pictures has no depth, so no depth head can be trained on it"):
        with_truth(masks, "depth")


def test_a_head_that_cannot_be_trained_is_told_in_a_sentence():
    with pytest.raises(TaskError, match="a descriptor head cannot be trained; accepted are segmentation, depth"):
        task_of("descriptor")
