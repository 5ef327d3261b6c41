"""Message definitions of a bag as types: the texts are whatever somebody wrote into the file."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

from rosbags.interfaces import Nodetype
from rosbags.typesys import get_types_from_idl, get_types_from_msg

LONGEST = 256 << 10
"""Characters of a definition; the largest of a ROS distribution take a tenth of it."""
MOST_FIELDS = 4000
"""Fields of all types of a definition together: rosbags compiles code for each of them."""
ENCODINGS = ("ros2msg", "ros2idl", "ros1msg", "")
"""Languages of definitions; some sources do not name theirs, which is .msg then."""


class DefinitionError(ValueError):
    """A definition that cannot be read; the message says why in one line."""


def is_type_name(kind: str) -> bool:
    """Whether a type's name is one that ROS 2 allows, such as `sensor_msgs/msg/Image`."""
    return re.fullmatch(r"[A-Za-z]\w*(/\w+)?/[A-Za-z]\w*", kind, re.ASCII) is not None


def definition_types(text: str, kind: str, encoding: str, known: Collection[str]) -> dict[str, Any]:
    """Name -> fields of a definition of `kind` and of all it refers to. Raises DefinitionError when it cannot be read, is
    written in no language that ROS 2 has, does not define `kind`, or refers to a type that neither it nor `known` has:
    other readers refuse a whole recording over any of these."""
    if encoding not in ENCODINGS:
        raise DefinitionError(f"it is written in {encoding!r}; read are {', '.join(filter(None, ENCODINGS))}")
    found = idl_types(text) if encoding == "ros2idl" else message_types(text, kind)
    if kind not in found:
        raise DefinitionError(f"it does not define {kind}")
    named = {name for _, fields in found.values() for _, field in fields for name in _names(field)}
    missing = sorted(named - found.keys() - set(known))
    if missing:
        raise DefinitionError(f"it refers to {missing[0]}, which is not defined")
    return found


def _names(field: Any) -> list[str]:
    """The types that a field of rosbags' form refers to: (node, name), or (node, (field, length)) for a sequence."""
    node, value = field
    if node == Nodetype.NAME:
        return [value]
    return _names(value[0]) if node in (Nodetype.ARRAY, Nodetype.SEQUENCE) else []


def message_types(text: str, kind: str) -> dict[str, Any]:
    """Name -> fields, as rosbags' typestore registers them, of a .msg text with all it refers to. Raises
    DefinitionError."""
    return _checked(lambda: get_types_from_msg(text, kind), text)


def idl_types(text: str) -> dict[str, Any]:
    """The same of an IDL text, or of several behind "=====" lines, IDL and .msg mixed (rosbag2's form)."""
    rule = "=" * 80 + "\n"
    if not text.startswith(rule):
        return _checked(lambda: get_types_from_idl(text), text)
    found: dict[str, Any] = {}
    for part in text.split(rule)[1:]:
        head, _, body = part.partition("\n")
        idl = head.startswith("IDL: ")
        found.update(
            _checked(lambda body=body: get_types_from_idl(body), text)
            if idl
            else message_types(body, head.removeprefix("MSG: "))
        )
    return found


def _checked(parse: Any, text: str) -> dict[str, Any]:
    if len(text) > LONGEST:
        raise DefinitionError(f"it has {len(text)} characters; up to {LONGEST} are read")
    try:
        found = parse()
    except Exception as error:  # the parsers fail in many ways, RecursionError and KeyError among them
        reason = " ".join(str(error).split())
        raise DefinitionError(reason if len(reason) < 120 else f"{reason[:120]}...") from None
    fields = sum(len(entries) for _, entries in found.values())
    if fields > MOST_FIELDS:
        raise DefinitionError(f"it has {fields} fields; up to {MOST_FIELDS} are read")
    return found
