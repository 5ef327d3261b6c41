"""A course: a world, what in it stops the rover, and a start and a goal 30 m apart between which there is a way."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import cv2
import numpy as np

from dino_perception.measuring.costmaps.grid import Grid
from dino_perception.measuring.driving.planner import plan
from dino_perception.measuring.driving.rover import SLOPE, STEP, Pose
from dino_perception.training.terrain.ground import CELLS, SIZE
from dino_perception.training.terrain.world import HELD_OUT_STYLES, World

NODE = CELLS[0]
"""Metres between the heights of the terrain's finest level, which covers 38 m x 38 m."""
POOL = 5
"""Nodes along a side of a planner's cell, 0.15 m."""
CELL_COUNT = SIZE // POOL
HALF = SIZE * NODE / 2
GRID = Grid(-HALF, -HALF, POOL * NODE, (CELL_COUNT, CELL_COUNT))
"""The cells in which everything in this room is planned and remembered."""
DISTANCE = 30.0
"""Metres from the start to the goal."""
CLEARANCE = 0.9
"""Metres that the way which proves a course possible keeps from everything in the way."""
DETOUR = 1.25
"""How much longer than the straight line that way may be."""
LINES = 64
SPAN = 0.9
"""Metres over which the ground's slope is taken, about the rover's length."""


class CourseError(ValueError):
    """A world without a course; the message says which."""


@dataclass(frozen=True)
class Course:
    """`rock` (SIZE, SIZE) int32, first axis x: which rock that stands over the ground by more than the rover's step is at
    each node of the finest level, 0 for none; `steep` (SIZE, SIZE) bool: where the ground is steeper than it climbs.
    `way` (N, 2) is a way for a rover that knows everything."""

    world: World
    rock: np.ndarray
    steep: np.ndarray
    start: Pose
    goal: np.ndarray
    way: np.ndarray

    @functools.cached_property
    def closed(self) -> np.ndarray:
        """(X, Y) bool over GRID: cells with a rock in the way, or steep."""
        return _pooled((self.rock > 0) | self.steep)

    def touched(self, pose: Pose) -> set[int]:
        """The rocks that the rover covers a part of, and -1 when its middle is on a steep slope."""
        return _touched(self.rock, self.steep, pose)


def course(seed: int, style: str = "", distance: float = DISTANCE) -> Course:
    """The course of a seed: of 64 lines drawn from it, of `distance` metres, the one past most rocks and steep places that
    has a way round them. Styles are by default those that nothing is trained on, taking turns by the seed. Raises
    CourseError."""
    world = World(seed, style or HELD_OUT_STYLES[seed % len(HELD_OUT_STYLES)])
    rock, steep = obstacles(world)
    closed = _pooled((rock > 0) | steep)
    rng = np.random.default_rng([seed, 7])
    lines = [_line(rng, distance) for _ in range(LINES)]
    fitting = [
        line
        for line in lines
        if max(np.abs(p).max() for p in line[1:]) < HALF - 2.0 and not any(_near(closed, p) for p in line[1:])
    ]
    for angle, start, goal in sorted(fitting, key=lambda line: -_met(rock, steep, *line)):
        way = plan(closed, GRID, start, goal, (CLEARANCE,))
        if way is not None and np.linalg.norm(np.diff(way, axis=0), axis=1).sum() <= DETOUR * distance:
            return Course(world, rock, steep, Pose(*start, angle), goal, way)
    raise CourseError(f"world {seed} ({world.style_name}) has no way of {distance:g} m along any of {LINES} lines")


def _line(rng: np.random.Generator, distance: float) -> tuple[float, np.ndarray, np.ndarray]:
    """A direction, a start and a goal, their middle within 6 m of the world's."""
    angle, aside = rng.uniform(-math.pi, math.pi), rng.uniform(-6.0, 6.0)
    along = np.array([math.cos(angle), math.sin(angle)])
    middle = aside * np.array([-along[1], along[0]])
    return angle, middle - distance / 2 * along, middle + distance / 2 * along


def _met(rock: np.ndarray, steep: np.ndarray, angle: float, start: np.ndarray, goal: np.ndarray) -> int:
    """How many rocks, and how many metres of steep ground, a rover meets on the straight line."""
    places = np.linspace(start, goal, int(math.dist(start, goal) / 0.1) + 1)
    met = [_touched(rock, steep, Pose(x, y, angle)) for x, y in places]
    return len(set().union(*met) - {-1}) + sum(-1 in m for m in met) // 10


def obstacles(world: World) -> tuple[np.ndarray, np.ndarray]:
    """The `rock` and the `steep` of a Course."""
    ground = world.ground.grid(0)
    over = (world.raised[0] - ground).cpu().numpy().T
    _, rock = cv2.connectedComponents((over > STEP).astype(np.uint8), connectivity=8)
    side = 2 * round(SPAN / NODE / 2) + 1
    level = cv2.boxFilter(ground.cpu().numpy().T, -1, (side, side), borderType=cv2.BORDER_REPLICATE)
    steep = np.hypot(*np.gradient(level, NODE)) > math.tan(SLOPE)
    return rock, steep


def _touched(rock: np.ndarray, steep: np.ndarray, pose: Pose) -> set[int]:
    i, j = _nodes(pose.footprint())
    middle = _nodes(np.array([[pose.x, pose.y]]))
    return (set(np.unique(rock[i, j]).tolist()) - {0}) | ({-1} if steep[middle].any() else set())


def _pooled(nodes: np.ndarray) -> np.ndarray:
    return nodes.reshape(CELL_COUNT, POOL, CELL_COUNT, POOL).any(axis=(1, 3))


def _nodes(places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    i, j = np.rint(places.T / NODE + (SIZE - 1) / 2).astype(int).clip(0, SIZE - 1)
    return i, j


def _near(closed: np.ndarray, place: np.ndarray) -> bool:
    centres = GRID.centres()[closed]
    return bool((np.linalg.norm(centres - place, axis=1) < CLEARANCE + 0.3).any())
