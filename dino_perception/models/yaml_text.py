"""YAML from files nobody vouches for. Every reader of this package reads through here.

PyYAML recurses as deep as the text nests, and its aliases make a few hundred bytes stand for billions of values; what it
raises depends on the value. Here a text is measured first, and whatever is wrong with it is one error.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

LONGEST = 16 << 20
"""Characters: the metadata of a bag of ten thousand files takes a tenth."""
DEEPEST = 64
"""Lists and maps within one another."""
MOST = 2_000_000
"""Values, each counted as often as aliases repeat it."""
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class YamlError(ValueError):
    """A text cannot be read as YAML; the message says why."""


def load(text: str | bytes) -> Any:
    """The plain data that a YAML document stands for, as yaml.safe_load gives it. Raises YamlError."""
    if len(text) > LONGEST:
        raise YamlError(f"it is {len(text)} bytes long; accepted are {LONGEST}")
    try:
        _measure(text)
        return yaml.load(text, Loader=LOADER)  # noqa: S506: one of the two safe loaders
    except YamlError:
        raise
    except yaml.YAMLError as error:
        raise YamlError(" ".join(str(error).split())) from None
    except (ArithmeticError, LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
        # A date that is none, a number of ten thousand digits, a key that is a list.
        raise YamlError(f"it holds a value that cannot be read ({error or type(error).__name__})") from None


def load_file(path: Path) -> Any:
    """The data of a YAML file in UTF-8. Raises YamlError, also where the file cannot be read, and FileNotFoundError."""
    try:
        with open(path, "rb") as file:
            data = file.read(LONGEST + 1)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise YamlError(f"it cannot be opened: {error.strerror or error}") from None
    try:
        return load(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise YamlError(f"it is no UTF-8 text ({error.reason} at byte {error.start})") from None


def _measure(text: str | bytes) -> None:
    """Raises YamlError where nesting or aliases are beyond the limits. Events come without recursion."""
    sizes: dict[str, int] = {}  # anchor -> values below it
    open_: list[tuple[str | None, int]] = []  # the collections around: their anchors, and the values within so far
    size = 0  # of the document so far, aliases written out
    for event in yaml.parse(text, Loader=LOADER):
        if isinstance(event, yaml.AliasEvent):
            if any(anchor == event.anchor for anchor, _ in open_):
                raise YamlError(f"its alias *{event.anchor} stands for something that it is part of")
            size += sizes.get(event.anchor, 1)
        elif isinstance(event, (yaml.SequenceStartEvent, yaml.MappingStartEvent)):
            open_.append((event.anchor, size))
            size += 1
            if len(open_) > DEEPEST:
                raise YamlError(f"it nests more than {DEEPEST} levels deep")
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = open_.pop()
            if anchor:
                sizes[anchor] = size - before
        elif isinstance(event, yaml.ScalarEvent):
            size += 1
            if event.anchor:
                sizes[event.anchor] = 1
        if size > MOST:
            raise YamlError(f"it stands for more than {MOST} values")
