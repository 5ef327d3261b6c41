"""A made course: level ground with discs of rock."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import torch

from dino_perception.measuring.driving.course import NODE, Course
from dino_perception.measuring.driving.rover import Pose
from dino_perception.training.terrain.ground import SIZE


class Plane:
    """Ground that rises by `slope` along x."""

    device = torch.device("cpu")

    def __init__(self, slope: float = 0.0):
        self._slope = slope

    def height_at(self, x, y):
        return self._slope * x


def made_course(rocks=(), steep=None, goal=(10.0, 0.0)) -> Course:
    """Level ground with discs of rock (x, y, radius); from the origin along x."""
    axis = (np.arange(SIZE) - (SIZE - 1) / 2) * NODE
    rock = np.zeros((SIZE, SIZE), np.int32)
    for number, (x, y, radius) in enumerate(rocks, 1):
        rock[np.hypot(axis[:, None] - x, axis[None] - y) < radius] = number
    steep = np.zeros((SIZE, SIZE), bool) if steep is None else steep
    world = SimpleNamespace(ground=Plane())
    return Course(world, rock, steep, Pose(0.0, 0.0, 0.0), np.array(goal), np.array([[0.0, 0.0], goal]))
