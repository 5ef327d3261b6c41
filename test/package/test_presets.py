"""Every preset is a configuration that the node takes, of models that the catalogue knows; the costmap by groups fits."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import yaml

from dino_perception.cli import configuration
from dino_perception.models import catalog, head_catalog
from dino_perception.models.label_sets import GROUP_LABELS
from dino_perception.perception.settings import SettingError, Settings

ROOT = Path(__file__).resolve().parents[2]
PRESETS = sorted((ROOT / "config" / "presets").glob("*.yaml"))


def settings(preset: str, *texts: str) -> Settings:
    parser = argparse.ArgumentParser()
    configuration.add_arguments(parser)
    sets = [word for text in texts for word in ("--set", text)]
    return configuration.settings_of(parser.parse_args(["--preset", preset, *sets]))


@pytest.mark.parametrize("path", PRESETS, ids=[path.stem for path in PRESETS])
def test_a_preset_names_models_that_there_are_and_says_how_to_fetch_them(path: Path) -> None:
    s = settings(path.stem)
    spec = catalog.get(s.backbone)
    assert s.input_height % spec.stride == s.input_width % spec.stride == 0
    fetched = path.read_text().split("dino-perception models --download ")[1].split("\n")[0].split()
    assert fetched[0] == s.backbone
    for kind in set(s.heads) & {"segmentation", "depth"}:
        entry = head_catalog.find(s.backbone, s.head[kind].weights)
        assert entry and entry.task == kind
        assert entry.name in fetched or entry.file == spec.file
    assert s.points.exclude == ["sky"]


def test_the_command_line_wins_over_a_preset_and_a_wrong_name_is_told() -> None:
    assert settings("outdoor", "depth.weights=nyu-dpt", "points.max_range=9").points.max_range == 9
    assert settings("outdoor").head["segmentation"].groups
    with pytest.raises(SettingError, match="there is no preset 'desert'; the presets are dinov3, indoor, metric_depth"):
        settings("desert")


def test_the_costmap_by_groups_has_a_cost_for_each_group_once() -> None:
    text = (ROOT / "config" / "nav2" / "local_costmap_groups.yaml").read_text()
    layer = yaml.safe_load(text)["local_costmap"]["local_costmap"]["ros__parameters"]["semantic_layer"]
    source = layer["dino"]
    groups = {key: value for key, value in source.items() if isinstance(value, dict)}
    assert set(source["class_types"]) == set(groups)
    named = [name for entry in groups.values() for name in entry["classes"]]
    assert sorted(named) == sorted(label.name for label in GROUP_LABELS)
    assert (
        all(groups[name]["max_cost"] == 254 for name in ("obstacle", "alive")) and groups["drivable"]["max_cost"] == 0
    )
