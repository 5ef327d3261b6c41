"""The CUDA engine. What needs no GPU, the typed graph through torch's ahead-of-time compiler, is tested on the CPU."""

from __future__ import annotations

import shutil

import pytest
import torch
from on_cpu import CompiledOnCpu, CompiledThatDies
from torch import nn

from dino_perception import engines
from dino_perception.engines import cuda, ladder
from dino_perception.engines.base import Program
from dino_perception.engines.cuda import CudaGraphs

needs_gpu = pytest.mark.skipif(bool(CudaGraphs().unavailable()), reason=f"cuda: {CudaGraphs().unavailable()}")


class Small(nn.Module):
    meanings = ("features",)

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 8)
        self.norm = nn.LayerNorm(8)

    def forward(self, pixels):
        x = pixels.permute(0, 3, 1, 2).float() / 255
        return (self.norm(self.linear(x.permute(0, 2, 3, 1))).permute(0, 3, 1, 2),)


@pytest.mark.skipif(not shutil.which("g++"), reason="torch's ahead-of-time compiler needs g++ for the CPU")
def test_the_package_that_is_cached_runs_without_the_module(monkeypatch):
    monkeypatch.setattr(CudaGraphs, "device", lambda self: torch.device("cpu"))
    monkeypatch.setattr(cuda, "INDUCTOR", {})  # the search for the fastest kernel takes half a minute
    torch.manual_seed(0)
    module = Small().eval()
    pixels = torch.randint(0, 256, (1, 4, 6, 3), dtype=torch.uint8)
    blob = CudaGraphs().build(Program(module, (pixels,)), "bfloat16", 0)
    made = {}
    monkeypatch.setattr(cuda, "CudaGraphsCompiled", lambda model, *rest: made.update(model=model))
    CudaGraphs().load(memoryview(blob), (pixels,), "bfloat16", 0)
    with torch.inference_mode():
        (got,), (wanted,) = made["model"](pixels.float()), module(pixels)
    assert got.dtype == torch.float32 and torch.cosine_similarity(got, wanted, dim=1).min() > 0.999


def take(engine, monkeypatch, folder, module, pixels, said):
    monkeypatch.setattr(ladder, "ENGINES", {"cuda": engine})
    return engines.build(module, (pixels,), engine="cuda", cache=folder, name="small", report=said.append)


@pytest.mark.skipif(not shutil.which("g++"), reason="inductor needs g++ for the CPU")
def test_it_is_compiled_and_first_run_in_another_process_and_loaded_here(monkeypatch, tmp_path):
    torch.manual_seed(0)
    module, said = Small().eval(), []
    pixels = torch.randint(0, 256, (1, 4, 6, 3), dtype=torch.uint8)
    built = take(CompiledOnCpu(), monkeypatch, tmp_path, module, pixels, said)
    assert (built.info.way, built.info.precision, built.info.from_cache) == ("compiled", "bfloat16", False)
    assert built.info.parity["outputs"][0]["cosine_mean"] > 0.999
    again = take(CompiledOnCpu(), monkeypatch, tmp_path, module, pixels, said)
    assert again.info.from_cache and torch.equal(built(pixels)[0], again(pixels)[0])
    with torch.inference_mode():
        assert torch.cosine_similarity(again(255 - pixels)[0], module(255 - pixels)[0], dim=1).min() > 0.99


def test_where_the_compiled_graph_kills_its_process_the_captured_one_runs(monkeypatch, tmp_path, vit, frame):
    said = []
    built = take(CompiledThatDies(), monkeypatch, tmp_path, vit, frame, said)
    assert (built.info.way, built.info.precision) == ("captured", "bfloat16")
    assert any("cuda bfloat16 compiled: its process died of SIGSEGV while loading it" in line for line in said)
    said.clear()
    again = take(CompiledThatDies(), monkeypatch, tmp_path, vit, frame, said)
    assert again.info.way == "captured" and again.info.from_cache
    assert all(torch.equal(a, b) for a, b in zip(built(frame), again(frame)))


def test_a_gpu_always_gets_an_engine(monkeypatch):
    monkeypatch.setattr(CudaGraphs, "ladder", lambda self: self.precisions)
    labels = [way.label(precision) for way, precision in CudaGraphs().rungs("auto")]
    assert labels == [
        "cuda bfloat16 compiled", "cuda bfloat16 captured", "cuda float16 compiled", "cuda float16 captured",
        "cuda float32 compiled", "cuda float32 captured", "cuda bfloat16 eager", "cuda float16 eager",
        "cuda float32 eager",
    ]  # fmt: skip
    assert [way.label(each) for way, each in CudaGraphs().rungs("float16")] == [
        "cuda float16 compiled", "cuda float16 captured", "cuda float16 eager",
    ]  # fmt: skip


def test_a_build_does_not_search_unless_it_is_asked_to():
    from torch._inductor import config

    assert not cuda.INDUCTOR.get("max_autotune") and cuda.SEARCH["max_autotune"]
    assert all(hasattr(config, name) for name in {**cuda.INDUCTOR, **cuda.SEARCH})
    assert cuda.INDUCTOR["compile_threads"] > 0 and CudaGraphs().limit_s < CudaGraphs(search=True).limit_s


def test_static_inputs_take_pixels_as_floats():
    pixels, features = torch.zeros(1, 4, 6, 3, dtype=torch.uint8), torch.zeros(1, 8, 2, 3)
    buffers = cuda.static_inputs((pixels, features), torch.device("cpu"))
    assert [b.dtype for b in buffers] == [torch.float32, torch.float32]
    buffers[0].copy_(pixels + 200)
    assert float(buffers[0][0, 0, 0, 0]) == 200.0


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("precision", CudaGraphs.precisions)
@pytest.mark.parametrize("graph", ["vit", "convnext"])
def test_it_passes_the_gate_and_replays_new_inputs(graph, precision, request, tmp_path, frame):
    graph = request.getfixturevalue(graph)
    built = engines.build(graph, (frame,), engine="cuda", precision=precision, cache=tmp_path)
    assert built.device.type == "cuda" and built.info.parity
    first = [t.clone() for t in built(frame)]
    second = [t.clone() for t in built(255 - frame)]
    again = built(frame)
    assert not torch.equal(first[0], second[0])
    assert all(torch.equal(a, b) for a, b in zip(first, again))
    if CudaGraphs().saves:
        assert engines.build(graph, (frame,), engine="cuda", precision=precision, cache=tmp_path).info.from_cache


@pytest.mark.gpu
@needs_gpu
def test_heads_read_the_backbones_output_on_the_device(vit, frame, tmp_path):
    body = engines.build(vit, (frame,), engine="cuda", cache=tmp_path)
    features = body(frame)
    assert all(t.device.type == "cuda" for t in features)
