"""The channels of an MCAP file as topics, whatever their messages are encoded as."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dino_perception.bags.storage import mcap_format as mcap
from dino_perception.bags.storage.mcap_format import McapError
from dino_perception.bags.storage.problems import Problem
from dino_perception.bags.storage.ros1_messages import Ros1Types
from dino_perception.bags.storage.topic import Topic, full_type, named_qos

_ROS2 = {"ros2msg": "ros2msg", "ros2idl": "ros2idl", "omgidl": "ros2idl"}


class Channels:
    """`topics` by the number of the channel, from the records that `register` is given.

    Channels in CDR are topics of ROS 2. Those in ROS 1's encoding become such topics, and `cdr` converts their
    messages. All others stay as they are. `problem` is told of what cannot be read.
    """

    def __init__(self, file: str, problem: Callable[[Problem], None]):
        self._file, self._problem = file, problem
        self._schemas: dict[int, tuple[str, str, bytes]] = {}
        self._ros1: dict[int, Ros1Types] = {}
        self._left_out: set[int] = set()
        self.topics: dict[int, Topic] = {}

    def __len__(self) -> int:
        return len(self.topics) + len(self._left_out)

    def __contains__(self, number: int) -> bool:
        return number in self.topics or number in self._left_out

    def register(self, opcode: int, body: memoryview) -> None:
        """Take a schema or a channel; other records are passed over."""
        fields = mcap.Fields(body)
        try:
            if opcode == mcap.SCHEMA:
                number = fields.take("<H")[0]
                self._schemas[number] = (fields.text(), fields.text(), bytes(fields.block()))
            elif opcode == mcap.CHANNEL:
                number, schema = fields.take("<HH")
                if number not in self.topics and number not in self._left_out:
                    self._add(number, schema, fields)
        except McapError as error:
            self._problem(Problem("damaged", f"a topic of {self._file} cannot be read: {error}"))

    def cdr(self, channel: int, data: Any) -> Any:
        """The bytes of a message as its topic has them; None, after saying so, when they cannot be converted."""
        types = self._ros1.get(channel)
        if types is None:
            return data
        topic = self.topics[channel]
        try:
            return types.cdr(bytes(data), topic.type)
        except Exception as error:  # a damaged message fails in rosbags in many ways
            sentence = f"messages of {topic.name} in {self._file} do not fit their type and are left out ({error})"
            self._problem(Problem("damaged", sentence, topic.name))
            return None

    def count(self, channel: int, count: int) -> Topic:
        """The topic with its number of messages."""
        topic = self.topics[channel]
        if topic.count != count:
            topic = self.topics[channel] = Topic(**{**vars(topic), "count": count})
        return topic

    def _add(self, number: int, schema: int, fields: mcap.Fields) -> None:
        name, coding = fields.text(), fields.text()
        notes = mcap.text_pairs(fields.block())
        kind, encoding, definition = self._schemas.get(schema, ("", "", b""))
        offered = named_qos(notes.get("offered_qos_profiles", ""))
        if coding == "cdr":
            text = definition.decode(errors="replace")
            encoding, digest = _ROS2.get(encoding, encoding), notes.get("topic_type_hash", "")
            self.topics[number] = Topic(name, full_type(kind), text, encoding, digest, offered)
        elif coding == "ros1":
            types = Ros1Types([(name, kind, definition.decode(errors="replace"))], self._problem, self._file)
            topic = types.topic(name, kind, notes.get("latching") == "1")
            if topic is None:
                self._left_out.add(number)
            else:
                self._ros1[number], self.topics[number] = types, topic
        else:
            self.topics[number] = Topic(name, kind, definition.decode("latin-1"), encoding, "", offered, 0, coding)
