"""The last interpolation of a head, written out, so that OpenVINO leaves it in float32.

When OpenVINO is told to use bfloat16, it keeps float32 only after the last operation that it finds worth speeding up,
and an interpolation is one. A head's last interpolation enlarges its results: metres in bfloat16 come in steps of 6 cm
at 10 m, and flat ground becomes a staircase. As gathers and one multiply-add the same enlargement stays float32, and is
no slower.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dino_perception.engines.retype import PRODUCTS, packet_of

_UPSAMPLE = torch.ops.aten.upsample_bilinear2d


def with_exact_tail(exported: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """The program with each bilinear enlargement that no matrix product follows written out; others stay as they are.
    A program without any is returned itself."""
    graph = exported.module()
    last = _after_the_last_product(graph.graph)
    if not any(packet_of(node) is _UPSAMPLE for node in last):
        return exported
    arguments = exported.example_inputs[0]
    with torch.no_grad():
        return torch.export.export(_Rewritten(graph, {node.name for node in last}), arguments, strict=False)


def bilinear(x: Tensor, height: int, width: int) -> Tensor:
    """(B, C, h, w) to (B, C, height, width), half-pixel centres (source = (target + 0.5) * h / height - 0.5), edges
    repeated: torch's bilinear interpolation without aligned corners."""
    for dim, size in ((2, height), (3, width)):
        length = x.shape[dim]
        source = ((torch.arange(size, device=x.device) + 0.5) * (length / size) - 0.5).clamp(0, length - 1)
        low = source.floor().long()
        high = (low + 1).clamp(max=length - 1)
        share = (source - low).view([size if d == dim else 1 for d in range(4)])
        first = x.index_select(dim, low)
        x = first + (x.index_select(dim, high) - first) * share
    return x


class _Rewritten(nn.Module):
    def __init__(self, inner: torch.fx.GraphModule, last: set[str]):
        super().__init__()
        self.inner, self.last = inner, last

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(_Rewriting(self.inner, self.last).run(*inputs))


class _Rewriting(torch.fx.Interpreter):
    def __init__(self, graph: torch.fx.GraphModule, last: set[str]):
        super().__init__(graph)
        self.last = last

    def run_node(self, node: torch.fx.Node):
        if node.name in self.last and packet_of(node) is _UPSAMPLE:
            x, size, aligned, *_ = self.map_nodes_to_values(node.args, node)
            if size is not None and not aligned:
                return bilinear(x, *size)
        return super().run_node(node)


def _after_the_last_product(graph: torch.fx.Graph) -> set[torch.fx.Node]:
    """The nodes between the outputs and the nearest matrix products before them."""
    found: set[torch.fx.Node] = set()
    todo = list(graph.output_node().all_input_nodes)
    while todo:
        node = todo.pop()
        if node not in found and packet_of(node) not in PRODUCTS:
            found.add(node)
            todo += node.all_input_nodes
    return found
