"""Drives by what a camera sees: by truth, and by the perception through both doors."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch

sys.path.append(str(Path(__file__).parent))

from driving_courses import Plane, made_course

from dino_perception.cli import __main__ as command_line
from dino_perception.measuring.driving.course import GRID, NODE, course
from dino_perception.measuring.driving.doors import DirectDoor, node_door
from dino_perception.measuring.driving.drive import drive
from dino_perception.measuring.driving.obstacles import FINDERS
from dino_perception.measuring.driving.rover import Pose
from dino_perception.measuring.driving.senses import Perceived, Perfect
from dino_perception.perception.perceiver import Perceiver
from dino_perception.perception.settings import Settings
from dino_perception.training.terrain.ground import SIZE

SMALL = {
    "engine": "torch",
    "threads": 1,
    "heads": ["segmentation", "depth"],
    "input_height": 96,
    "input_width": 128,
    "output_height": 48,
    "output_width": 64,
}
FRAMES = 3


class PaintedWorld:
    """A plane with flat dark discs for rocks, seen through a pinhole camera: rendered in milliseconds, depth exact."""

    seed, style_name = 9101, "painted"

    def __init__(self, rocks):
        self.ground = Level()
        self._rocks = rocks

    def render(self, poses, camera, *, first_frame=0, colour=True):
        (pose,) = poses
        x, y = np.meshgrid(np.arange(camera.width), np.arange(camera.height))
        rays = np.stack([(x - camera.k[0, 2]) / camera.k[0, 0], (y - camera.k[1, 2]) / camera.k[1, 1], 0.0 * x + 1], -1)
        down = rays @ pose[:3, :3].T
        with np.errstate(divide="ignore"):
            depth = np.where(down[..., 2] < 0, -pose[2, 3] / down[..., 2], np.nan)
        place = pose[:3, 3] + depth[..., None] * down
        rgb = None
        if colour:
            with np.errstate(invalid="ignore"):
                grain = 0.5 + 0.5 * np.sin(7 * place[..., :1]) * np.sin(5 * place[..., 1:2] + first_frame)
                rgb = np.where(np.isnan(depth)[..., None], [170, 150, 120], np.array([90, 50, 30]) + 60 * grain)
                for rock_x, rock_y, radius in self._rocks:
                    rgb[np.hypot(place[..., 0] - rock_x, place[..., 1] - rock_y) < radius] //= 2
            rgb = np.nan_to_num(rgb).astype(np.uint8)[None]
        return SimpleNamespace(rgb=rgb, depth=depth.astype(np.float32)[None])


class Level(Plane):
    def grid(self, level):
        return torch.zeros((SIZE, SIZE))


ROCKS = [(4.0, 0.3, 0.25), (6.0, -1.0, 0.3), (-3.0, 0.0, 0.3), (9.5, 1.0, 0.3)]


@pytest.fixture(scope="module")
def painted():
    course = made_course(ROCKS, goal=(12.0, 0.0))
    return dataclasses.replace(course, world=PaintedWorld(ROCKS))


@pytest.fixture(scope="module")
def perceiver():
    made = Perceiver(Settings.from_flat(SMALL), report=lambda line: None)
    yield made
    made.close()


def test_a_world_has_a_course_whose_line_is_blocked_and_whose_way_is_not():
    """The one test here that renders a world, which takes seconds. Slopes do not come up in it."""
    hard = course(9101)
    ends = np.array([[hard.start.x, hard.start.y], hard.goal])
    assert math.dist(*ends) == pytest.approx(30.0)
    straight, way = (
        set().union(
            *(
                hard.touched(Pose(x, y, math.atan2(*(b - a)[::-1])))
                for a, b in zip(path, path[1:])
                for x, y in np.linspace(a, b, int(math.dist(a, b) / 0.1) + 2)
            )
        )
        for path in (ends, hard.way)
    )
    assert straight and not way
    # Each rock that counts is one of the world's: a solid whose middle is near, and wide enough.
    rocks = hard.world.rocks
    places = (np.stack(np.nonzero(hard.rock), 1) - (SIZE - 1) / 2) * NODE
    middles, reach = rocks.centre[:, :2].numpy(), 0.7 * rocks.diameter.numpy()
    assert all((np.linalg.norm(middles - place, axis=1) < reach).any() for place in places[::50])


def test_perfect_perception_knows_what_is_near_and_ahead_and_no_more(painted):
    known = []
    drive(painted, Perfect(painted), known.append, most_frames=1)
    marked = GRID.centres()[known[0].closed]
    found = [np.linalg.norm(marked - (x, y), axis=1).min() < radius for x, y, radius in ROCKS]
    assert found == [True, True, False, False]  # behind the camera, and beyond 8 m
    assert not (known[0].closed & ~painted.closed).any()


def test_by_perfect_perception_it_gets_there(painted):
    record = drive(painted, Perfect(painted))
    assert record.clean and record.metres < 12.5


def run_by(door, painted, name="points"):
    with door as ask:
        sense, odds = Perceived(painted, ask, FINDERS[name]), []
        record = drive(painted, sense, lambda moment: odds.append(sense.memory.odds.copy()), most_frames=FRAMES)
    return record, np.stack(odds)


@contextmanager
def direct(perceiver, name="points"):
    yield DirectDoor(perceiver, perceiver.settings, FINDERS[name].topics)


@pytest.mark.parametrize("name", FINDERS)
def test_the_node_and_the_core_give_the_same_drive(painted, perceiver, tmp_path, name):
    pytest.importorskip("rclpy", reason="needs a ROS 2 installation")
    arguments = [word for key, value in SMALL.items() for word in ("-p", f"{key}:={json.dumps(value)}")]
    live, seen = run_by(node_door(FINDERS[name].topics, arguments, tmp_path / "log"), painted, name)
    core, expected = run_by(direct(perceiver, name), painted, name)
    assert live.frames == core.frames == FRAMES and np.array_equal(live.places, core.places)
    assert np.array_equal(seen, expected) and seen.any()  # something was seen


def test_the_command_drives_and_shows_it(painted, perceiver, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("dino_perception.measuring.driving.course.course", lambda seed, style: painted)
    page = tmp_path / "page.md"
    page.write_text("<!-- driving -->\n<!-- end -->\n")
    given = [word for key, value in SMALL.items() for word in ("--set", f"{key}={json.dumps(value)}")]
    out, numbers = tmp_path / "out", tmp_path / "numbers.json"
    arguments = [
        "drive",
        "--terrain",
        "9101",
        "--direct",
        "--frames",
        "2",
        "--out",
        out,
        "--json",
        numbers,
        "--page",
        page,
    ]
    assert command_line.main([*map(str, arguments), *given]) == 0
    report = json.loads(numbers.read_text())
    assert report["rows"]["the perception"]["drives"] == 1 and not report["rows"]["blind"]["clean"]
    assert report["worlds"][0]["drives"]["perfect perception"]["frames"] == 2
    assert "| blind | 0 of 1 |" in page.read_text() and "blind" in capsys.readouterr().out
    assert cv2.imread(str(out / "9101.png")).shape[1] == 768
    monkeypatch.setattr("dino_perception.measuring.driving.course.course", lambda *_: pytest.fail("driven again"))
    assert command_line.main([*map(str, arguments), *given, "--go-on"]) == 0  # what was driven in this way stays
    assert json.loads(numbers.read_text()) == report
    video = cv2.VideoCapture(str(out / "9101.mp4"))
    assert video.get(cv2.CAP_PROP_FRAME_COUNT) == 2 and video.read()[1].std() > 10


def test_a_wrong_command_line_is_refused_before_any_work(capsys):
    assert command_line.main(["drive", "--terrain", "9100-", "--direct"]) == 1
    assert command_line.main(["drive", "--terrain", "9100", "--style", "venus"]) == 1
    said = capsys.readouterr().err
    assert "'9100-'" in said and "'venus'" in said
    with pytest.raises(SystemExit) as end:
        command_line.main(["drive", "--help"])
    assert end.value.code == 0 and "--direct" in capsys.readouterr().out
