"""The files for Nav2 read what the node publishes, hold parameters that Nav2 and the layer have, and price what the
model may be wrong about.

The parameters' names and types were read from the sources at the commits that nav2_parameters.json states.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from dino_perception.messages.topics import TOPICS
from dino_perception.models.heads import LABELS
from dino_perception.perception.settings import Settings
from dino_perception.share import share

NODE = "/dino_perception/"
SOURCE_TOPICS = {  # the semantic layer's parameter -> our topic
    "segmentation_topic": "segmentation/mask",
    "confidence_topic": "segmentation/confidence",
    "labels_topic": "segmentation/label_info",
    "pointcloud_topic": "points",
}
DECLARED = json.loads(Path(__file__).with_name("nav2_parameters.json").read_text())["parameters"]
LAYERS = {
    "nav2_costmap_2d::VoxelLayer": ("voxel_layer", "point_source"),
    "nav2_costmap_2d::ObstacleLayer": ("obstacle_layer", "point_source"),
    "nav2_costmap_2d::StaticLayer": ("static_layer", ""),
    "nav2_costmap_2d::InflationLayer": ("inflation_layer", ""),
    "semantic_segmentation_layer::SemanticSegmentationLayer": ("semantic_layer", "semantic_source"),
}
TYPES = {
    "bool": lambda value: type(value) is bool,
    "int": lambda value: type(value) is int,
    "double": lambda value: type(value) is float,
    "string": lambda value: type(value) is str,
    "string_array": lambda value: isinstance(value, list) and all(type(item) is str for item in value),
}
COSTMAPS = [
    "local_costmap_points",
    "local_costmap_semantic",
    "global_costmap_semantic",
    "local_costmap_obstacles",
    "local_costmap_traversability",
]
SEMANTIC = ["local_costmap_semantic", "global_costmap_semantic"]


def read(name: str) -> dict:
    return yaml.safe_load(share("config", "nav2", f"{name}.yaml").read_text())


def costmap(name: str) -> dict:
    file, node = read(name), name.rpartition("_")[0]
    assert list(file) == [node] == list(file[node])
    return file[node][node]["ros__parameters"]


def fits(given: dict, declared: str, also: tuple[str, ...] = ()) -> None:
    """Every parameter is declared under its name with its type: Nav2 refuses `5` for a double and `5.0` for an integer,
    and a name that it does not know does nothing."""
    for name, value in given.items():
        if name in also or isinstance(value, dict):
            continue
        assert name in DECLARED[declared], f"{declared} has no parameter {name}"
        assert TYPES[DECLARED[declared][name]](value), f"{name} is {value!r}, wanted is {DECLARED[declared][name]}"


@pytest.mark.parametrize("name", COSTMAPS)
def test_a_costmap_has_parameters_that_nav2_and_the_layers_declare(name):
    parameters = costmap(name)
    fits(parameters, "costmap")
    blocks = {key for key, value in parameters.items() if isinstance(value, dict)}
    assert set(parameters["plugins"]) == blocks
    for block in blocks:
        layer, source = LAYERS[parameters[block]["plugin"]]
        fits(parameters[block], layer, also=("plugin",))
        sources = {key: value for key, value in parameters[block].items() if isinstance(value, dict)}
        assert set(parameters[block].get("observation_sources", "").split()) == set(sources)
        for given in sources.values():
            fits(given, source)
            groups = {key: value for key, value in given.items() if isinstance(value, dict)}
            assert set(given.get("class_types", [])) == set(groups)
            for group in groups.values():
                fits(group, "class_type")


def test_the_collision_monitor_has_parameters_that_nav2_declares_and_our_points():
    parameters = read("collision_monitor")["collision_monitor"]["ros__parameters"]
    fits(parameters, "collision_monitor")
    for polygon in parameters["polygons"]:
        fits(parameters[polygon], "monitor_polygon")
    (source,) = (parameters[name] for name in parameters["observation_sources"])
    fits(source, "monitor_source")
    assert source["type"] == "pointcloud" and source["topic"] == NODE + "points"
    mark = costmap("local_costmap_points")["voxel_layer"]["dino_mark"]
    assert (source["min_height"], source["max_height"]) == (mark["min_obstacle_height"], mark["max_obstacle_height"])


def test_the_costmaps_come_up_without_a_map_and_agree_on_the_robot():
    local, over_all = costmap("local_costmap_semantic"), costmap("global_costmap_semantic")
    assert (local["global_frame"], over_all["global_frame"]) == ("odom", "map")
    for one in (local, over_all, costmap("local_costmap_points")):
        assert one["rolling_window"] and "static_layer" not in one["plugins"]
        assert one["robot_radius"] == local["robot_radius"] and one["robot_base_frame"] == "base_link"
    assert over_all["semantic_layer"] == local["semantic_layer"]
    assert read("collision_monitor")["collision_monitor"]["ros__parameters"]["base_frame_id"] == "base_link"


def test_the_voxel_layer_marks_what_stands_up_and_clears_with_all_points():
    layer = costmap("local_costmap_points")["voxel_layer"]
    mark, clear = (layer[name] for name in layer["observation_sources"].split())
    for source in (mark, clear):
        assert source["topic"] == NODE + "points" and source["data_type"] == "PointCloud2"
        assert TOPICS["points"].type == "sensor_msgs/msg/PointCloud2"
        assert source["max_obstacle_height"] > source["min_obstacle_height"]
    assert (mark["marking"], mark["clearing"], clear["marking"], clear["clearing"]) == (True, False, False, True)
    assert mark["min_obstacle_height"] > 0 > clear["min_obstacle_height"]  # the ground is at 0
    assert clear["max_obstacle_height"] >= mark["max_obstacle_height"]
    assert clear["raytrace_max_range"] >= mark["obstacle_max_range"]
    assert layer["z_voxels"] <= 16
    assert layer["origin_z"] + layer["z_voxels"] * layer["z_resolution"] >= mark["max_obstacle_height"]


def test_the_obstacle_layer_marks_every_point_of_the_nodes_obstacles_and_clears_with_all_points():
    layer = costmap("local_costmap_obstacles")["obstacle_layer"]
    mark, clear = (layer[name] for name in layer["observation_sources"].split())
    assert (mark["topic"], clear["topic"]) == (NODE + "obstacles", NODE + "points")
    assert TOPICS["obstacles"].type == TOPICS["points"].type == "sensor_msgs/msg/PointCloud2"
    assert (mark["marking"], mark["clearing"], clear["marking"], clear["clearing"]) == (True, False, False, True)
    for one in (layer, mark, clear):  # heights are the node's to judge, over the ground and not over odom
        assert one["min_obstacle_height"] <= -10 and one["max_obstacle_height"] >= 10
    assert clear["raytrace_max_range"] >= mark["obstacle_max_range"]


def test_the_static_layer_takes_the_nodes_map_with_its_costs():
    parameters = costmap("local_costmap_traversability")
    layer = parameters["traversability_layer"]
    assert layer["map_topic"] == NODE + "traversability" and TOPICS["traversability"].type.endswith("OccupancyGrid")
    assert not layer["map_subscribe_transient_local"], "the node offers it volatile"
    assert not TOPICS["traversability"].latched
    assert not parameters["trinary_costmap"] and parameters["lethal_cost_threshold"] == 100
    assert parameters["global_frame"] == Settings().odometry.frame


@pytest.mark.parametrize("name", SEMANTIC)
def test_the_semantic_layer_reads_our_topics_and_has_a_cost_for_each_of_our_classes_once(name):
    layer = costmap(name)["semantic_layer"]
    source = layer[layer["observation_sources"]]
    assert {key: source[key] for key in SOURCE_TOPICS} == {key: NODE + topic for key, topic in SOURCE_TOPICS.items()}
    assert set(SOURCE_TOPICS.values()) <= set(TOPICS)
    groups = [source[name] for name in source["class_types"]]
    named = [name for group in groups for name in group["classes"]]
    assert sorted(named) == sorted(label.name for label in LABELS)
    for group in groups:
        assert 0 <= group["base_cost"] <= 254 and 0 <= group["max_cost"] <= 254
        assert 0 <= group["mark_confidence"] < 255
    (rocks,) = (group for group in groups if "big_rock" in group["classes"])
    assert rocks["max_cost"] == 254 >= rocks["base_cost"] > 0


@pytest.mark.parametrize("name", SEMANTIC)
def test_no_class_is_free_and_what_was_not_seen_surely_is_dear(name):
    """What the model has not learned comes out as some class of the ground, in part with high confidence."""
    layer = costmap(name)["semantic_layer"]
    source = layer[layer["observation_sources"]]
    for group in (source[name] for name in source["class_types"]):
        if group["classes"] == ["sky"]:  # has no points
            continue
        assert group["max_cost"] > 0 and group["base_cost"] >= 60
        if group["max_cost"] < group["base_cost"]:
            assert group["mark_confidence"] >= 128 and group["samples_to_max_cost"] >= 2
