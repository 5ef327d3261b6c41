"""The costmap layers by their documented rules, and what the shipped configurations find on the sample drive."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np

from dino_perception.measuring.costmaps.grid import LETHAL, Grid, inflated
from dino_perception.measuring.costmaps.semantic_layer import SemanticLayer
from dino_perception.measuring.costmaps.voxel_layer import VoxelLayer

ROOT = Path(__file__).resolve().parents[2]
TABLE = runpy.run_path(str(ROOT / "tools" / "costmap_table.py"))
GRID = Grid(0.0, 0.0, 0.1, (60, 20))
CAMERA = np.array([0.05, 1.05, 1.0])
NAMES = {0: "soil", 3: "big_rock", 4: "sky"}


def semantic(**obstacle) -> SemanticLayer:
    source = TABLE["parameters"]("local_costmap_semantic")["semantic_layer"]["dino"]
    return SemanticLayer({**source, "obstacle": {**source["obstacle"], **obstacle}}, NAMES, GRID)


def look(layer: SemanticLayer, seconds: float, class_: int, confidence: int = 255, at=(2.05, 1.05, 0.0)) -> int:
    """The cost of the cell at `at` after one look at it."""
    layer.observe(seconds, np.array([at]), CAMERA, np.array([class_]), np.array([confidence]))
    return int(layer.costs[20, 10])


def test_a_class_costs_fully_once_it_was_seen_often_and_surely_enough():
    layer = semantic()
    assert look(layer, 0.0, 0) == 120 and look(layer, 0.1, 0) == 20  # soil: two sure looks
    assert look(semantic(), 0.0, 0, confidence=100) == 120
    assert look(semantic(), 0.0, 3) == LETHAL and look(semantic(), 0.0, 3, confidence=128) == 200  # "above"
    assert look(semantic(samples_to_max_cost=2), 0.0, 3) == 200


def test_one_look_at_an_obstacle_takes_the_cell_and_old_looks_are_forgotten():
    layer = semantic()
    for i in range(5):
        look(layer, 0.1 * i, 0)
    assert look(layer, 0.5, 3) == LETHAL  # dominant_priority
    assert look(layer, 1.0, 0) == LETHAL  # the ground has one look against one, which is not more
    assert look(layer, 5.8, 0) == 20  # the rock is older than tile_map_decay_time


def test_of_a_frame_the_dearest_pixel_of_a_cell_counts_and_far_and_unknown_ones_do_not():
    layer = semantic()
    points = np.array([[2.05, 1.05, 0.0], [2.06, 1.06, 0.3], [2.04, 1.04, 0.0]])
    layer.observe(0.0, points, CAMERA, np.array([0, 3, 0]), np.array([255, 200, 255]))
    assert layer.costs[20, 10] == LETHAL
    for at in ((2.05, 1.05, np.nan), (5.65, 1.05, 0.0), (0.15, 1.05, 0.9)):  # no depth; over 5 m; under 0.3 m
        assert look(semantic(), 0.0, 3, at=at) == 0
    assert look(semantic(), 0.0, 255) == 0  # not in label_info


def test_the_voxel_layer_marks_within_its_heights_and_clears_what_is_seen_through():
    layer = VoxelLayer(TABLE["parameters"]("local_costmap_points")["voxel_layer"], GRID)
    rock, low = np.array([[2.05, 1.05, 0.4]]), np.array([[3.05, 1.05, 0.2]])
    layer.observe(np.concatenate([rock, low, [[4.05, 1.05, np.nan]]]), CAMERA)
    assert layer.costs[20, 10] == LETHAL and layer.costs.sum() == LETHAL
    behind = CAMERA + 1.6 * (rock - CAMERA)  # on the same ray, so the rock has gone
    layer.observe(behind, CAMERA)
    assert layer.costs[20, 10] == 0
    layer.observe(rock, CAMERA)
    layer.observe(behind, CAMERA + [0, 0, 5.0])  # the camera is out of the map: nothing is cleared
    assert layer.costs[20, 10] == LETHAL


def test_inflation_closes_the_robots_radius_and_falls_off_as_documented():
    costs = np.zeros((41, 41), np.uint8)
    costs[20, 20] = LETHAL
    around = inflated(costs, 0.1, 0.35, {"inflation_radius": 0.9, "cost_scaling_factor": 3.0})
    assert (around[20, 20], around[20, 23]) == (LETHAL, 253)
    assert around[20, 25] == int(252 * np.exp(-3.0 * (0.5 - 0.35)))
    assert around[20, 30] == 0


def test_the_shipped_costmaps_find_what_stands_up_on_the_sample_drive(tmp_path):
    """Measured there every tenth frame; docs/nav2.md has the numbers of every fifth."""
    found = TABLE["results"](step=10, threads=2, engine_cache=str(tmp_path))
    for name in TABLE["COSTMAPS"]:
        assert found[name, "truth"].rocks > 50 and found[name, "truth"].ground > 1000
    local, points = (
        {what: found[name, what] for what in ("truth", "model")}
        for name in ("local_costmap_semantic", "local_costmap_points")
    )
    assert local["truth"].rocks_found == 1.0 and local["truth"].ground_closed == 0.0
    assert local["model"].rocks_found > 0.55 and local["model"].ground_closed < 0.025
    assert local["model"].rocks_found > points["model"].rocks_found  # which is why it is recommended first
    assert points["truth"].rocks_found > 0.95
    for name in ("local_costmap_traversability", "local_costmap_obstacles"):  # heights from the ground, not from odom
        assert found[name, "truth"].rocks_found > 0.9 and found[name, "truth"].ground_closed < 0.03
        assert found[name, "model"].rocks_found > points["model"].rocks_found
        assert found[name, "model"].ground_closed < 0.2 * points["model"].ground_closed
    assert local["model"].ground_cost < 60
