"""A parameter file that says nothing to the node is refused, and what says something is what rcl itself takes."""

from __future__ import annotations

import itertools

import pytest
import rclpy
import yaml
from live_node import SMALL, wait_for
from rclpy.node import Node

from dino_perception.ros.parameter_files import ParameterFileError, check_parameter_file, given_parameter_files, matches
from dino_perception.share import share

BLOCK = {"ros__parameters": {"x": 5}}


def written(tmp_path, document) -> str:
    path = tmp_path / "given.yaml"
    path.write_text(document if isinstance(document, str) else yaml.safe_dump(document))
    return str(path)


@pytest.mark.parametrize(
    "key, namespace",
    itertools.product(
        [
            "/**",
            "dino",
            "/dino",
            "/*/dino",
            "/rover/dino",
            "rover/dino",
            "/**/dino",
            "/rover/**",
            "/rover/*",
            "/*",
            "cat",
        ],
        ["/", "/rover"],
    ),
)
def test_a_key_means_a_node_exactly_when_rcl_says_so(tmp_path, key, namespace):
    path = written(tmp_path, {key: BLOCK})
    context = rclpy.Context()
    rclpy.init(args=["--ros-args", "--params-file", path], context=context)
    node = Node("dino", namespace=namespace, context=context)
    reached = node.declare_parameter("x", 0).value == 5
    name = node.get_fully_qualified_name()
    node.destroy_node()
    rclpy.shutdown(context=context)
    assert matches("/" + key.lstrip("/"), name) == reached
    if reached:
        check_parameter_file(path, name)
    else:
        with pytest.raises(ParameterFileError):
            check_parameter_file(path, name)


def test_keys_may_be_nested_and_the_shipped_file_fits_any_name(tmp_path):
    check_parameter_file(written(tmp_path, {"rover": {"dino": BLOCK}, "other": BLOCK}), "/rover/dino")
    check_parameter_file(share("config", "rover.yaml"), "/anything/at/all")


def test_the_tags_that_launch_writes_are_no_matter(tmp_path):
    check_parameter_file(written(tmp_path, yaml.dump({"dino": {"ros__parameters": {"cameras": ("a", "b")}}})), "/dino")


@pytest.mark.parametrize(
    "document, sentence",
    [
        ({"camera": BLOCK}, "is for '/camera', but the node is /dino"),
        ([1, 2], "holds a list at its top"),
        ("", "holds nothing at its top"),
        ("backbone", "holds 'backbone' at its top"),
        ({"dino": {"x": 5}}, "has no 'ros__parameters' below 'dino'"),
        ({"dino": {"ros__parameters": 5}}, "holds 5 as 'ros__parameters'"),
        ("a: b: c", "cannot be read as YAML"),
    ],
)
def test_a_file_that_does_not_reach_the_node_is_refused_with_file_and_key(tmp_path, document, sentence):
    path = written(tmp_path, document)
    with pytest.raises(ParameterFileError) as error:
        check_parameter_file(path, "/dino")
    assert path in str(error.value) and sentence in str(error.value) and "\n" not in str(error.value)


def test_a_path_that_is_no_file_is_refused(tmp_path):
    for path in (tmp_path / "nothing.yaml", tmp_path):
        with pytest.raises(ParameterFileError, match="there is no parameter file"):
            check_parameter_file(path, "/dino")


def test_every_file_of_a_command_line_is_found():
    assert given_parameter_files(["node", "--ros-args", "--params-file", "a", "-p", "x:=1", "--params-file", "b"]) == [
        "a",
        "b",
    ]


def test_the_node_itself_refuses_a_file_for_another_node(start, tmp_path):
    path = written(tmp_path, {"camera": BLOCK})
    node, _ = start(SMALL, "--params-file", path, name="unreached")
    wait_for(lambda: not node.alive(), "the end of the process")
    assert node.stop() == 2
    assert f"perception_node: {path} is for '/camera', but the node is /unreached" in node.log()
    assert "Traceback" not in node.log()
