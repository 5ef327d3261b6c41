"""The loop: look, plan, drive on for 0.6 s of simulated time, and again, until the goal, the end of patience, or no way.

Nothing here depends on how fast anything is computed: time goes on only when the frame before has been answered.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from dino_perception.measuring.driving.course import GRID, Course
from dino_perception.measuring.driving.planner import plan
from dino_perception.measuring.driving.rover import CAMERA, SPEED, TURN, Pose, pursue
from dino_perception.measuring.driving.senses import Sense, View
from dino_perception.training.terrain.drive import standing
from dino_perception.training.terrain.sample_bag import START_NS

FRAME_S, STEP_S = 0.6, 0.05
"""Simulated seconds between frames (0.3 m of driving), and between looks at what is touched."""
ARRIVED = 0.5
"""Metres from the goal at which it is reached."""
PATIENCE = 3.0
"""Times as long as the straight line takes at full speed, after which a drive ends."""
REACHED, NO_WAY, LATE = "reached", "no way", "too late"


@dataclass(frozen=True)
class Record:
    """How a drive went. `places` (N, 3) x, y, yaw at every STEP_S; `touched` has what each was the first to touch: (index
    of the place, rock's number or -1 for a slope); `end` is REACHED, NO_WAY or LATE."""

    places: np.ndarray
    touched: tuple[tuple[int, int], ...]
    end: str
    frames: int

    @property
    def seconds(self) -> float:
        return STEP_S * (len(self.places) - 1)

    @property
    def metres(self) -> float:
        return float(np.linalg.norm(np.diff(self.places[:, :2], axis=0), axis=1).sum())

    @property
    def clean(self) -> bool:
        """Whether the goal was reached and nothing touched."""
        return self.end == REACHED and not self.touched


@dataclass(frozen=True)
class Moment:
    """One turn of the loop, for those who watch: where the rover is, what it takes for closed and where it wants to go
    (None: no way)."""

    view: View
    pose: Pose
    closed: np.ndarray
    path: np.ndarray | None


def drive(
    course: Course, sense: Sense, watch: Callable[[Moment], None] = lambda moment: None, most_frames: int | None = None
) -> Record:
    """Drives the course by a sense; with `most_frames` no longer than that. A touched rock does not stop the rover: it
    counts, and the drive goes on as if a person had lifted it over. Where there is no way it turns round once to look for
    one."""
    pose, places, touched, turned, number = course.start, [], [], 0.0, 0
    known: set[int] = set()
    patience = PATIENCE * math.dist((pose.x, pose.y), course.goal) / SPEED
    limit = most_frames if most_frames is not None else math.ceil(patience / FRAME_S)

    def note() -> None:
        """Keep where the rover is, and what it touches that it did not touch just before."""
        nonlocal known
        now = course.touched(pose)
        touched.extend((len(places), what) for what in sorted(now - known))
        known = now
        places.append((pose.x, pose.y, pose.yaw))

    note()
    end = LATE
    while number < limit:
        base = standing(course.world.ground, pose.x, pose.y, pose.yaw)
        view = View(number, START_NS + number * round(FRAME_S * 1e9), base, base @ CAMERA)
        closed = sense(view)
        number += 1
        path = plan(closed, GRID, (pose.x, pose.y), course.goal)
        watch(Moment(view, pose, closed, path))
        if path is None and turned >= 2 * math.pi:
            end = NO_WAY
            break
        turned = 0.0 if path is not None else turned + TURN * FRAME_S
        for _ in range(round(FRAME_S / STEP_S)):
            pose = pose.moved(*(pursue(pose, path) if path is not None else (0.0, TURN)), STEP_S)
            note()
            if math.dist((pose.x, pose.y), course.goal) <= ARRIVED:
                return Record(np.array(places), tuple(touched), REACHED, number)
    return Record(np.array(places), tuple(touched), end, number)
