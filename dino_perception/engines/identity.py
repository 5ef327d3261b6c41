"""What a compiled graph is, said without tracing it: the key of the engine cache.

A warm start must not export the module again (with torch that alone takes seconds), so the key is taken from what the
export would be made of: every submodule's class and plain attributes, every parameter and buffer value, the source of
`models/` and of the engine, the example's shapes and dtypes, precision and threads, and the versions of runtime and
device. Nothing stale can be loaded, because tracing reads nothing else: a changed weight, tap, resolution, line of
model code, torch or driver changes the key. Only the values that a class of `models/` names in `DERIVED` are left out:
they follow from the rest.

Two things are outside that argument, and are refused rather than guessed: a class whose code does not live in
`models/` or torch.nn, and an attribute that has no value semantics (a hook, a lambda). Such a module is known by its
exported graph, which is slow and always right.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import hashlib
import inspect
import json
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from dino_perception.engines.base import Engine, Program

_ROOM = "dino_perception.models"
_OWN = ("_parameters", "_buffers", "_modules")


class Undescribable(TypeError):
    """A module holds something whose meaning cannot be read from its value."""


def describe(program: Program, engine: Engine, precision: str, threads: int) -> dict[str, Any]:
    """Everything that decides what the engine is, as data that JSON can hold. Raises EngineError when only an export
    can tell and it fails."""
    module = program.module
    try:
        graph = {"structure": structure_hash(module), "weights": weights_hash(module), "code": _source_hash(_ROOM)}
    except Undescribable:
        graph = {"exported": exported_hash(program)}
    runtime = type(engine)
    return {
        "format": 1,
        "name": program.name,
        "graph": graph,
        "inputs": [[str(t.dtype).removeprefix("torch."), list(t.shape)] for t in program.example],
        "engine": engine.name,
        **({"way": engine.way} if engine.way else {}),
        "precision": precision,
        "threads": threads,
        "code": _files_hash([Path(inspect.getfile(part)) for part in (runtime, *runtime.helpers)]),
        "runtime": engine.identity(),
    }


def key(description: Mapping[str, Any]) -> str:
    """A name for a description: 24 hex digits that change when anything in it does."""
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()[:24]


def structure_hash(module: nn.Module) -> str:
    """A hash over the classes and attributes of a module and everything under it. Raises Undescribable."""
    parts = []
    for name, part in module.named_modules(remove_duplicate=False):
        _check_home(type(part))
        derived = getattr(type(part), "DERIVED", ())
        plain = {k: v for k, v in vars(part).items() if k not in _OWN and k not in derived}
        parts.append([name, _class_name(type(part)), _value(plain, ())])
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def weights_hash(module: nn.Module) -> str:
    """A hash over names, shapes, dtypes and bytes of every parameter and buffer, persistent or not."""
    digest = hashlib.sha256()
    for name, tensor in [
        *module.named_parameters(remove_duplicate=False),
        *module.named_buffers(remove_duplicate=False),
    ]:
        _add_tensor(digest, name, tensor)
    return digest.hexdigest()


def inputs_hash(inputs: Sequence[tuple[torch.Tensor, ...]]) -> str:
    """A short hash over the values of some input tuples."""
    digest = hashlib.sha256()
    for tensors in inputs:
        for tensor in tensors:
            _add_tensor(digest, "", tensor)
    return digest.hexdigest()[:16]


def exported_hash(program: Program) -> str:
    """A hash over the exported graph: its operations, their arguments, and every constant. Raises EngineError."""
    exported = program.exported
    digest = hashlib.sha256(exported.graph_module.code.encode())
    digest.update(str(exported.graph_signature).encode())
    for name, tensor in sorted({**exported.state_dict, **exported.constants}.items()):
        _add_tensor(digest, name, tensor)
    return digest.hexdigest()


def _add_tensor(digest, name: str, tensor: torch.Tensor) -> None:
    digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
    digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)


def _check_home(cls: type) -> None:
    """The class and what it inherits are code that the key covers: the models, or a versioned library."""
    for base in cls.__mro__:
        home = base.__module__
        if not (home.startswith(f"{_ROOM}.") or home.split(".")[0] in ("torch", "builtins", "abc", "typing")):
            raise Undescribable(f"{_class_name(base)} lives outside {_ROOM}")


def _class_name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _value(value: Any, above: tuple[int, ...]) -> Any:
    """Plain data with the same meaning. `above` holds the ids of the containers around it, against cycles."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, (float, complex, bytes, torch.dtype, torch.device, Path, np.generic)):
        return f"{type(value).__name__} {value!r}"
    if isinstance(value, enum.Enum):
        return f"{_class_name(type(value))} {value.name}"
    if id(value) in above:
        raise Undescribable("an attribute contains itself")
    above = (*above, id(value))
    if isinstance(value, (torch.Tensor, np.ndarray)):
        digest = hashlib.sha256()
        _add_tensor(digest, "", torch.as_tensor(value))
        return digest.hexdigest()
    if isinstance(value, nn.Module):  # held by an attribute that torch does not register, such as a list
        return [structure_hash(value), weights_hash(value)]
    if isinstance(value, (list, tuple)):
        return [type(value).__name__, [_value(item, above) for item in value]]
    if isinstance(value, (set, frozenset)):
        return [type(value).__name__, sorted(json.dumps(_value(item, above)) for item in value)]
    if isinstance(value, (dict, types.MappingProxyType)):
        return [type(value).__name__, [[_value(k, above), _value(v, above)] for k, v in value.items()]]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [
            _class_name(type(value)),
            [[f.name, _value(getattr(value, f.name), above)] for f in dataclasses.fields(value)],
        ]
    if isinstance(value, (type, types.FunctionType, types.BuiltinFunctionType)):
        return _named(value)
    raise Undescribable(f"an attribute is a {_class_name(type(value))}")


def _named(value: Any) -> str:
    """A class or function that its module's source defines under its own name."""
    module, name = getattr(value, "__module__", None) or "", value.__qualname__
    if module.startswith(f"{_ROOM}.") or module.split(".")[0] in ("torch", "builtins"):
        if "<" not in name and not getattr(value, "__closure__", None):
            return f"{module}.{name}"
    raise Undescribable(f"an attribute is {module}.{name}")


@functools.cache
def _source_hash(package: str) -> str:
    import importlib

    folder = Path(importlib.import_module(package).__file__).parent
    return _files_hash(sorted(folder.rglob("*.py")))


def _files_hash(files: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.name.encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()[:24]
