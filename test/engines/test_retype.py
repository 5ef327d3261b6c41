"""The typed graph: products in the low type, what is delicate in float32, float16 attention that cannot overflow."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dino_perception.engines.base import Program
from dino_perception.engines.parity import Gate, compare
from dino_perception.engines.retype import retyped

LOW = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def operations(exported):
    """(name of the operation, types of the float tensors it reads) of every call in the graph."""
    for node in exported.graph.nodes:
        if node.op == "call_function" and hasattr(node.target, "overloadpacket"):
            values = [n.meta["val"] for n in node.all_input_nodes]
            types = {v.dtype for v in values if isinstance(v, torch.Tensor) and v.is_floating_point()}
            yield node.target.overloadpacket.__name__, types


@pytest.fixture(scope="module", params=["bfloat16", "float16"])
def typed(request, vit):
    return request.param, retyped(Program(vit, (vit.example(),)), request.param)


def test_it_passes_the_gate_on_a_cpu(typed, vit, frame):
    _, exported = typed
    with torch.inference_mode():
        got, wanted = exported.module()(frame.float()), vit(frame)
    record = {"outputs": [compare("features", w, g) for w, g in zip(wanted, got)]}
    assert not Gate().failures(record), record
    assert record["outputs"][0]["cosine_mean"] < 1 - 1e-9, "nothing was computed in the low type"


def test_products_are_low_and_norms_are_float32(typed):
    precision, exported = typed
    seen = set()
    for name, types in operations(exported):
        seen.add(name)
        if name in ("linear", "conv2d", "scaled_dot_product_attention"):
            assert types == {LOW[precision]}, name
        if name in ("layer_norm", "softmax"):
            assert types == {torch.float32}, name
        if name != "_assert_tensor_metadata" and "to" not in name:
            assert len(types) <= 1, f"{name} mixes {types}, which a strongly typed network does not do by itself"
    assert {"linear", "layer_norm", "conv2d"} <= seen
    assert ("softmax" in seen) == (precision == "float16"), "float16 attention is written out, bfloat16's stays fused"


def test_weights_of_products_are_stored_low(typed, vit):
    precision, exported = typed
    full = sum(p.numel() * 4 for p in vit.parameters())
    stored = sum(t.numel() * t.element_size() for t in {**exported.state_dict, **exported.constants}.values())
    assert stored < 0.6 * full


def test_float32_leaves_the_graph_as_it_is(vit, frame):
    exported = retyped(Program(vit, (vit.example(),)), "float32")
    with torch.inference_mode():
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(exported.module()(frame.float()), vit(frame)))


def test_a_softmax_behind_a_product_is_float32():
    class Bins(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 8)

        def forward(self, x):
            return (torch.softmax(self.linear(x), dim=-1).sum(dim=-1),)

    types = dict(operations(retyped(Program(Bins().eval(), (torch.randn(2, 4),)), "bfloat16")))
    assert types["linear"] == {torch.bfloat16} and types["softmax"] == types["sum"] == {torch.float32}


class Attention(nn.Module):
    """One head whose scores reach about 10^5, as trained DINO weights do, before the scale makes them 10^4."""

    def forward(self, q, k, v):
        return (torch.nn.functional.scaled_dot_product_attention(q, k, v),)


def test_float16_attention_survives_scores_that_overflow():
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 1, 32, 64, generator=generator) for _ in range(3))
    q, k = 120 * q, 120 * k
    plain = torch.matmul(q.half(), k.half().transpose(-2, -1))
    assert not torch.isfinite(plain).all(), "this input does not overflow float16, so it proves nothing"
    typed = retyped(Program(Attention(), (q, k, v)), "float16").module()
    got, wanted = typed(q, k, v)[0], Attention()(q, k, v)[0]
    assert torch.isfinite(got).all() and torch.allclose(got, wanted, atol=2e-3)


def test_outputs_keep_their_types_and_class_ids_survive():
    from dino_perception.models.checkpoints import load_backbone
    from dino_perception.models.heads.base import load_head

    head = load_head("segmentation", load_backbone("rover-tiny"))
    graph = head.at(16, 24)
    generator = torch.Generator().manual_seed(1)
    example = tuple(torch.randn(1, c, 4, 6, generator=generator) for c in head.spec.channels)
    with torch.inference_mode():
        wanted = graph(*example)
        got = retyped(Program(graph, example), "bfloat16").module()(*example)
    assert [t.dtype for t in got] == [t.dtype for t in wanted] == [torch.uint8, torch.uint8]
    assert (got[0] == wanted[0]).float().mean() > 0.95
