"""A map fused over frames, against ground whose shape is a formula."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
from ground_views import HEIGHT, PITCH, box, pose_of, view

from dino_perception.messages.intake import Intake
from dino_perception.messages.types import RosbagsTypes
from dino_perception.perception.obstacles import obstacle_points, obstacles
from dino_perception.perception.pose import LOST
from dino_perception.perception.settings import Settings
from dino_perception.perception.traversability import Maps, TraversabilityMap

SETTINGS = Settings()
ROCK = box(4.0, 4.5, -0.3, 0.3, 0.5)


def see(maps, percept, settings=SETTINGS, seconds=0.0):
    frame = dataclasses.replace(percept.frame, stamp_ns=round(seconds * 1e9))
    percept = dataclasses.replace(percept, frame=frame)
    return maps.see(percept, obstacles(percept, settings), settings)


def at(grid, x, y):
    return int(grid.cells[int((y - grid.y) / grid.resolution), int((x - grid.x) / grid.resolution)])


def test_a_rock_is_closed_its_ground_open_and_the_rest_unknown():
    maps = Maps()
    for number in range(3):
        grid = see(maps, view(ROCK, pose_of()), seconds=0.1 * number)
    assert grid.cells.shape == (120, 120) and grid.cells.dtype == np.int8
    assert at(grid, 4.05, 0.05) == 100
    assert at(grid, 3.0, 0.05) in range(0, 20) and at(grid, 4.0, 1.5) in range(0, 20)
    assert at(grid, -3.0, 0.0) == -1 and at(grid, 5.0, 0.0) == -1  # behind the camera, and behind the rock


def test_it_stays_where_it_is_in_odom_while_the_robot_drives():
    maps = Maps()
    for number, x in enumerate((0.0, 0.5, 1.03, 1.5)):
        grid = see(maps, view(ROCK, pose_of(x=x, yaw=0.1 * number)), seconds=0.5 * number)
    closed = np.argwhere(grid.cells == 100)[:, ::-1] * grid.resolution + (grid.x, grid.y) + grid.resolution / 2
    assert len(closed) >= 5
    assert (np.abs(closed[:, 0] - 4.2) < 0.45).all() and (np.abs(closed[:, 1]) < 0.45).all()
    assert abs(grid.x + 6.0 - 1.5) < 0.11 and abs(grid.y + 6.0) < 0.11  # the camera is in the middle
    assert at(grid, 1.9, 0.05) in range(0, 20)  # out of sight by now, and remembered


def test_what_is_not_seen_again_is_forgotten():
    maps = Maps()
    for number in range(3):
        see(maps, view(ROCK, pose_of()), seconds=-0.1 * (3 - number))
    away = view(lambda x, y: 0 * x, pose_of(yaw=np.pi))
    assert at(see(maps, away, seconds=1.0), 4.05, 0.05) == 100
    assert at(see(maps, away, seconds=120.0), 4.05, 0.05) == -1
    for_ever = SETTINGS.changed({"traversability.decay": 0.0})
    maps = Maps()
    see(maps, view(ROCK, pose_of()), for_ever)
    assert at(see(maps, away, for_ever, seconds=1e5), 4.05, 0.05) != -1


def test_what_has_gone_is_open_after_some_looks():
    maps, rock, gone = Maps(), view(ROCK, pose_of()), view(lambda x, y: 0 * x, pose_of())
    for number in range(3):
        assert at(see(maps, rock, seconds=0.1 * number), 4.05, 0.05) >= 60
    values = [at(see(maps, gone, seconds=1 + 0.1 * number), 4.05, 0.05) for number in range(20)]
    assert values[-1] in range(0, 20) and values[0] > 50


def test_a_slope_costs_before_it_closes():
    def costs(degrees):
        hill = view(lambda x, y: np.tan(np.radians(degrees)) * np.maximum(x - 2, 0), pose_of())
        return at(see(Maps(), hill), 3.8, 0.05)

    assert costs(5) < 15 < costs(18) < 65
    maps = Maps()
    for number in range(3):
        grid = see(maps, view(lambda x, y: np.tan(np.radians(35)) * np.maximum(x - 2, 0), pose_of()), seconds=number)
    assert at(grid, 3.5, 0.05) == 100


def test_without_a_pose_there_is_no_map_and_another_era_starts_anew():
    maps, percept = Maps(), view(ROCK, pose_of())
    assert see(maps, dataclasses.replace(percept, pose=None)) is None
    assert see(maps, dataclasses.replace(percept, pose=dataclasses.replace(percept.pose, health=LOST))) is None
    see(maps, percept)
    turned = view(lambda x, y: 0 * x, pose_of(yaw=np.pi))
    again = dataclasses.replace(turned, pose=dataclasses.replace(turned.pose, era=1))
    assert at(see(maps, again, seconds=1.0), 4.05, 0.05) == -1
    see(maps, percept, seconds=5.0)
    assert at(see(maps, turned, seconds=2.0), 4.05, 0.05) == -1  # time went back


def test_it_goes_on_from_what_it_remembers():
    whole, first, second = Maps(), Maps(), Maps()
    views = [view(ROCK, pose_of(x=0.3 * number)) for number in range(4)]
    expected = [see(whole, percept, seconds=0.2 * number) for number, percept in enumerate(views)]
    for number in (0, 1):
        see(first, views[number], seconds=0.2 * number)
    second.recall(json.loads(json.dumps(first.memory())))
    for number in (2, 3):
        grid = see(second, views[number], seconds=0.2 * number)
        assert (grid.cells == expected[number].cells).all()
    assert isinstance(TraversabilityMap.recalled(json.loads(json.dumps(first.memory()["camera"]))), TraversabilityMap)


def test_every_number_that_a_robot_may_have_gives_a_map():
    percept = view(ROCK, pose_of(), rock=lambda x, y: ROCK(x, y) > 0)
    for parameter in SETTINGS.parameters():
        group = parameter.name.partition(".")[0]
        if group in ("robot", "obstacles", "traversability"):
            about = parameter.field.metadata
            for value in (about["low"], about["high"]):
                settings = SETTINGS.changed({parameter.name: value})
                grid = see(Maps(), percept, settings)
                if grid is not None:  # a metre of reach holds too little ground
                    assert grid.cells.min() >= -1 and grid.cells.max() <= 100
                found = obstacles(percept, settings)
                if found is not None:
                    cloud = obstacle_points(percept, found, settings.obstacles.min_confidence)
                    assert all(np.isfinite(cloud[name]).all() for name in ("x", "y", "z", "confidence", "height"))


def test_nothing_is_computed_unless_somebody_asks_and_diagnostics_say_how_the_ground_lies():
    door, percept = Intake(None, SETTINGS, RosbagsTypes()), view(ROCK, pose_of())
    assert door.followed(percept, {"depth/image", "points"}) is percept and door.ground("camera") == {}
    looked = door.followed(percept, {"obstacles"})
    assert looked.obstacles is not None and looked.traversability is None
    said = door.ground("camera")
    assert said["ground"] == "seen" and said["pixels in the way"] == looked.obstacles.mask.sum() > 0
    assert said["ground slope [deg]"] < 2 and abs(said["ground below camera [m]"] - HEIGHT) < 0.03
    up = np.array([float(value) for value in said["ground normal (optical)"].split()])
    assert np.abs(up - [0, -np.cos(PITCH), -np.sin(PITCH)]).max() < 0.03
    blind = dataclasses.replace(percept, depth=dataclasses.replace(percept.depth, metres=percept.depth.metres * np.nan))
    assert door.followed(blind, {"obstacles"}).obstacles is None and door.ground("camera") == {"ground": "not seen"}
    assert not door.messages(door.followed(blind, {"obstacles"}), {"obstacles"})
