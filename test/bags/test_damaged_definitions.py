"""A definition that other readers would stumble over is not copied into an output: rosbags opens what is written."""

from __future__ import annotations

import pytest
from rosbags.typesys import Stores, get_typestore

from dino_perception.bags.storage.definitions import DefinitionError, definition_types

JAZZY = get_typestore(Stores.ROS2_JAZZY)
KIND = "std_msgs/msg/Header"
TEXT, _ = JAZZY.generate_msgdef(KIND, ros_version=2)


def test_a_sound_definition_is_read_in_either_language():
    found = definition_types(TEXT, KIND, "ros2msg", JAZZY.fielddefs)
    assert found[KIND] == JAZZY.fielddefs[KIND]


@pytest.mark.parametrize(
    ("text", "encoding", "says"),
    [
        ("std_msgs/Gtring label\n", "ros2msg", "refers to std_msgs/msg/Gtring"),
        ("std_msgs/Gtring[] labels\n", "ros2msg", "refers to std_msgs/msg/Gtring"),
        (TEXT, "ros2}sg", "written in 'ros2}sg'"),
        (TEXT.replace("string frame_id", "strinG frame_id"), "ros2msg", "strinG"),
    ],
)
def test_what_another_reader_refuses_is_refused(text, encoding, says):
    with pytest.raises(DefinitionError, match=says):
        definition_types(text, KIND, encoding, JAZZY.fielddefs)
