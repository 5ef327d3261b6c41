"""Engine `cuda`: torch, compiled ahead of time and replayed as one CUDA graph, for any NVIDIA GPU.

The typed graph is compiled by torch's ahead-of-time inductor into a package that another process loads without
compiling again. A CUDA graph over static buffers then takes the hundreds of kernel launches of a pass off the CPU,
which on a rover's computer costs more than the kernels. Without Triton nothing can be compiled; the typed graph is then
captured as it is, which still saves the launches.
"""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from dino_perception.engines import placement, retype
from dino_perception.engines.base import Compiled, Engine, EngineInfo, Program

INDUCTOR = {"max_autotune": True}
"""Time several kernels for each product and take the fastest."""

WARM_UP = 3
"""Runs before the capture: libraries allocate and choose kernels on first use, which a capture does not allow."""


class CudaGraphs(Engine):
    name = "cuda"
    precisions = ("bfloat16", "float16", "float32")
    helpers = (retype, placement)

    @property
    def saves(self) -> bool:
        return importlib.util.find_spec("triton") is not None

    def unavailable(self) -> str:
        return "" if torch.cuda.is_available() else "torch finds no NVIDIA GPU"

    def device(self) -> torch.device:
        return torch.device("cuda", torch.cuda.current_device())

    def ladder(self) -> tuple[str, ...]:
        return self.precisions if torch.cuda.is_bf16_supported(including_emulation=False) else self.precisions[1:]

    def identity(self) -> dict[str, str]:
        return gpu_identity()

    def build(self, program: Program, precision: str, threads: int) -> bytes:
        from torch._inductor import aoti_compile_and_package  # seconds to import, and only a build needs it

        with tempfile.TemporaryDirectory() as folder:
            path = str(Path(folder, "engine.pt2"))
            aoti_compile_and_package(
                typed_on(program, precision, self.device()), package_path=path, inductor_configs=INDUCTOR
            )
            return Path(path).read_bytes()

    def load(self, blob: memoryview, example: Sequence[torch.Tensor], precision: str, threads: int) -> Compiled:
        from torch._inductor import aoti_load_package

        with tempfile.TemporaryDirectory() as folder:  # the package is unpacked on load; the file is not used again
            path = Path(folder, "engine.pt2")
            path.write_bytes(blob)
            model = aoti_load_package(str(path), run_single_threaded=True)
        return CudaGraphsCompiled(model, example, precision, self.device())

    def compile(self, program: Program, precision: str, threads: int) -> Compiled:
        if self.saves:
            return super().compile(program, precision, threads)
        model = typed_on(program, precision, self.device()).module()
        return CudaGraphsCompiled(model, program.example, precision, self.device())


class CudaGraphsCompiled(Compiled):
    def __init__(self, model: Callable, example: Sequence[torch.Tensor], precision: str, device: torch.device):
        super().__init__(example)
        self.device = device
        self.info = EngineInfo("cuda", precision, torch.cuda.get_device_name(device))
        self.buffers = static_inputs(example, device)
        stream = torch.cuda.Stream(device)
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.inference_mode():
            with torch.cuda.stream(stream):
                for _ in range(WARM_UP):
                    model(*self.buffers)
            torch.cuda.current_stream(device).wait_stream(stream)
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                self.outputs = tuple(model(*self.buffers))
        self.model = model  # owns the weights that the graph reads

    @torch.inference_mode()
    def run(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        for buffer, tensor in zip(self.buffers, inputs):
            buffer.copy_(tensor, non_blocking=True)
        self.graph.replay()
        return self.outputs

    def close(self) -> None:
        self.graph = self.outputs = self.buffers = self.model = None


def typed_on(program: Program, precision: str, device: torch.device) -> torch.export.ExportedProgram:
    """The program with its precision written in, its weights on `device`; the caller's module is left where it is.
    Raises EngineError when a part of it did not move."""
    return placement.placed(retype.retyped(program, precision), device, program.name)


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
