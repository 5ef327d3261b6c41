"""ROS 1 messages as ROS 2 has them: types, definitions and bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from rosbags.convert.converter import is_same_wireformat
from rosbags.typesys import Stores, get_typestore

from dino_perception.bags.storage.definitions import DefinitionError, message_types
from dino_perception.bags.storage.problems import Problem
from dino_perception.bags.storage.topic import Topic, full_type, qos

_HEADER = {"std_msgs/msg/Header": get_typestore(Stores.ROS2_FOXY).fielddefs["std_msgs/msg/Header"]}
_RENAMED = {"tf/msg/tfMessage": "tf2_msgs/msg/TFMessage"}


class Ros1Types:
    """The types of some topics: ROS 2's own definition where the fields are the same (K is k there), the recording's
    otherwise, and no sequence number in headers. `definitions` are (topic, type, text); `problem` is told of those that
    cannot be read."""

    def __init__(self, definitions: Iterable[tuple[str, str, str]], problem: Callable[[Problem], None], file: str):
        self._problem, self._file = problem, file
        ros2 = get_typestore(Stores.ROS2_JAZZY)
        own = get_typestore(Stores.EMPTY)
        for topic, kind, text in definitions:
            try:
                own.register({**message_types(text, ros2_type(kind)), **_HEADER})
            except Exception as error:  # two definitions of one type, or what rosbags makes of a damaged one
                reason = error if isinstance(error, DefinitionError) else f"{type(error).__name__}: {error}"
                sentence = f"topic {topic} of {file} has a definition that cannot be read and is left out ({reason})"
                problem(Problem("unknown", sentence, topic))
        self.store: Any = get_typestore(Stores.EMPTY)
        self.store.register(
            {
                name: ros2.fielddefs[name] if name in ros2.fielddefs and _same_wireformat(own, ros2, name) else fields
                for name, fields in own.fielddefs.items()
            }
        )

    def topic(self, name: str, kind: str, latching: bool, count: int = 0) -> Topic | None:
        """The topic as a ROS 2 recorder would have written it; None when its type is not known."""
        kind = ros2_type(kind)
        if kind not in self.store.fielddefs:
            return None
        try:
            text, _ = self.store.generate_msgdef(kind, ros_version=2)
            digest = self.store.hash_rihs01(kind)
        except Exception as error:  # it refers to a type that it does not define, or to itself
            sentence = f"topic {name} of {self._file} is of type {kind}, which is not defined in full ({error})"
            self._problem(Problem("unknown", f"{sentence}; it is left out", name))
            return None
        offered = qos(1, durability="transient_local") if latching else ""
        return Topic(name, kind, text, "ros2msg", digest, offered, count)

    def cdr(self, raw: Any, kind: str) -> Any:
        """The CDR bytes of a message of ROS 2's type `kind`. Raises whatever rosbags meets in damaged bytes."""
        return self.store.ros1_to_cdr(raw, kind)


def ros2_type(kind: str) -> str:
    """The ROS 2 name of a ROS 1 type, with or without "/msg/"."""
    kind = full_type(kind)
    return _RENAMED.get(kind, kind)


def _same_wireformat(own: Any, ros2: Any, name: str) -> bool:
    try:
        return is_same_wireformat(own, ros2, name, name)
    except Exception:  # it refers to a type that it does not define, or to itself
        return False
