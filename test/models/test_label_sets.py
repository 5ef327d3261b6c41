"""The label sets are those of the data, and every class means something to somebody who drives."""

from __future__ import annotations

import pytest

from dino_perception.models.label_sets import GROUPS, LABEL_SETS, group, groups

COUNTS = {"terrain": 5, "ade20k": 150, "voc2012": 21, "coco-panoptic": 134, "coco": 80, "cityscapes": 19}


@pytest.mark.parametrize("name", COUNTS)
def test_a_set_has_its_classes_with_ids_names_and_colours_of_their_own(name: str) -> None:
    labels = LABEL_SETS[name]
    assert [label.id for label in labels] == list(range(COUNTS[name]))
    assert len({label.name for label in labels}) == len({label.colour for label in labels}) == COUNTS[name]
    assert {i for ids in groups(labels).values() for i in ids} == set(range(COUNTS[name]))


def test_every_class_but_background_has_a_group() -> None:
    assert {label.name for labels in LABEL_SETS.values() for label in labels if group(label.name) == "unknown"} == {
        "background"
    }
    assert set(GROUPS.values()) >= {"traversable", "obstacle", "water", "vegetation", "person", "vehicle", "sky"}


@pytest.mark.parametrize(
    "name, wanted",
    [("sky-other-merged", "sky"), ("Sky", "sky"), ("road", "traversable"), ("big_rock", "obstacle"), ("tree", "vegetation"),
     ("rider", "person"), ("lake", "water"), ("truck", "vehicle"), ("dragon", "unknown")],
)  # fmt: skip
def test_a_name_tells_its_group(name: str, wanted: str) -> None:
    assert group(name) == wanted
