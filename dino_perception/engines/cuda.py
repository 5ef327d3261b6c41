"""Engine `cuda`: torch on any NVIDIA GPU, in three ways, so that a GPU always gets an engine.

*compiled*: the typed graph is compiled by torch's inductor and kept as a `CompiledArtifact`, the form in which vLLM
keeps what it compiles (torch 2.8 and later). Its kernels are Triton's, its host code is Python: nothing is linked, so
what is wrong with it is an exception, where a package of the ahead-of-time inductor ends the process that loads it. The
host code costs nothing here, because a CUDA graph over static buffers replays the kernels without it.
*captured*: the typed graph as it is, captured as a CUDA graph: more memory traffic, but nothing is generated.
*eager*: the typed graph as it is, launched kernel by kernel.
"""

from __future__ import annotations

import importlib.util
import io
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from dino_perception.engines import placement, retype
from dino_perception.engines.base import Compiled, Engine, EngineError, EngineInfo, Program

INDUCTOR: dict[str, Any] = {"compile_threads": len(os.sched_getaffinity(0))}
"""How inductor compiles unless told to search: kernels side by side, each in the form that its rules choose."""

SEARCH = {"max_autotune": True, "coordinate_descent_tuning": True}
"""Time several kernels for each product and several shapes of each kernel, and take the fastest: minutes a graph."""

WARM_UP = 3
"""Runs before the capture: libraries allocate and choose kernels on first use, which a capture does not allow."""


class CudaGraphs(Engine):
    name = "cuda"
    precisions = ("bfloat16", "float16", "float32")
    helpers = (retype, placement)
    way = "compiled"
    isolated = True

    def __init__(self, search: bool = False):
        self.search = search
        """Whether a build takes the time to search for the fastest kernels. It makes no engine wrong and is no part of
        the key, so a search is for a rebuild."""

    @property
    def limit_s(self) -> float:
        return 7200.0 if self.search else 900.0

    def unavailable(self) -> str:
        return "" if torch.cuda.is_available() else "torch finds no NVIDIA GPU"

    def device(self) -> torch.device:
        return torch.device("cuda", torch.cuda.current_device())

    def ladder(self) -> tuple[str, ...]:
        return self.precisions if torch.cuda.is_bf16_supported(including_emulation=False) else self.precisions[1:]

    def rungs(self, precision: str) -> list[tuple[Engine, str]]:
        chosen = self.ladder() if precision == "auto" else (precision,)
        fast: list[tuple[Engine, str]] = [(way, each) for each in chosen for way in (self, Captured())]
        return fast + [(Uncaptured(), each) for each in chosen]

    def identity(self) -> dict[str, str]:
        return gpu_identity()

    def build(self, program: Program, precision: str, threads: int) -> bytes:
        if self.device().type == "cuda" and importlib.util.find_spec("triton") is None:
            raise EngineError("Triton is not installed, and inductor compiles for a GPU with it alone")
        from torch._inductor import standalone_compile  # seconds to import, and only a build needs it

        exported = typed_on(program, precision, self.device())
        weights = _weights(exported)
        inputs = static_inputs(program.example, self.device())
        options = {"config_patches": {**INDUCTOR, **(SEARCH if self.search else {})}}
        with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
            artifact = standalone_compile(exported.graph_module, [*weights, *inputs], options=options)
            path = Path(folder, "artifact")
            artifact.save(path=str(path), format="binary")
            code = torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8)
        blob = io.BytesIO()
        torch.save({"code": code, "weights": [weight.cpu() for weight in weights]}, blob)
        return blob.getvalue()

    def load(self, blob: memoryview, example: Sequence[torch.Tensor], precision: str, threads: int) -> Compiled:
        from torch._inductor import CompiledArtifact

        found = torch.load(io.BytesIO(blob), weights_only=True)
        weights = [weight.to(self.device()) for weight in found["weights"]]
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "artifact")
            path.write_bytes(found["code"].numpy().data)
            code = CompiledArtifact.load(path=str(path), format="binary")
        return CudaGraphsCompiled(lambda *inputs: tuple(code(*weights, *inputs)), example, precision, self.device())


class Captured(CudaGraphs):
    """The typed graph, not compiled, as a CUDA graph."""

    way = "captured"
    capture = True

    def build(self, program: Program, precision: str, threads: int) -> bytes:
        blob = io.BytesIO()
        torch.export.save(typed_on(program, precision, torch.device("cpu")), blob)
        return blob.getvalue()

    def load(self, blob: memoryview, example: Sequence[torch.Tensor], precision: str, threads: int) -> Compiled:
        exported = placement.placed(torch.export.load(io.BytesIO(blob)), self.device())
        return CudaGraphsCompiled(exported.module(), example, precision, self.device(), self.capture)


class Uncaptured(Captured):
    """The typed graph, run operation by operation."""

    way = "eager"
    capture = False


class CudaGraphsCompiled(Compiled):
    """`model` over static buffers on `device`; as one CUDA graph where it is a GPU, unless `capture` is False."""

    def __init__(
        self,
        model: Callable,
        example: Sequence[torch.Tensor],
        precision: str,
        device: torch.device,
        capture: bool = True,
    ):
        super().__init__(example)
        self.device, self.model = device, model  # the model owns the weights that a graph reads
        on_gpu = device.type == "cuda"
        self.info = EngineInfo("cuda", precision, torch.cuda.get_device_name(device) if on_gpu else device.type)
        self.buffers = static_inputs(example, device)
        self.graph = self._captured() if on_gpu and capture else None

    @torch.inference_mode()
    def _captured(self) -> torch.cuda.CUDAGraph:
        stream = torch.cuda.Stream(self.device)
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                self.model(*self.buffers)
        torch.cuda.current_stream(self.device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.outputs = tuple(self.model(*self.buffers))
        return graph

    @torch.inference_mode()
    def run(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        for buffer, tensor in zip(self.buffers, inputs):
            buffer.copy_(tensor, non_blocking=True)
        if self.graph is None:
            return tuple(self.model(*self.buffers))
        self.graph.replay()
        return self.outputs

    def close(self) -> None:
        self.graph = self.outputs = self.buffers = self.model = None


def typed_on(program: Program, precision: str, device: torch.device) -> torch.export.ExportedProgram:
    """The program with its precision written in, its weights on `device`; the caller's module is left where it is.
    Raises EngineError when a part of it did not move."""
    return placement.placed(retype.retyped(program, precision), device, program.name)


def _weights(exported: torch.export.ExportedProgram) -> list[torch.Tensor]:
    """What the graph takes before the caller's inputs, in its order: parameters, buffers and constants."""
    known = {**exported.constants, **exported.state_dict}
    return [known[spec.target].detach() for spec in exported.graph_signature.input_specs if spec.target is not None]


def static_inputs(example: Sequence[torch.Tensor], device: torch.device) -> list[torch.Tensor]:
    """Zeros on `device` for a typed graph's inputs: copying 8-bit pixels into their buffer is what casts them."""
    return [
        torch.zeros(t.shape, dtype=torch.float32 if t.dtype == torch.uint8 else t.dtype, device=device) for t in example
    ]


def gpu_identity() -> dict[str, str]:
    """What GPU engines depend on: torch, CUDA, driver, device name and its compute capability."""
    name = torch.cuda.get_device_name()
    capability = ".".join(map(str, torch.cuda.get_device_capability()))
    return {
        "torch": torch.__version__,
        "cuda": str(torch.version.cuda),
        "gpu": name,
        "capability": capability,
        "driver": _driver(),
    }


def _driver() -> str:
    for path in ("/proc/driver/nvidia/version", "/sys/module/nvidia/version", "/etc/nv_tegra_release"):
        try:
            return Path(path).read_text().splitlines()[0]
        except (OSError, IndexError):
            continue
    return "unknown"
