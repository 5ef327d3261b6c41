"""The CUDA engine. What needs no GPU, the typed graph through torch's ahead-of-time compiler, is tested on the CPU."""

from __future__ import annotations

import shutil

import pytest
import torch
from torch import nn

from dino_perception import engines
from dino_perception.engines import cuda
from dino_perception.engines.base import Program
from dino_perception.engines.cuda import CudaGraphs

needs_gpu = pytest.mark.skipif(bool(CudaGraphs().unavailable()), reason=f"cuda: {CudaGraphs().unavailable()}")


class Small(nn.Module):
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
