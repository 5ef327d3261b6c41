"""Reads ROS 1 bags through rosbags, as if they had been recorded with ROS 2."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

from rosbags.rosbag1 import Reader, ReaderError

from dino_perception.bags.storage.problems import Problem
from dino_perception.bags.storage.ros1_messages import Ros1Types
from dino_perception.bags.storage.topic import Topic


class Ros1Error(ValueError):
    """A file that cannot be read as a ROS 1 bag; the message says why."""


class Ros1Source:
    """The messages of one .bag file as CDR. `problem` is told what is wrong with it. Raises Ros1Error when nothing can
    be read."""

    recorded_order = False

    def __init__(self, path: Path, problem: Callable[[Problem], None]):
        self.path, self._problem = path, problem
        if not path.stat().st_size:
            raise Ros1Error(f"{path} is empty (0 bytes)")
        self._reader = Reader(path)
        try:
            self._reader.open()
        except ReaderError as error:
            advice = "; `rosbag reindex` of ROS 1 may mend it" if "index" in str(error).lower() else ""
            raise Ros1Error(f"{path} cannot be read as a ROS 1 bag: {error}{advice}") from None
        except Exception as error:  # a damaged header record fails in rosbags' parser in ways of its own
            raise Ros1Error(f"{path} cannot be read as a ROS 1 bag: {type(error).__name__} {error}") from None
        connections = self._reader.connections
        definitions = [(c.topic, c.msgtype, c.msgdef.data) for c in connections]
        self._types = Ros1Types(definitions, problem, path.name)
        topics = {c.id: self._types.topic(c.topic, c.msgtype, bool(c.ext.latching), c.msgcount) for c in connections}
        self._topics = {number: topic for number, topic in topics.items() if topic is not None}
        self.start_ns = self._reader.start_time if self._reader.message_count else 0
        self.end_ns = self._reader.end_time if self._reader.message_count else 0

    @property
    def topics(self) -> list[Topic]:
        merged: dict[tuple[str, str], Topic] = {}
        for topic in self._topics.values():  # every publisher has a connection of its own
            same = merged.get((topic.name, topic.type))
            merged[topic.name, topic.type] = (
                topic if same is None else Topic(**{**vars(topic), "count": topic.count + same.count})
            )
        return list(merged.values())

    def messages(
        self, names: Collection[str] | None = None, start: int | None = None, stop: int | None = None
    ) -> Iterator[tuple[int, Topic, Any]]:
        """(record time, topic, CDR bytes) of the topics `names` with start <= time < stop, by time."""
        wanted = [
            c
            for c in self._reader.connections
            if c.id in self._topics and (names is None or self._topics[c.id].name in names)
        ]
        if not wanted:
            return
        types = {(topic.name, topic.type): topic for topic in self.topics}
        try:
            for connection, time, raw in self._reader.messages(wanted, start, stop):
                topic = self._topics[connection.id]
                topic = types[topic.name, topic.type]
                try:
                    data = self._types.cdr(raw, topic.type)
                except Exception as error:  # a damaged message fails in rosbags in many ways
                    self._problem(
                        Problem(
                            "damaged",
                            f"messages of {topic.name} in {self.path.name} do not fit their type "
                            f"and are left out ({error})",
                            1,
                        )
                    )
                    continue
                yield time, topic, data
        except Exception as error:  # rosbags stops at the first damaged chunk
            self._problem(
                Problem(
                    "damaged",
                    f"{self.path.name} is damaged; the messages behind that are left out "
                    f"({type(error).__name__}: {error})",
                )
            )

    def close(self) -> None:
        self._reader.close()
