"""Every setting is a parameter; values are checked when set, and only live ones change on a configured node."""

import itertools
import runpy
from pathlib import Path

import pytest
import yaml
from rcl_interfaces.msg import ParameterType
from rclpy.node import Node
from rclpy.parameter import Parameter

from dino_perception.perception.settings import SettingError, Settings
from dino_perception.ros.parameters import Parameters

ROOT = Path(__file__).resolve().parents[2]
NUMBERS = itertools.count()


@pytest.fixture
def declare(ros):
    """declare({name: value at start}) -> (node, parameters, list of settings that took effect)."""
    nodes = []

    def make(overrides=None):
        given = [Parameter(name=name, value=value) for name, value in (overrides or {}).items()]
        node = Node(f"declares_{next(NUMBERS)}", parameter_overrides=given)
        nodes.append(node)
        applied = []
        return node, Parameters(node, applied.append), applied

    yield make
    for node in nodes:
        node.destroy_node()


def put(node, **values):
    """Set parameters in one atomic request; dots are written as two underscores."""
    given = [Parameter(name=name.replace("__", "."), value=value) for name, value in values.items()]
    return node.set_parameters_atomically(given)


def test_every_setting_is_declared_with_its_default_description_and_range(declare):
    node, parameters, _ = declare()
    for setting in Settings().parameters():
        assert node.get_parameter(setting.name).value == setting.value
        described = node.describe_parameter(setting.name)
        assert described.description == setting.field.metadata["description"] != ""
        low, high = setting.field.metadata["low"], setting.field.metadata["high"]
        ranges = [*described.floating_point_range, *described.integer_range]
        assert [(r.from_value, r.to_value) for r in ranges] == ([] if low is None else [(low, high)])
        if setting.field.metadata["choices"]:
            assert ", ".join(setting.field.metadata["choices"]) in described.additional_constraints
    assert parameters.settings() == Settings()


def test_values_given_at_start_reach_the_settings(declare):
    _, parameters, _ = declare(
        {
            "engine": "torch",
            "max_age": 2.5,
            "points.exclude": ["sky", "sand"],
            "cameras": ["front", "rear"],
            "correspondences.max_matches": 50,
        }
    )
    settings = parameters.settings()
    assert (settings.engine, settings.max_age, settings.cameras) == ("torch", 2.5, ["front", "rear"])
    assert settings.points.exclude == ["sky", "sand"]
    assert settings.head["correspondences"].max_matches == 50


def test_a_whole_number_is_taken_for_a_number(declare):
    node, parameters, _ = declare({"max_age": 2})
    assert put(node, points__max_range=7).successful
    assert (parameters.settings().max_age, parameters.settings().points.max_range) == (2.0, 7.0)


def test_an_empty_list_is_taken(declare):
    node, parameters, _ = declare({"points.fields": []})
    assert put(node, points__exclude=[]).successful
    assert parameters.settings().points.fields == parameters.settings().points.exclude == []


def test_only_the_heads_that_are_named_have_parameters(declare):
    node, parameters, _ = declare({"heads": ["depth"], "depth.rate": 2.0})
    assert list(parameters.settings().head) == ["depth"]
    assert not node.has_parameter("segmentation.rate")
    assert put(node, heads=["depth", "segmentation"]).successful
    assert put(node, segmentation__rate=3.0).successful  # before configuring, not only after it
    assert parameters.settings().head["segmentation"].rate == 3.0


def test_a_file_may_keep_what_it_says_about_a_head_that_is_not_loaded(declare):
    given = {"heads": ["depth"], "segmentation.rate": 2.0, "correspondences.min_score": 0.5}
    _, parameters, _ = declare(given)
    assert parameters.settings() == Settings.from_flat(given)
    assert parameters.unknown() == []


def test_a_bad_value_at_start_is_named_with_what_is_accepted_until_it_is_mended(declare):
    node, parameters, _ = declare({"engine": "warp", "max_age": -3.0, "threads": "many", "points.fields": ["xyz"]})
    with pytest.raises(SettingError) as error:
        parameters.lock()
    for part in (
        "'engine' is 'warp'; accepted are auto, tensorrt, cuda, openvino, torch",
        "'max_age' is -3.0; accepted is 0.01 to 3600",
        "'threads' is 'many'; accepted is a whole number",
        "'points.fields' is ['xyz']; accepted are any of rgb, label, confidence",
    ):
        assert part in str(error.value)
    assert put(node, engine="torch", max_age=1.0, threads=2, points__fields=["rgb"]).successful
    assert parameters.lock().engine == "torch"


def test_a_misspelt_name_is_found(declare):
    _, parameters, _ = declare(
        {
            "max_agee": 1.0,
            "depth.rat": 2.0,
            "max_age": 1.0,
            "use_sim_time": False,
            "qos_overrides./image.subscription.depth": 1,
        }
    )
    assert parameters.unknown() == ["depth.rat", "max_agee"]


def test_values_that_are_not_accepted_are_refused_with_a_reason_and_change_nothing(declare):
    node, parameters, _ = declare()
    for bad, reason in [
        ({"engine": "warp"}, "'engine' is 'warp'; accepted are auto"),
        ({"max_age": 0.0}, "max_age"),
        ({"points__max_range": -1}, "'points.max_range' is -1"),
        ({"autostart": "yes"}, "true or false"),
        ({"cameras": ["a", "a"]}, "once"),
        ({"max_age": float("nan")}, "max_age"),
    ]:
        result = put(node, **bad)
        assert not result.successful and reason in result.reason
    assert parameters.settings() == Settings()


def test_on_a_configured_node_live_parameters_change_at_once(declare):
    node, parameters, applied = declare()
    parameters.lock()
    assert put(node, max_age=2.0, depth__enabled=False, points__max_range=12).successful
    assert len(applied) == 1  # one request, one change
    assert (applied[0].max_age, applied[0].head["depth"].enabled, applied[0].points.max_range) == (2.0, False, 12.0)
    assert put(node, correspondences__min_score=0.7).successful
    assert applied[1].head["correspondences"].min_score == 0.7 and applied[1].max_age == 2.0


def test_on_a_configured_node_the_others_are_refused_all_or_none(declare):
    node, parameters, applied = declare()
    parameters.lock()
    result = put(node, max_age=2.0, engine="torch")
    assert not result.successful
    assert "'engine' takes effect only at configure time" in result.reason
    assert not applied and node.get_parameter("max_age").value == 0.5
    assert put(node, engine="auto").successful  # its present value is no change: a parameter file can be loaded again
    parameters.unlock()
    assert put(node, engine="torch").successful


def test_a_parameter_cannot_be_deleted(declare):
    node, parameters, _ = declare()
    assert not put(node, max_age=None).successful
    assert node.get_parameter("max_age").type_.value == ParameterType.PARAMETER_DOUBLE


def test_the_parameters_of_others_are_left_alone(declare):
    node, parameters, applied = declare()
    parameters.lock()
    node.declare_parameter("somebody.else", 1)
    assert put(node, somebody__else=2).successful and not applied


def test_the_parameter_file_holds_every_parameter_with_its_default_and_description():
    path = ROOT / "config" / "rover.yaml"
    assert Settings.from_yaml(path) == Settings()
    tree = yaml.safe_load(path.read_text())["/**"]["ros__parameters"]
    leaves = []

    def walk(node, prefix):
        for name, value in node.items():
            walk(value, f"{prefix}{name}.") if isinstance(value, dict) else leaves.append(prefix + name)

    walk(tree, "")
    assert leaves == [p.name for p in Settings().parameters()]
    assert path.read_text() == runpy.run_path(str(ROOT / "tools" / "rover_yaml.py"))["text"](), (
        "the settings changed; run: python tools/rover_yaml.py > config/rover.yaml"
    )
