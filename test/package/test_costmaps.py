"""The local costmaps for Nav2 read what the node publishes, and are written as Nav2 wants them."""

from __future__ import annotations

import pytest
import yaml

from dino_perception.messages.topics import TOPICS
from dino_perception.models.heads import LABELS
from dino_perception.share import share

NODE = "/dino_perception/"
SOURCE_TOPICS = {  # the semantic layer's parameter -> our topic
    "segmentation_topic": "segmentation/mask",
    "confidence_topic": "segmentation/confidence",
    "labels_topic": "segmentation/label_info",
    "pointcloud_topic": "points",
}


def costmap(name: str) -> dict:
    file = yaml.safe_load(share("config", "nav2", f"local_costmap_{name}.yaml").read_text())
    assert list(file) == ["local_costmap"]
    return file["local_costmap"]["local_costmap"]["ros__parameters"]


def nodes(tree: dict):
    """Every mapping of a parameter tree."""
    yield tree
    for value in tree.values():
        if isinstance(value, dict):
            yield from nodes(value)


@pytest.mark.parametrize("name", ["points", "semantic"])
def test_a_costmap_has_the_parameters_as_their_declared_types(name):
    """Nav2 refuses `5` for a double and `5.0` for an integer."""
    declared = {
        float: "update_frequency publish_frequency transform_tolerance resolution robot_radius origin_z z_resolution "
        "min_obstacle_height max_obstacle_height obstacle_min_range obstacle_max_range raytrace_min_range "
        "raytrace_max_range observation_persistence expected_update_rate inflation_radius cost_scaling_factor "
        "min_obstacle_distance max_obstacle_distance tile_map_decay_time",
        int: "width height combination_method z_voxels unknown_threshold mark_threshold sensor_data_depth base_cost "
        "max_cost mark_confidence samples_to_max_cost",
        bool: "rolling_window track_unknown_space always_send_full_costmap enabled footprint_clearing_enabled "
        "publish_voxel_map marking clearing use_approximate_time_sync use_cost_selection visualize_tile_map "
        "dominant_priority",
        str: "global_frame robot_base_frame plugin observation_sources topic data_type segmentation_topic "
        "confidence_topic labels_topic pointcloud_topic",
        list: "plugins class_types classes",
    }
    kinds = {parameter: kind for kind, parameters in declared.items() for parameter in parameters.split()}
    parameters = costmap(name)
    for node in nodes(parameters):
        for parameter, value in node.items():
            assert isinstance(value, dict) or type(value) is kinds[parameter], parameter
    assert parameters["global_frame"] == "odom" and parameters["rolling_window"]
    blocks = {key for key, value in parameters.items() if isinstance(value, dict)}
    assert set(parameters["plugins"]) == blocks and all(parameters[block]["plugin"] for block in blocks)
    for block in blocks & {"voxel_layer", "semantic_layer"}:
        sources = {key for key, value in parameters[block].items() if isinstance(value, dict)}
        assert set(parameters[block]["observation_sources"].split()) == sources


def test_the_voxel_layer_marks_what_stands_up_and_clears_with_all_points():
    layer = costmap("points")["voxel_layer"]
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


def test_the_semantic_layer_reads_our_topics_and_has_a_cost_for_each_of_our_classes_once():
    layer = costmap("semantic")["semantic_layer"]
    source = layer[layer["observation_sources"]]
    assert {key: source[key] for key in SOURCE_TOPICS} == {key: NODE + name for key, name in SOURCE_TOPICS.items()}
    assert set(SOURCE_TOPICS.values()) <= set(TOPICS)
    groups = {key for key, value in source.items() if isinstance(value, dict)}
    assert set(source["class_types"]) == groups
    named = [name for group in groups for name in source[group]["classes"]]
    assert sorted(named) == sorted(label.name for label in LABELS)
    for group in groups:
        assert 0 <= source[group]["base_cost"] <= source[group]["max_cost"] <= 254
        assert 0 <= source[group]["mark_confidence"] < 255
    (rocks,) = (source[group] for group in groups if "big_rock" in source[group]["classes"])
    assert rocks["max_cost"] == 254
