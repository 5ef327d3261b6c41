"""The RViz and Foxglove views show what the node publishes, under the names it publishes it."""

from __future__ import annotations

import json

import pytest
import yaml

from dino_perception.messages.topics import offered
from dino_perception.perception.settings import Settings
from dino_perception.share import share

TOPICS = offered(Settings().heads)

DISPLAYS = {"OccupancyGrid": "Map"}
"""The display of a type, where it has another name."""
PICTURES = {f"/dino_perception/{name}" for name in TOPICS if name.endswith("/overlay")} | {"/dino_perception/points"}


def rviz() -> dict:
    return yaml.safe_load(share("config", "rviz", "rover.rviz").read_text())


def foxglove() -> dict:
    return json.loads(share("config", "foxglove", "rover.json").read_text())


def rviz_topics() -> dict[str, str]:
    """Topic -> class of the display that shows it, of the displays that are switched on."""
    displays = rviz()["Visualization Manager"]["Displays"]
    return {d["Topic"]["Value"]: d["Class"] for d in displays if "Topic" in d and d["Enabled"]}


def foxglove_topics() -> set[str]:
    panels = foxglove()["configById"].values()
    images = {p["imageMode"]["imageTopic"] for p in panels if p.get("imageMode")}
    return images | {topic for p in panels for topic, shown in p.get("topics", {}).items() if shown["visible"]}


def panels_of(layout) -> set[str]:
    return {layout} if isinstance(layout, str) else panels_of(layout["first"]) | panels_of(layout["second"])


@pytest.mark.parametrize("topics", [rviz_topics, foxglove_topics])
def test_every_overlay_and_the_cloud_are_shown(topics):
    assert PICTURES <= set(topics())


def test_every_shown_topic_is_one_the_node_publishes():
    published = {f"/dino_perception/{name}": topic.type.rpartition("/")[2] for name, topic in TOPICS.items()}
    displays = [d for d in rviz()["Visualization Manager"]["Displays"] if "Topic" in d]
    assert {d["Topic"]["Value"] for d in displays} | foxglove_topics() <= set(published)
    for display in displays:
        kind = published[display["Topic"]["Value"]]
        assert display["Class"] == f"rviz_default_plugins/{DISPLAYS.get(kind, kind)}"


def test_rviz_asks_for_no_more_than_is_offered():
    for display in rviz()["Visualization Manager"]["Displays"]:
        if "Topic" in display:  # the outputs are reliable and volatile: a reader may ask for less, not for more
            assert display["Topic"]["Durability Policy"] == "Volatile"


def test_the_foxglove_layout_places_every_panel_once():
    layout = foxglove()
    assert panels_of(layout["layout"]) == set(layout["configById"])
