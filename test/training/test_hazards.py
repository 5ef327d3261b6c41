"""Hills and trenches on demand, and the truth that obstacles are judged by."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from dino_perception.measuring.ground.score import EDGES, Count
from dino_perception.measuring.ground.worlds import closed_ground
from dino_perception.perception.settings import RobotSettings
from dino_perception.training.terrain.hazards import DEPTH, WIDTH, dug, long_hills, trench_lines

AXIS = (torch.arange(400) - 199.5) * 0.05


def test_hills_are_as_steep_as_was_asked_and_no_steeper():
    height = long_hills(7, 20.0, AXIS[None, :], AXIS[:, None])
    slope = torch.hypot(*torch.gradient(height, spacing=0.05))
    assert math.degrees(math.atan(float(slope.max()))) == pytest.approx(20.0, abs=0.1)


def test_trenches_are_as_deep_and_as_wide_as_they_say():
    (line,) = trench_lines(3, 1)
    assert WIDTH[0] <= 2 * line[3] <= WIDTH[1] and DEPTH[0] <= line[4] <= DEPTH[1]
    depth = dug([line], AXIS)
    assert float(depth.max()) == pytest.approx(line[4]) and float(depth.min()) == 0
    area, length = float((depth > 0).sum()) * 0.05**2, 20.0
    assert area / length == pytest.approx(2 * line[3], rel=0.6)  # a line across a square of 20 m is some 20 m long


def test_closed_is_what_stands_over_the_ground_a_ditch_and_a_slope_too_steep_and_nothing_else():
    robot, cell = RobotSettings(), 0.05
    y, x = np.mgrid[:200, :200].astype(np.float32) * cell
    hill = np.tan(np.radians(20)).astype(np.float32) * x
    rock = np.where(np.hypot(x - 5, y - 5) < 0.3, np.float32(0.3), 0)
    closed = closed_ground(hill, hill + rock, cell, robot)
    assert (closed == (rock > 0)).all()
    assert not closed_ground(hill, hill + rock / 2, cell, robot).any()  # 0.15 m: the robot takes it
    assert closed_ground(2 * hill, 2 * hill, cell, robot)[20:-20, 20:-20].all()
    ditch = np.where(np.abs(x - 5) < 0.3, np.float32(-0.5), 0)
    assert closed_ground(ditch, ditch, cell, robot)[100, 97:103].all()


def test_shares_are_of_the_cells_that_are_shown_at_their_distance():
    truth, told, shown = np.zeros((3, 40, 40), bool)
    shown[:] = True
    away = np.full((40, 40), 4.0)
    away[:, 20:] = 6.0
    truth[5, 5] = truth[5, 30] = told[6, 6] = told[30, 30] = True  # one a neighbour, one missed, one made up
    count = Count()
    count.add(truth, told, shown, away)
    assert [EDGES[1], EDGES[2]] == [3.0, 5.0]
    assert (count.recall(1), count.precision(1), count.recall(2), count.precision(2)) == (1, 1, 0, 0)
    assert count.recall() == 0.5 and count.precision() == 0.5
