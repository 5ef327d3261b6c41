"""A definition that other readers would stumble over is not copied into an output: rosbags opens what is written."""

from __future__ import annotations

import pytest
from mcap.writer import Writer
from rosbags.highlevel import AnyReader
from rosbags.typesys import Stores, get_typestore

from dino_perception.bags.storage.definitions import DefinitionError, definition_types
from dino_perception.bags.storage.reader import BagReader
from dino_perception.bags.storage.writer import BagWriter

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


@pytest.mark.parametrize("definition", [b"string data\n", b""])
def test_a_type_of_an_impossible_name_leaves_the_copy_readable(tmp_path, definition):
    with open(tmp_path / "in.mcap", "wb") as stream:
        writer = Writer(stream)
        writer.start("ros2")
        for number, kind in enumerate(["std_msgs/msg/String", "sensor_msgs/msg/\0\0fo"]):
            schema = writer.register_schema(kind, "ros2msg", definition if number else b"string data\n")
            channel = writer.register_channel(f"/topic{number}", "cdr", schema)
            writer.add_message(channel, 1, b"\0\1\0\0\2\0\0\0x\0", 1)
        writer.finish()
    copy = BagWriter(tmp_path / "out.mcap")
    with BagReader(tmp_path / "in.mcap") as bag:
        copy.write(list(bag.messages(list(bag.topics))))
    copy.close(complete=True)
    with AnyReader([tmp_path / "out.mcap"]) as reader:
        assert sorted((c.topic, len(raw)) for c, _, raw in reader.messages()) == [("/topic0", 10), ("/topic1", 10)]
