"""What the launch files ask of their arguments: that each is known, and that each says what it can mean."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path


def on_command_line(*files: str, command: Sequence[str] = sys.argv) -> bool:
    """Whether the user has started one of these launch files, which then is the whole launch. Included by another
    one, it is a part, and neither its arguments nor its end are the whole's."""
    return any(Path(word).name in files for word in command)


def misspelt(given: Collection[str], known: Collection[str], *, certain: bool) -> list[str]:
    """A sentence for every name given that no argument has. Where it is not `certain` that all names are meant for
    this file, only for those that look like one of its own."""
    sentences = []
    for name in given:
        if name in known:
            continue
        close = difflib.get_close_matches(name, known, 1, 0.7 if certain else 0.85)
        if close:
            sentences.append(f"there is no launch argument '{name}'; did you mean '{close[0]}'?")
        elif certain:
            sentences.append(f"there is no launch argument '{name}'; there are {', '.join(sorted(known))}")
    return sentences


def names_given(words: Sequence[str]) -> list[str]:
    """The names of `<name>:=<value>` on a command line."""
    return [word.partition(":=")[0] for word in words if ":=" in word]


def truth(name: str, given: Mapping[str, str]) -> bool:
    """A yes or no. Raises ValueError."""
    value = given[name].lower()
    if value not in ("true", "1", "false", "0"):
        raise ValueError(f"'{name}' is '{given[name]}'; accepted are true and false")
    return value in ("true", "1")


def full_name(pushed: str, namespace: str, name: str) -> str:
    """A node's full name from the namespace that launch has pushed, the one asked for, and its name."""
    parts = [namespace, name] if namespace.startswith("/") else [pushed, namespace, name]
    return "/" + "/".join(part.strip("/") for part in parts if part.strip("/"))


def logger_name(node: str) -> str:
    """The logger of a node, by its full name."""
    return node.strip("/").replace("/", ".")
