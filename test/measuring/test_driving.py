"""The simulated rover: its motion and planner against closed forms, what counts as touched, and drives by truth on a made
ground."""

from __future__ import annotations

import math

import numpy as np
import pytest
from driving_courses import Plane, made_course

from dino_perception.measuring.driving import score
from dino_perception.measuring.driving.course import GRID, NODE, Course
from dino_perception.measuring.driving.drive import LATE, NO_WAY, REACHED, Record, drive
from dino_perception.measuring.driving.memory import KEPT, Memory, counted
from dino_perception.measuring.driving.planner import plan
from dino_perception.measuring.driving.rover import LENGTH, LOOKAHEAD, ON_THE_SPOT, SPEED, TURN, WIDTH, Pose, pursue
from dino_perception.measuring.driving.senses import Blind
from dino_perception.training.terrain.drive import standing
from dino_perception.training.terrain.ground import SIZE

CENTRES = GRID.centres()


def length(path: np.ndarray) -> float:
    return float(np.linalg.norm(np.diff(path, axis=0), axis=1).sum())


def knowing(course: Course):
    return lambda view: course.closed


@pytest.mark.parametrize("radius", [1.0, 3.0, 6.0])
def test_the_way_round_a_disc_is_the_shortest_there_is(radius):
    """Two tangents and an arc between: 2 sqrt(d2 - R2) + R (pi - 2 acos(R / d)), to half a percent."""
    path = plan(np.hypot(CENTRES[..., 0], CENTRES[..., 1]) < radius, GRID, (-15.0, 0.0), (15.0, 0.0), (0.9,))
    around, away = radius + 0.9, 15.0
    exact = 2 * math.sqrt(away**2 - around**2) + around * (math.pi - 2 * math.acos(around / away))
    assert length(path) == pytest.approx(exact, rel=0.005)
    assert path[0].tolist() == [-15.0, 0.0] and path[-1].tolist() == [15.0, 0.0]
    fine = np.concatenate([np.linspace(a, b, 200) for a, b in zip(path, path[1:])])
    assert np.linalg.norm(fine, axis=1).min() > around - 0.15


def test_with_nothing_in_the_way_it_is_straight():
    path = plan(np.zeros(GRID.shape, bool), GRID, (-10.0, -3.0), (12.0, 7.0))
    assert length(path) == pytest.approx(math.hypot(22, 10), abs=0.02) and len(path) == 2


def test_it_takes_a_narrow_gate_only_where_there_is_no_wide_one():
    """A wall at x = 0 with gates 1.5 m wide at y = 0 and 3 m wide at y = 8."""
    wall = np.abs(CENTRES[..., 0]) < 0.3
    gates = [(np.abs(CENTRES[..., 1] - y) < width / 2) for y, width in ((0, 1.5), (8, 3))]
    start, goal = (-5.0, 0.0), (5.0, 0.0)
    assert plan(wall & ~gates[0] & ~gates[1], GRID, start, goal)[:, 1].max() > 7
    assert np.abs(plan(wall & ~gates[0], GRID, start, goal)[:, 1]).max() < 0.5
    assert plan(wall, GRID, start, goal) is None


def test_who_stands_too_near_may_leave_and_a_closed_goal_is_approached():
    rock = np.hypot(CENTRES[..., 0], CENTRES[..., 1]) < 1.0
    leaving = plan(rock, GRID, (1.2, 0.0), (8.0, 0.0))
    assert leaving is not None and leaving[:, 0].min() >= 1.2 - 1e-9
    near = plan(rock, GRID, (-8.0, 0.0), (0.0, 0.0))
    assert 1.5 < np.linalg.norm(near[-1]) < 2.2
    assert plan(np.ones(GRID.shape, bool), GRID, (0.0, 0.0), (5.0, 0.0)) is None


def test_a_steady_turn_is_a_circle():
    pose = Pose(1.0, 2.0, 0.3)
    quarter = pose.moved(0.5, 0.4, math.pi / 2 / 0.4)
    radius = 0.5 / 0.4
    centre = np.array([1 - radius * math.sin(0.3), 2 + radius * math.cos(0.3)])
    assert np.allclose([quarter.x, quarter.y], centre + radius * np.array([math.cos(0.3), math.sin(0.3)]))
    assert quarter.yaw == pytest.approx(0.3 + math.pi / 2)
    straight, turned = pose.moved(0.5, 0.0, 2.0), pose.moved(0.0, 0.6, 1.0)
    assert math.dist((straight.x, straight.y), (1, 2)) == pytest.approx(1.0)
    assert (turned.x, turned.y, turned.yaw) == (1.0, 2.0, pytest.approx(0.9))
    steps = pose
    for _ in range(100):  # one movement in a hundred parts is the same movement
        steps = steps.moved(0.5, 0.4, math.pi / 2 / 0.4 / 100)
    assert np.allclose([steps.x, steps.y, steps.yaw], [quarter.x, quarter.y, quarter.yaw])


def test_pursuit_steers_through_the_point_ahead():
    path = np.array([[0.0, 0.0], [5.0, 0.0]])
    assert pursue(Pose(1.0, 0.0, 0.0), path) == pytest.approx((SPEED, 0.0))
    speed, turn = pursue(Pose(1.0, 0.2, 0.0), path)
    target, radius = np.array([1.0 + LOOKAHEAD, 0.0]), speed / turn
    assert radius < 0 and np.linalg.norm(target - (1.0, 0.2 + radius)) == pytest.approx(abs(radius))
    assert pursue(Pose(1.0, 0.0, math.pi / 2), path) == (0.0, -TURN)
    assert abs(Pose(1.0, 0.0, 0.5).bearing(target)) < ON_THE_SPOT


def test_the_footprint_is_the_rectangle_over_the_wheels():
    points = Pose(3.0, -1.0, math.pi / 2).footprint()
    assert np.allclose(points.max(0) - points.min(0), [WIDTH, LENGTH]) and np.allclose(points.mean(0), [3, -1])


def test_the_rover_stands_as_the_ground_lies():
    """Along the rise of a plane the nose is up by its slope (REP 103: pitch negative); across, a side is."""
    up, across = standing(Plane(0.2), 1.0, 2.0, 0.0), standing(Plane(0.2), 1.0, 2.0, math.pi / 2)
    slope = math.atan(0.2)
    assert np.allclose(up[:3, 2], [-math.sin(slope), 0, math.cos(slope)], atol=1e-6)
    assert np.allclose(across[:3, 2], up[:3, 2], atol=1e-6) and up[2, 3] == pytest.approx(0.2)


def test_a_blind_rover_touches_what_lies_on_its_line_and_each_rock_counts_once():
    course = made_course([(4.0, 0.3, 0.2), (7.0, -0.9, 0.2), (6.0, -0.35, 0.2)])  # the second one: 0.25 m beside
    record = drive(course, Blind())
    assert record.end == REACHED and not record.clean
    assert [what for _, what in record.touched] == [1, 3]
    first = record.places[record.touched[0][0]]
    assert first[0] + LENGTH / 2 == pytest.approx(3.8, abs=0.05)  # when its nose is there
    assert record.metres == pytest.approx(9.5, abs=0.05) and record.seconds == pytest.approx(19.0, abs=0.1)
    figures = score.of_drive(record)
    assert (figures["rocks_touched"], figures["slopes_entered"], figures["interventions"]) == (2, 0, 2)


def test_a_rover_that_knows_drives_round_them():
    course = made_course([(4.0, 0.3, 0.2), (7.0, -0.9, 0.2), (6.0, -0.35, 0.2)])
    record = drive(course, knowing(course))
    assert record.clean and 9.5 < record.metres < 11.0
    assert np.array_equal(record.places, drive(course, knowing(course)).places)


def test_a_slope_counts_where_the_middle_of_the_rover_enters_it():
    axis = (np.arange(SIZE) - (SIZE - 1) / 2) * NODE
    steep = np.repeat(((axis > 5) & (axis < 6))[:, None], SIZE, axis=1)
    record = drive(made_course(steep=steep), Blind())
    ((index, what),) = record.touched
    assert what == -1 and record.places[index][0] == pytest.approx(5.0, abs=0.05)
    assert score.of_drive(record)["slopes_entered"] == 1


def test_where_there_is_no_way_it_looks_round_once_and_gives_up():
    course = made_course()
    record = drive(course, lambda view: np.ones(GRID.shape, bool))
    assert record.end == NO_WAY and record.metres == 0 and 10 < record.seconds < 12  # 2 pi at 0.6 rad/s
    assert score.of_drive(record)["interventions"] == 1
    assert drive(course, Blind(), most_frames=3).end == LATE


def test_the_table_adds_drives_up():
    made = Record(np.zeros((3, 3)), (), REACHED, 1)
    touched = Record(np.array([[0, 0, 0], [3.0, 4, 0]]), ((1, 2), (1, -1)), REACHED, 1)
    lost = Record(np.zeros((5, 3)), (), NO_WAY, 2)
    row = score.of_drives([score.of_drive(record) for record in (made, touched, lost)])
    assert {key: row[key] for key in ("clean", "reached", "no_way", "interventions")} == {
        "clean": 1,
        "reached": 2,
        "no_way": 1,
        "interventions": 3,
    }
    assert row["metres"] == 2.5 and score.of_drives([score.of_drive(lost)])["metres"] is None


def test_looks_add_up_and_what_is_far_behind_is_forgotten():
    memory, place = Memory(), np.array([0.0, 0.0])
    cell = counted(np.array([[1.0, 1.0, 0.0], [1.01, 1.01, 5.0], [9.0, 9.0, 0.0], [np.nan] * 3]), 2)
    assert cell.sum() == 1 and cell[GRID.cells(np.array([[1.0, 1.0]]))[0] // GRID.shape[1]].any()
    memory.observe(cell, cell, place)
    assert memory.closed.sum() == 1
    memory.observe(cell, np.zeros_like(cell), place)
    assert not memory.closed.any()  # one look against one
    for _ in range(2):
        memory.observe(cell, cell, place)
    assert memory.closed.sum() == 1
    memory.observe(np.zeros_like(cell), np.zeros_like(cell), np.array([KEPT + 2.0, 0.0]))
    assert not memory.odds.any()
