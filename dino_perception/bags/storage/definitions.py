"""Message definitions of a bag as types: the texts are whatever somebody wrote into the file."""

from __future__ import annotations

from typing import Any

from rosbags.typesys import get_types_from_idl, get_types_from_msg

LONGEST = 256 << 10
"""Characters of a definition; the largest of a ROS distribution take a tenth of it."""
MOST_FIELDS = 4000
"""Fields of all types of a definition together: rosbags compiles code for each of them."""


class DefinitionError(ValueError):
    """A definition that cannot be read; the message says why in one line."""


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
