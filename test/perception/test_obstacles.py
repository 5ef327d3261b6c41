"""What stands over or falls under the ground, against ground whose shape is a formula."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from ground_views import BIG_ROCK, HEIGHT, box, points_of, pose_of, view

from dino_perception.perception import obstacles as ob
from dino_perception.perception.ground_drawing import ground_overlay
from dino_perception.perception.settings import Settings

SETTINGS = Settings()


def slope(degrees):
    return lambda x, y: np.tan(np.radians(degrees)) * x


def on(ground, block):
    return lambda x, y: ground(x, y) + block(x, y)


def test_level_ground_holds_nothing_and_its_heights_are_zero():
    found = ob.obstacles(view(lambda x, y: 0 * x, pose_of()), SETTINGS)
    ground = found.ground
    assert np.nanmax(np.abs(ground.over)) < 0.03
    assert ground.slope < 1 and ground.plane.height == pytest.approx(HEIGHT, abs=0.02)
    assert not found.mask.any() and (found.kind == ob.GROUND).mean() > 0.4


@pytest.mark.parametrize("posed", [True, False], ids=["up is known", "up is the near ground's"])
def test_a_hill_is_no_obstacle_and_a_rock_on_it_is(posed):
    """15 degrees uphill from 2 m on: a fixed height over odom would close everything beyond 3 m."""
    hill = lambda x, y: np.tan(np.radians(15)) * np.maximum(x - 2, 0)  # noqa: E731
    assert ob.obstacles(view(hill, pose_of(), posed=posed), SETTINGS).mask.mean() < 0.01
    rock = box(4.0, 4.5, -0.3, 0.3, 0.4)
    at, cloud = points_of(dataclasses.replace(view(on(hill, rock), pose_of())))
    assert len(at) > 20
    assert (np.abs(at[:, 0] - 4.2) < 0.5).all() and (np.abs(at[:, 1]) < 0.4).all()
    assert np.abs(cloud["height"].max() - 0.4) < 0.08  # over the hill, not over odom, where it is a metre high
    assert (cloud["label"] == 255).all()  # without segmentation


def test_a_step_counts_from_what_the_robot_takes():
    for z, expected in ((0.12, False), (0.3, True)):
        ledge = lambda x, y, z=z: np.where(x > 3, z, 0.0)  # noqa: E731
        at, _ = points_of(view(ledge, pose_of()))
        assert bool(len(at)) == expected
        if expected:
            assert (np.abs(at[:, 0] - 3) < 0.6).mean() > 0.9 and len(at) > 100


def test_a_ditch_is_seen_by_its_far_wall():
    at, cloud = points_of(view(box(3.0, 3.6, -9, 9, -0.5), pose_of()))
    assert len(at) > 100
    assert (np.abs(at[:, 0] - 3.4) < 0.45).all()
    assert (cloud["height"] < 0).all()
    near = np.histogram(at[:, 0], np.arange(3.0, 3.61, 0.1))[0]
    assert (near > 10).all()  # what is out of sight behind the brink, too


def test_a_far_ditch_of_which_only_the_brink_is_seen_is_half_believed():
    percept = view(box(5.5, 6.3, -9, 9, -0.6), pose_of())
    found = ob.obstacles(percept, SETTINGS)
    low = (found.kind == ob.HIDDEN) | (found.kind == ob.UNDER)
    assert low.sum() > 50
    if (found.kind == ob.HIDDEN).any():
        assert found.sure[found.kind == ob.HIDDEN].max() <= 0.5


def test_a_slope_that_the_robot_does_not_climb_is_in_the_way():
    steep = lambda x, y: np.tan(np.radians(35)) * np.maximum(x - 3, 0)  # noqa: E731
    percept = view(steep, pose_of())
    found = ob.obstacles(percept, SETTINGS)
    beyond = found.ground.x > 4
    assert (found.kind[beyond] == ob.STEEP).mean() > 0.9
    assert not found.mask[found.ground.x < 2.4].any()
    climber = SETTINGS.changed({"robot.max_slope": 45.0})
    assert not (ob.obstacles(percept, climber).kind == ob.STEEP).any()


def test_a_rock_that_depth_has_flattened_is_known_by_its_class():
    where = box(3.0, 3.4, -0.2, 0.2, 1.0)
    flat = view(box(3.0, 3.4, -0.2, 0.2, 0.1), pose_of(), rock=lambda x, y: where(x, y) > 0)
    found = ob.obstacles(flat, SETTINGS)
    assert (found.kind == ob.SOLID).sum() > 20 and not (found.kind == ob.OVER).any()
    _, cloud = points_of(flat)
    assert (cloud["label"] == BIG_ROCK).all() and cloud["confidence"] == pytest.approx(230 / 255)
    unsure = dataclasses.replace(
        flat.segmentation, confidence=np.full(flat.segmentation.mask.shape, 100, np.uint8)
    )  # less likely than not
    assert not ob.obstacles(dataclasses.replace(flat, segmentation=unsure), SETTINGS).mask.any()


def test_what_the_robot_passes_under_is_left_out():
    roof = view(lambda x, y: 0 * x, pose_of())
    metres = roof.depth.metres.copy()
    metres[:20] = 3.0  # hangs down from above, two metres over the ground
    hung = dataclasses.replace(roof, depth=dataclasses.replace(roof.depth, metres=metres))
    low = SETTINGS.changed({"robot.height": 0.8})
    assert (ob.obstacles(hung, low).kind[:20] == ob.ABOVE).mean() > 0.9
    assert (ob.obstacles(hung, SETTINGS.changed({"robot.height": 5.0})).kind[:20] == ob.OVER).mean() > 0.9


def test_unsure_depth_makes_unsure_obstacles():
    percept = view(box(3.0, 3.5, -0.5, 0.5, 0.5), pose_of())
    doubt = np.full(percept.depth.metres.shape, 51, np.uint8)
    unsure = dataclasses.replace(percept, depth=dataclasses.replace(percept.depth, confidence=doubt))
    sure = ob.obstacles(percept, SETTINGS)
    found = ob.obstacles(unsure, SETTINGS)
    assert sure.sure[sure.mask].max() == 1 and found.sure[found.mask].max() == pytest.approx(0.2)
    assert len(ob.obstacle_points(unsure, found, 0.3)) == 0


def test_where_no_ground_is_seen_nothing_is_said():
    percept = view(lambda x, y: 0 * x, pose_of())
    blind = dataclasses.replace(percept.depth, metres=np.full_like(percept.depth.metres, np.nan))
    assert ob.obstacles(dataclasses.replace(percept, depth=blind), SETTINGS) is None
    assert ob.obstacles(dataclasses.replace(percept, output_camera=None), SETTINGS) is None
    wall = dataclasses.replace(percept.depth, metres=np.full_like(percept.depth.metres, 2.0))
    assert ob.obstacles(dataclasses.replace(percept, depth=wall), SETTINGS) is None


def test_the_picture_shows_what_is_in_the_way_in_colour_and_the_rest_in_grey():
    percept = view(box(3.0, 3.5, -0.5, 0.5, 0.5), pose_of())
    found = ob.obstacles(percept, SETTINGS)
    picture = ground_overlay(dataclasses.replace(percept, obstacles=found), SETTINGS.changed({"overlay.legend": False}))
    coloured = picture.max(-1) != picture.min(-1)
    assert (
        picture.shape == (120, 160, 3)
        and (coloured[found.ground.top :] == found.mask).all()
        and not coloured[: found.ground.top].any()
    )
