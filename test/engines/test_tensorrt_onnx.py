"""TensorRT's bindings are called as they really are: every name and argument is held against TensorRT-RTX's own."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import subprocess
import sys
import textwrap
import types

import pytest
import torch
from build_with_tensorrt import WAYS, WHEELS

from dino_perception.engines import tensorrt, tensorrt_bindings, tensorrt_onnx
from dino_perception.engines.base import Program
from dino_perception.engines.tensorrt import TensorRt
from dino_perception.engines.tensorrt_onnx import ByOnnx

needs_bindings = pytest.mark.skipif(
    not (WHEELS / "tensorrt_rtx_bindings").is_dir(), reason=f"TensorRT-RTX is not in {WHEELS}: `make tensorrt-rtx`"
)
CALLED = {
    "Builder": {"create_network": 1, "create_builder_config": 0, "build_serialized_network": 2},
    "OnnxParser": {"parse_from_file": 1, "num_errors": None, "get_error": 1},
    "ParserError": {"desc": 0},
    "IBuilderConfig": {
        "set_memory_pool_limit": 2,
        "clear_flag": 1,
        "num_compute_capabilities": None,
        "set_compute_capability": 2,
        "builder_optimization_level": None,
        "create_timing_cache": 1,
        "set_timing_cache": 2,
        "get_timing_cache": 0,
    },
    "ITimingCache": {"serialize": 0},
    "Runtime": {"deserialize_cuda_engine": 1},
    "ICudaEngine": {"create_execution_context": 0, "get_tensor_shape": 1, "get_tensor_dtype": 1},
    "IExecutionContext": {"set_tensor_address": 2, "execute_async_v3": 1, "is_stream_capturable": 1},
}
"""What the engine calls: {class: {method: how many arguments it hands over, None for a property}}."""


def real_api() -> dict:
    """What the bindings have: {class: {name: signature}}, and the members of their enumerations."""
    script = f"""
        import sys, json
        sys.path.insert(0, {str(WHEELS)!r})
        import tensorrt_rtx_bindings as trt
        classes = {{c: {{n: getattr(trt, c).__dict__[n].__doc__ or "" for n in vars(getattr(trt, c))}} for c in {list(CALLED)}}}
        members = {{e: list(getattr(trt, e).__members__) for e in
            ("NetworkDefinitionCreationFlag", "BuilderFlag", "MemoryPoolType", "ComputeCapability", "DataType")}}
        print(json.dumps([classes, members, hasattr(trt.ILogger, "INTERNAL_ERROR"), hasattr(trt.ILogger, "ERROR")]))
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


@needs_bindings
def test_every_call_is_one_that_the_bindings_have():
    classes, members, *severities = real_api()
    for owner, calls in CALLED.items():
        for name, count in calls.items():
            assert name in classes[owner], f"{owner} has no {name}"
            if count is not None:
                signatures = [line for line in classes[owner][name].splitlines() if f"{name}(self: " in line]
                taken = [range(s.count(": ") - s.count(" = ") - 1, s.count(": ")) for s in signatures]
                assert any(count in counts for counts in taken), f"{owner}.{name} takes {signatures}"
    assert "STRONGLY_TYPED" in members["NetworkDefinitionCreationFlag"] and "TF32" in members["BuilderFlag"]
    assert "WORKSPACE" in members["MemoryPoolType"] and set(tensorrt_onnx.TORCH_TYPES) <= set(members["DataType"])
    assert all(severities)


def test_the_list_of_calls_is_what_the_source_calls():
    """Every attribute that the engine reads off an object of the bindings stands in the list above."""
    objects = {"builder", "network", "parser", "config", "engine", "context", "runtime"}
    read = set()
    for node in ast.walk(ast.parse(inspect.getsource(tensorrt_onnx))):
        if isinstance(node, ast.Attribute):
            owner = node.value.id if isinstance(node.value, ast.Name) else getattr(node.value, "attr", "")
            if owner in objects and not (isinstance(node.ctx, ast.Store) and node.attr in objects):
                read.add(node.attr)
    assert read and read <= {name for calls in CALLED.values() for name in calls}


def test_torch_tensorrt_comes_first_and_the_way_by_onnx_follows_at_each_precision(monkeypatch):
    runtime = TensorRt(tensorrt.Options(workspace=1 << 20))
    monkeypatch.setattr(runtime, "ladder", lambda: ("bfloat16", "float32"))
    found = lambda known: lambda name: name if name in known else None  # noqa: E731
    monkeypatch.setattr(tensorrt.importlib.util, "find_spec", found({"torch_tensorrt"}))
    ways = [(way.way, precision) for way, precision in runtime.rungs("auto")]
    assert ways == [(way, precision) for precision in ("bfloat16", "float32") for way in WAYS]
    monkeypatch.setattr(tensorrt.importlib.util, "find_spec", found(set()))
    (way, precision), *rest = runtime.rungs("float16")
    assert isinstance(way, ByOnnx) and precision == "float16" and not rest and way.options.workspace == 1 << 20


def test_what_bindings_there_are_and_what_they_run_on(monkeypatch):
    bindings = tensorrt_bindings
    there = {"tensorrt_rtx_bindings"}
    monkeypatch.setattr(bindings.importlib.util, "find_spec", lambda name: name if name in there else None)
    assert bindings.name() == "tensorrt_rtx_bindings"
    there.add("tensorrt")
    assert bindings.name() == "tensorrt"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert bindings.unfit() == ""
    there.remove("tensorrt")
    rtx = types.SimpleNamespace(ComputeCapability=types.SimpleNamespace(__members__={"SM89": 1, "SM120": 2}))
    monkeypatch.setattr(importlib, "import_module", lambda name: rtx)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    assert ByOnnx().unavailable() == "TensorRT-RTX does not run on a GPU of compute capability 9.0"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 9))
    assert TensorRt().unavailable() == ""
    there.clear()
    assert TensorRt().unavailable() == "neither tensorrt nor tensorrt_rtx is installed"


def test_an_engine_is_kept_with_the_types_that_its_module_gives():
    class Mask(torch.nn.Module):
        def forward(self, x):
            return x.round().to(torch.uint8), x * 2

    program = Program(Mask(), (torch.zeros(3),))
    types, engine = tensorrt_bindings.unpacked(memoryview(tensorrt_bindings.packed(memoryview(b"a\nb"), program)))
    assert types == [torch.uint8, torch.float32] and bytes(engine) == b"a\nb"
    x = torch.tensor([0.2, 3.0, 254.6])
    wide = tensorrt.typed(program, "float32").module()(x)
    assert [t.dtype for t in wide] == [torch.float32] * 2
    assert all(torch.equal(a, b) for a, b in zip(tensorrt_bindings.narrowed(wide, types), Mask()(x)))
