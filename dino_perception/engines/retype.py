"""Precision written into the graph: which operation computes in which type, as explicit casts.

TensorRT's networks are strongly typed, so the type of every layer must stand in the graph that is handed over; and a
graph that says it once runs the same in any runtime. The rule follows what is known to break DINO: matrix products and
convolutions take the low type; norms, softmax, reductions, rotary positions and the residual stream stay float32. In
float16 the attention scores stay float32 too, because trained DINO weights push them past 65504 (NaN).
"""

from __future__ import annotations

import math
import operator

import torch
from torch import nn

from dino_perception.engines.base import Program

LOW = {"bfloat16": torch.bfloat16, "float16": torch.float16}

_aten = torch.ops.aten
PRODUCTS = {
    _aten.linear,
    _aten.addmm,
    _aten.mm,
    _aten.bmm,
    _aten.baddbmm,
    _aten.matmul,
    _aten.einsum,
    _aten.conv2d,
    _aten.convolution,
    _aten.conv_transpose2d,
    _aten.scaled_dot_product_attention,
}
_FLOAT32 = {
    _aten.layer_norm,
    _aten.native_layer_norm,
    _aten.group_norm,
    _aten.batch_norm,
    _aten.softmax,
    _aten._softmax,
    _aten.log_softmax,
    _aten.exp,
    _aten.log,
    _aten.pow,
    _aten.rsqrt,
    _aten.reciprocal,
    _aten.sum,
    _aten.mean,
    _aten.var,
    _aten.cumsum,
    _aten.norm,
    _aten.linalg_vector_norm,
    _aten.div,
    _aten.upsample_bilinear2d,
    _aten.upsample_bicubic2d,
    _aten._upsample_bilinear2d_aa,
    _aten.sigmoid,
    _aten.softplus,
}


def retyped(program: Program, precision: str, *, wide_outputs: bool = False) -> torch.export.ExportedProgram:
    """The program's graph with `precision` ("bfloat16" or "float16") written into it; anything else leaves it as it
    is. Weights that only products read are stored in the low type. Inputs and outputs keep their types, except that
    8-bit inputs become float32: TensorRT does nothing with an 8-bit tensor, and casting outside costs one copy. With
    `wide_outputs` an 8-bit output is left as the float32 that the graph would cast last, for the same reason."""
    graph = program.exported.module()
    _fold(graph)
    if wide_outputs:
        _widen(graph)
    typed = Retyped(graph, LOW.get(precision))
    example = tuple(t.float() if t.dtype == torch.uint8 else t for t in program.example)
    with torch.no_grad():
        return torch.export.export(typed, example, strict=False)


class Retyped(nn.Module):
    """An exported graph that casts as it runs; tracing it gives the typed graph."""

    def __init__(self, graph: torch.fx.GraphModule, low: torch.dtype | None):
        super().__init__()
        self.typed, self.low = graph, low
        if low is not None:
            self._store_low()

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(_Typing(self.typed, self.low).run(*inputs))

    def _store_low(self) -> None:
        for node in self.typed.graph.find_nodes(op="get_attr"):
            users = list(node.users)
            if users and all(packet_of(user) in PRODUCTS for user in users):
                owner, _, leaf = str(node.target).rpartition(".")
                holder = self.typed.get_submodule(owner)
                tensor = getattr(holder, leaf).detach()
                if tensor.dtype == torch.float32:
                    delattr(holder, leaf)
                    holder.register_buffer(leaf, tensor.to(self.low))


class _Typing(torch.fx.Interpreter):
    def __init__(self, graph: torch.fx.GraphModule, low: torch.dtype | None):
        super().__init__(graph)
        self.low = low

    def run_node(self, node: torch.fx.Node):
        if node.op == "call_module" and "guards" in str(node.target):
            return None  # torch's checks of the input types, which are not the original ones any more
        return super().run_node(node)

    def call_function(self, target, args, kwargs):
        packet = getattr(target, "overloadpacket", None)
        if packet is _aten._assert_tensor_metadata:
            return None  # what the export noted of the original types
        if self.low is None or packet is None:
            return super().call_function(target, args, kwargs)
        if packet is _aten.scaled_dot_product_attention and self.low == torch.float16:
            return _attention(*args, **kwargs)
        types = {t.dtype for t in torch.utils._pytree.tree_leaves((args, kwargs)) if _is_float(t)}
        if packet in PRODUCTS:
            args, kwargs = _cast((args, kwargs), self.low)
        elif packet in _FLOAT32 or len(types) > 1:
            args, kwargs = _cast((args, kwargs), torch.float32)
        return super().call_function(target, args, kwargs)

    def output(self, target, args, kwargs):
        return _cast(super().output(target, args, kwargs), torch.float32)


def _attention(q, k, v, mask=None, dropout_p=0.0, is_causal=False, *, scale=None, enable_gqa=False):
    """softmax(q k^T) v over (B, heads, N, d), scores and softmax in float32, the second product in float16."""
    if mask is not None or is_causal or enable_gqa:
        raise NotImplementedError("float16 attention is written out for full attention only")
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    scores = torch.matmul(q.float() * scale, k.float().transpose(-2, -1))
    return torch.matmul(torch.softmax(scores, dim=-1).half(), v.half())


def _fold(graph: torch.fx.GraphModule) -> None:
    """Compute now what follows from weights alone, so that a weight that is turned before a product reads it is one."""
    known: dict[torch.fx.Node, torch.Tensor] = {}
    with torch.no_grad():
        for node in graph.graph.nodes:
            inputs = node.all_input_nodes
            if node.op == "get_attr" and isinstance(node.meta.get("val"), torch.Tensor):
                known[node] = operator.attrgetter(node.target)(graph)
            elif node.op == "call_function" and inputs and all(n in known for n in inputs) and packet_of(node):
                args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), known.get)
                value = node.target(*args, **kwargs)
                if isinstance(value, torch.Tensor):
                    known[node] = value
    for index, (node, value) in enumerate(known.items()):
        if node.op == "call_function" and any(user not in known for user in node.users):
            name = f"folded_{index}"
            graph.register_buffer(name, value.detach().contiguous())
            with graph.graph.inserting_before(node):
                constant = graph.graph.get_attr(name)
            constant.meta = dict(node.meta)
            node.replace_all_uses_with(constant)
    graph.graph.eliminate_dead_code()
    graph.recompile()


def _widen(graph: torch.fx.GraphModule) -> None:
    """Have each output that is a last cast to 8 bits be what was cast."""
    output = graph.graph.output_node()
    for cast in set(output.all_input_nodes):
        to_bytes = packet_of(cast) in (_aten.to, _aten._to_copy) and cast.meta["val"].dtype == torch.uint8
        if to_bytes and cast.args[0].meta["val"].dtype == torch.float32:
            output.replace_input_with(cast, cast.args[0])
    graph.graph.eliminate_dead_code()
    graph.recompile()


def packet_of(node: torch.fx.Node):
    """The ATen operation that a node calls, whichever its overload; None for other nodes."""
    return getattr(node.target, "overloadpacket", None)


def _is_float(value) -> bool:
    return isinstance(value, torch.Tensor) and value.dtype.is_floating_point


def _cast(tree, dtype: torch.dtype):
    return torch.utils._pytree.tree_map(lambda t: t.to(dtype) if _is_float(t) and t.dtype != dtype else t, tree)
