"""Drives through a real rendered world: by truth, and by the perception through both doors."""

from __future__ import annotations

import json
import math
from contextlib import contextmanager

import cv2
import numpy as np
import pytest

from dino_perception.cli import __main__ as command_line
from dino_perception.measuring.driving.course import GRID, course
from dino_perception.measuring.driving.doors import DirectDoor, node_door
from dino_perception.measuring.driving.drive import drive
from dino_perception.measuring.driving.obstacles import FINDERS
from dino_perception.measuring.driving.rover import Pose
from dino_perception.measuring.driving.senses import REACH, Perceived, Perfect
from dino_perception.perception.perceiver import Perceiver
from dino_perception.perception.settings import Settings

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


@pytest.fixture(scope="module")
def hard():
    """The course of one world; rendering it is slow, so that all share it."""
    return course(9101)


@pytest.fixture(scope="module")
def perceiver():
    made = Perceiver(Settings.from_flat(SMALL), report=lambda line: None)
    yield made
    made.close()


def test_the_straight_line_is_blocked_and_the_way_that_is_given_is_not(hard):
    straight, way = set(), set()
    ends = np.array([[hard.start.x, hard.start.y], hard.goal])
    assert math.dist(*ends) == pytest.approx(30.0)
    for path, met in ((ends, straight), (hard.way, way)):
        for a, b in zip(path, path[1:]):
            yaw = math.atan2(*(b - a)[::-1])
            for x, y in np.linspace(a, b, int(math.dist(a, b) / 0.1) + 2):
                met |= hard.touched(Pose(x, y, yaw))
    assert straight and not way


def test_a_rock_that_counts_stands_over_the_ground(hard):
    """Against the rocks' own solids, by rays from above."""
    world, (i, j) = hard.world, np.nonzero(hard.rock)
    over = world.raised[0].T[i, j] - world.ground.grid(0).T[i, j]
    assert len(i) and float(over.min()) > 0.15


def test_perfect_perception_knows_what_is_near_and_ahead_and_no_more(hard):
    known = []
    drive(hard, Perfect(hard), lambda moment: known.append(moment), most_frames=1)
    (moment,) = known
    marked = GRID.centres()[moment.closed]
    assert not (moment.closed & ~hard.closed).any()
    bearings = [moment.pose.bearing(place) for place in marked]
    away = np.linalg.norm(marked - (moment.pose.x, moment.pose.y), axis=1)
    assert all(abs(b) < math.radians(40) for b in bearings) and away.max(initial=0) < REACH + 0.6


def run_by(door, hard, name="points"):
    with door as ask:
        moments = []
        record = drive(hard, Perceived(hard, ask, FINDERS[name]), moments.append, most_frames=FRAMES)
    return record, np.stack([moment.closed for moment in moments])


@contextmanager
def direct(perceiver, name="points"):
    yield DirectDoor(perceiver, perceiver.settings, FINDERS[name].topics)


@pytest.mark.parametrize("name", FINDERS)
def test_the_node_and_the_core_give_the_same_drive(hard, perceiver, tmp_path, name):
    pytest.importorskip("rclpy", reason="needs a ROS 2 installation")
    arguments = [word for key, value in SMALL.items() for word in ("-p", f"{key}:={json.dumps(value)}")]
    live, seen = run_by(node_door(FINDERS[name].topics, arguments, tmp_path / "log"), hard, name)
    core, expected = run_by(direct(perceiver, name), hard, name)
    assert live.frames == core.frames == FRAMES and np.array_equal(live.places, core.places)
    assert np.array_equal(seen, expected)


def test_the_command_drives_and_shows_it(hard, perceiver, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("dino_perception.measuring.driving.course.course", lambda seed, style: hard)
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
