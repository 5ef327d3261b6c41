"""Torch-TensorRT is called as it really is: its signatures are read from its wheels, and run where there is a GPU."""

from __future__ import annotations

import ast
import inspect
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from dino_perception import engines
from dino_perception.engines import tensorrt
from dino_perception.engines.base import EngineError
from dino_perception.engines.tensorrt import Options, TensorRt, checked, compile_options

SIGNATURES = json.loads(Path(__file__).with_name("torch_tensorrt_signatures.json").read_text())
"""{version: {function: its argument names}}, read from the wheels by `arguments_of` below."""

needs_tensorrt = pytest.mark.skipif(bool(TensorRt().unavailable()), reason=f"tensorrt: {TensorRt().unavailable()}")


def options(precision="bfloat16", scratch=Path("/cache")) -> dict:
    return compile_options(Options(), precision, torch.device("cuda", 0), scratch)


def like(names: list[str]):
    """A function that takes these arguments and, as torch_tensorrt's does, swallows any other."""

    def function(**kwargs): ...

    parameters = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in names]
    function.__signature__ = inspect.Signature(
        [*parameters, inspect.Parameter("kwargs", inspect.Parameter.VAR_KEYWORD)]
    )
    return function


@pytest.mark.parametrize("version", SIGNATURES)
@pytest.mark.parametrize("precision", TensorRt.precisions)
def test_every_option_is_an_argument_of_that_version(version, precision):
    taken = checked(like(SIGNATURES[version]["dynamo.compile"]), options(precision))
    assert set(options(precision)) - set(taken) <= tensorrt.NOT_EVERYWHERE
    assert ("attn_bias_is_causal" in taken) == (tuple(map(int, version.split("."))) >= (2, 12))
    assert ("use_explicit_typing" in taken) == (tuple(map(int, version.split("."))) < (2, 13))
    assert {"workspace_size", "timing_cache_path", "disable_tf32", "device"} <= set(taken)


@pytest.mark.parametrize("version", SIGNATURES)
def test_every_call_in_the_engine_names_real_arguments(version):
    """Reads the engine's own source: each keyword it hands to torch_tensorrt stands in the wheel's signature."""
    calls = {}
    for node in ast.walk(ast.parse(inspect.getsource(tensorrt))):
        name = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
        if name.startswith("torch_tensorrt.") and "(" not in name:
            calls[name.removeprefix("torch_tensorrt.")] = node
    assert set(calls) == {"dynamo.compile", "save", "load"}
    for name, call in calls.items():
        names = SIGNATURES[version][name]
        assert len(call.args) <= len(names)
        assert {keyword.arg for keyword in call.keywords if keyword.arg} <= set(names), name
    first_two = {
        "dynamo.compile": ["exported_program", "inputs"],
        "save": ["module", "file_path"],
        "load": ["file_path"],
    }
    for name, positional in first_two.items():
        assert SIGNATURES[version][name][: len(positional)] == positional


def test_an_option_that_a_version_lacks_is_an_error_and_not_swallowed(monkeypatch):
    monkeypatch.setattr(tensorrt.importlib.metadata, "version", lambda package: "1.4.0")
    names = [name for name in SIGNATURES["2.13.0"]["dynamo.compile"] if name != "timing_cache_path"]
    with pytest.raises(EngineError, match="torch_tensorrt 1.4.0 does not take timing_cache_path"):
        checked(like(names), options())


def test_precision_decides_what_tensorrt_may_round():
    assert options("float32")["disable_tf32"] and not options("tensorfloat32")["disable_tf32"]
    assert options("float16")["use_fp32_acc"] and not options("bfloat16")["use_fp32_acc"]
    assert "timing_cache_path" not in options(scratch=None)
    limited = compile_options(Options(workspace=1 << 30, optimization_level=5), "bfloat16", torch.device("cpu"), None)
    assert (limited["workspace_size"], limited["optimization_level"]) == (1 << 30, 5)


def arguments_of(wheel: Path) -> dict[str, list[str]]:
    """Argument names of the functions the engine calls, read from a wheel without importing it."""
    found = {}
    with zipfile.ZipFile(wheel) as archive:
        for file, prefix, wanted in (
            ("torch_tensorrt/dynamo/_compiler.py", "dynamo.", ("compile",)),
            ("torch_tensorrt/_compile.py", "", ("save", "load")),
        ):
            for node in ast.parse(archive.read(file)).body:
                if isinstance(node, ast.FunctionDef) and node.name in wanted:
                    a = node.args
                    found[prefix + node.name] = [arg.arg for arg in a.posonlyargs + a.args + a.kwonlyargs]
    return found


def test_the_table_is_what_the_wheel_says(tmp_path):
    version = list(SIGNATURES)[-1]
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--only-binary=:all:",
        "--dest",
        str(tmp_path),
        "--timeout",
        "5",
        "--retries",
        "0",
        "--python-version",
        "3.11",
        "--platform",
        "manylinux_2_28_x86_64",
        f"torch-tensorrt=={version}",
    ]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except subprocess.TimeoutExpired:
        pytest.skip(f"the wheel of torch-tensorrt {version} did not come within a minute")
    if answer.returncode:
        why = answer.stderr.strip().splitlines()[-1]
        pytest.skip(f"the wheel of torch-tensorrt {version} cannot be had here: {why}")
    assert arguments_of(next(tmp_path.glob("*.whl"))) == SIGNATURES[version]


def test_without_the_package_it_says_what_is_missing(monkeypatch):
    monkeypatch.setattr(tensorrt.importlib.util, "find_spec", lambda name: None)
    assert TensorRt().unavailable() == "neither tensorrt nor tensorrt_rtx is installed"


@pytest.mark.gpu
@pytest.mark.tensorrt
@needs_tensorrt
@pytest.mark.parametrize("precision", TensorRt.precisions)
@pytest.mark.parametrize("graph", ["vit", "convnext"])
def test_it_passes_the_gate_and_loads_from_its_cache(graph, precision, request, tmp_path, frame):
    graph = request.getfixturevalue(graph)
    options = dict(engine="tensorrt", precision=precision, cache=tmp_path)
    built = engines.build(graph, (frame,), **options)
    assert built.device.type == "cuda" and not built.info.from_cache
    wanted = [t.clone() for t in built(frame)]
    loaded = engines.build(graph, (frame,), **options)
    assert loaded.info.from_cache and all(torch.equal(a, b) for a, b in zip(loaded(frame), wanted))
