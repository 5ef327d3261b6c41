"""Parameter files: whether one says anything to the node that it is given to.

rcl takes a file without a word for this node as one that says nothing, and the node would run on defaults.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml


class ParameterFileError(ValueError):
    """A parameter file that does not reach the node; the message names the file and what is wrong in it."""


def check_parameter_file(path: str | Path, node: str) -> None:
    """Raises ParameterFileError unless the file holds `ros__parameters` for `node`, a full name such as
    `/rover/dino_perception`. Keys may be nested, and hold the wildcards of rcl: `/**` for any names, `/*` for one."""
    if not Path(path).is_file():
        raise ParameterFileError(f"there is no parameter file {path}")
    try:
        document = yaml.load(Path(path).read_text(), _AnyTag)
    # yaml lets out what Python's own types raise for dates, numbers and keys that are none.
    except (OSError, ValueError, TypeError, LookupError, RecursionError, yaml.YAMLError) as error:
        raise ParameterFileError(f"{path} cannot be read as YAML: {' '.join(str(error).split())}") from None
    shape = f"expected is '{node}:' or '/**:' with 'ros__parameters:' below it"
    if not isinstance(document, dict):
        what = {type(None): "nothing", list: "a list"}.get(type(document), f"{document!r}")
        raise ParameterFileError(f"{path} holds {what} at its top; {shape}")
    blocks = dict(_blocks(document, ""))
    if not blocks:
        raise ParameterFileError(f"{path} has no 'ros__parameters' below {_listed(document)}; {shape}")
    if not any(matches(key, node) for key in blocks):
        raise ParameterFileError(f"{path} is for {_listed(blocks)}, but the node is {node}; {shape}")
    for key, block in blocks.items():
        if matches(key, node) and not isinstance(block, (dict, type(None))):
            raise ParameterFileError(
                f"{path} holds {block!r} as 'ros__parameters' of '{key}'; expected are names with values"
            )


def matches(key: str, node: str) -> bool:
    """Whether a key of a parameter file means a node, by its full name: rcl's rule."""
    pattern = key.replace("/**", r"(/\w+)*").replace("/*", r"/\w+")
    return re.fullmatch(pattern, node) is not None


def given_parameter_files(arguments: Sequence[str]) -> list[str]:
    """The files behind every `--params-file` of a command line."""
    return [path for option, path in zip(arguments, arguments[1:]) if option == "--params-file"]


class _AnyTag(yaml.SafeLoader):
    """Reads a value whatever its tag, as rcl does: launch writes lists as !!python/tuple."""


def _untagged(loader: yaml.SafeLoader, node: yaml.Node) -> Any:
    if isinstance(node, yaml.MappingNode):
        return loader.construct_mapping(node, deep=True)
    return loader.construct_sequence(node, deep=True) if isinstance(node, yaml.SequenceNode) else node.value


_AnyTag.add_constructor(None, _untagged)


def _blocks(tree: dict, prefix: str) -> Iterator[tuple[str, Any]]:
    """Full name of a node (or pattern) -> what stands under its `ros__parameters`."""
    for name, value in tree.items():
        key = f"{prefix}/{str(name).lstrip('/')}"
        if isinstance(value, dict):
            if "ros__parameters" in value:
                yield key, value["ros__parameters"]
            yield from _blocks({k: v for k, v in value.items() if k != "ros__parameters"}, key)


def _listed(names: dict) -> str:
    return ", ".join(f"'{name}'" for name in names) or "anything"
