"""What is exported is a static graph of operators that TensorRT knows."""

from __future__ import annotations

import ast
import importlib.util
import operator
import os
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from dino_perception.models import catalog, reference
from dino_perception.models.checkpoints import untrained
from dino_perception.models.heads import create_head

LISTED = Path(__file__).with_name("torch_tensorrt_operators.txt")
COVERED = {line.strip() for line in LISTED.read_text().splitlines() if line.strip() and not line.startswith("#")}
# A tuple's element, and an assertion on types that Torch-TensorRT removes before it converts.
HARMLESS = {operator.getitem, torch.ops.aten._assert_tensor_metadata.default}


def covered(target) -> bool:
    name = str(target)
    return name in COVERED or (name.endswith(".default") and name[: -len(".default")] in COVERED)


def operators(module: nn.Module, example: tuple[torch.Tensor, ...]) -> set:
    """The operators of the exported graph, decomposed into core ones except where TensorRT takes an operator whole."""
    program = torch.export.export(module, example, strict=False)
    table = torch.export.default_decompositions()
    for op in [op for op in table if covered(op)]:
        table.pop(op)
    graph = program.run_decompositions(table).graph_module
    assert not any(isinstance(child, torch.fx.GraphModule) for child in graph.children()), "the graph branches"
    for node in graph.graph.nodes:
        for value in node.meta["val"] if isinstance(node.meta.get("val"), (tuple, list)) else [node.meta.get("val")]:
            if isinstance(value, torch.Tensor):
                assert all(isinstance(side, int) for side in value.shape), f"{node} has a shape that depends on data"
    return {node.target for node in graph.graph.nodes if node.op == "call_function"}


def graphs() -> dict[str, catalog.BackboneSpec]:
    """One backbone for each graph there is: width, depth and grid change no operator, so they are made small."""
    found = {}
    for spec in map(catalog.get, catalog.all_ids()):
        if not spec.convolutional:
            spec = replace(spec, dims=(128,), depths=(1,), heads=2, hidden=256, taps=(0,))
        kind = (spec.family, spec.gated, spec.patch, spec.registers, spec.qkv_bias, spec.offset, spec.antialias)
        found.setdefault(kind, reference.shortened(spec, 1))
    return {spec.id: spec for spec in found.values()}


@pytest.mark.parametrize("spec", graphs().values(), ids=graphs())
def test_every_backbone_exports_to_operators_of_tensorrt(spec: catalog.BackboneSpec) -> None:
    backbone = untrained(spec)
    graph = backbone.at(
        6 * spec.stride, 8 * spec.stride, spec.taps, extras=("cls", "registers") if spec.registers else ("cls",)
    )
    found = operators(graph, (graph.example(2),))
    assert {str(op) for op in found - HARMLESS if not covered(op)} == set()
    if not spec.convolutional:
        assert torch.ops.aten.scaled_dot_product_attention.default in found
    assert not any("sin" in str(op) or "cos" in str(op) or "tile" in str(op) or "repeat" in str(op) for op in found)


@pytest.mark.parametrize(
    "kind, arch",
    [
        ("segmentation", "light"),
        ("segmentation", "fine"),
        ("segmentation", "linear"),
        ("depth", "light"),
        ("depth", "fine"),
        ("depth", "linear"),
        ("correspondences", "cosine"),
        ("detection", "fcos"),
    ],
)
@pytest.mark.parametrize("backbone_id", ["rover-tiny", "dinov3-convnext-tiny"])
def test_every_head_exports_to_operators_of_tensorrt(backbone_id: str, kind: str, arch: str) -> None:
    backbone = untrained(catalog.get(backbone_id))
    head = create_head(kind, backbone, arch)
    graph = backbone.at(96, 160, head.spec.taps)
    found = operators(head.at(48, 80), graph(graph.example(2)))
    assert {str(op) for op in found - HARMLESS if not covered(op)} == set()


def test_an_operator_that_tensorrt_lacks_is_noticed() -> None:
    class Unknown(nn.Module):
        def forward(self, x):
            return torch.special.i0(x)

    assert not all(covered(op) for op in operators(Unknown(), (torch.ones(2),)) - HARMLESS)


def test_the_exported_graph_computes_the_same() -> None:
    backbone = untrained(catalog.get("rover-tiny"))
    graph = backbone.at(96, 160, backbone.spec.taps)
    pixels = torch.randint(0, 256, (1, 96, 160, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    exported = torch.export.export(graph, (pixels,)).module()
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(exported(pixels), graph(pixels)))


def test_the_list_is_what_the_wheel_registers() -> None:
    """Runs with torch_tensorrt installed, or with TORCH_TENSORRT naming its wheel, which needs nothing else."""
    sources = _sources()
    if not sources:
        pytest.skip("torch_tensorrt is not installed and TORCH_TENSORRT names no wheel")
    targets = set()
    for source in sources:
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "dynamo_tensorrt_converter":
                target = ast.unparse(
                    node.args[0] if node.args else next(k.value for k in node.keywords if k.arg == "key")
                )
                if target.startswith("torch.ops.aten."):
                    targets.add(target.removeprefix("torch.ops."))
    assert targets == COVERED


def _sources() -> list[str]:
    if wheel := os.environ.get("TORCH_TENSORRT"):
        with zipfile.ZipFile(wheel) as file:
            return [
                file.read(n).decode()
                for n in file.namelist()
                if n.startswith("torch_tensorrt/dynamo/") and n.endswith(".py")
            ]
    spec = importlib.util.find_spec("torch_tensorrt")
    return [p.read_text() for p in (Path(spec.origin).parent / "dynamo").rglob("*.py")] if spec else []
