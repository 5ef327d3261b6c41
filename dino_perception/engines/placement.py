"""Everything is exported on the CPU; only an engine places it. Here a graph is moved, and proven to be moved whole.

A graph that is told to run on one device and keeps one constant on another fails late and badly: compiled code reads
host memory as device memory, which ends the process (pytorch#190000, #172739). So every parameter, buffer, constant,
example, recorded value and `device=` argument is looked at before anything is compiled.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.utils import _pytree

from dino_perception.engines.base import EngineError

Exported = torch.export.ExportedProgram


def placed(exported: Exported, device: torch.device, name: str = "graph") -> Exported:
    """The program, moved to `device` whole. Raises EngineError that names the first part that stayed behind."""
    if device.type != "cpu":
        from torch.export.passes import move_to_device_pass

        exported = move_to_device_pass(exported, str(device))
    check_placed(exported, device, name)
    return exported


def check_placed(exported: Exported, device: torch.device, name: str = "graph") -> None:
    """Raises EngineError, naming what and where, when any part of the program is not on `device`."""
    for part, found in parts(exported):
        if not _same(found, device):
            raise EngineError(
                f"{name}: {part} is on {found} and the engine runs on {device}; "
                "the graph cannot be compiled, because only an engine may place its parts"
            )


def parts(exported: Exported) -> Iterator[tuple[str, torch.device]]:
    """Every part of a program that has a device, in words, and that device."""
    for kind, tensors in (("weight", exported.state_dict), ("constant", exported.constants)):
        for key, tensor in tensors.items():
            if isinstance(tensor, torch.Tensor):
                yield f"{kind} '{key}'", tensor.device
    for index, tensor in enumerate(_pytree.tree_leaves(exported.example_inputs)):
        if isinstance(tensor, torch.Tensor):
            yield f"example input {index}", tensor.device
    for module in exported.graph_module.modules():
        for key, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            yield f"tensor '{key}' of the graph", tensor.device
        for key, value in vars(module).items():
            if isinstance(value, torch.Tensor):
                yield f"tensor '{key}' of the graph", value.device
        if isinstance(module, torch.fx.GraphModule):
            for node in module.graph.nodes:
                yield from _of_node(node)


def _of_node(node: torch.fx.Node) -> Iterator[tuple[str, torch.device]]:
    for value in _pytree.tree_leaves(node.meta.get("val")):
        if isinstance(value, torch.Tensor):
            yield f"the value of node '{node.name}'", value.device
    for value in _pytree.tree_leaves((node.args, node.kwargs)):
        if isinstance(value, torch.device):
            yield f"an argument of node '{node.name}'", value
        elif isinstance(value, torch.Tensor):
            yield f"a tensor written into node '{node.name}'", value.device
    if isinstance(named := node.kwargs.get("device"), str):
        yield f"an argument of node '{node.name}'", torch.device(named)
    schema = getattr(node.target, "_schema", None)
    for argument, value in zip(schema.arguments if schema else (), node.args):
        if argument.name == "device" and isinstance(value, str):
            yield f"an argument of node '{node.name}'", torch.device(value)


def _same(one: torch.device, other: torch.device) -> bool:
    """Whether two names mean one device: `cuda` is the GPU in use, `cpu:0` the CPU."""
    if one.type != other.type or one.type in ("cpu", "meta"):
        return one.type == other.type
    return None in (one.index, other.index) or one.index == other.index
