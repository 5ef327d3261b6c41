"""Engine `openvino`: the fastest way over a CPU; bfloat16 where the processor is faster in it.

Inputs and outputs are shared, not copied: the engine reads the caller's memory and its own output buffers come back
as torch tensors over the same bytes, which is why they are valid only until the next call.
"""

from __future__ import annotations

import functools
import importlib.util
import sys
import warnings
from collections.abc import Sequence

import torch

from dino_perception.engines import exact_upsampling, retype
from dino_perception.engines.base import Compiled, Engine, EngineInfo, Program
from dino_perception.engines.cpu_bfloat16 import bfloat16_pays

_HINTS = {"bfloat16": "bf16", "float32": "f32"}


@functools.cache
def core():
    # Unless told otherwise, importing openvino forks a process that reports to its makers. A rover's node does neither.
    sys.modules.setdefault("openvino_telemetry", None)
    import openvino

    return openvino.Core()


class OpenVino(Engine):
    name = "openvino"
    precisions = ("bfloat16", "float32")
    helpers = (retype, exact_upsampling)

    def unavailable(self) -> str:
        if importlib.util.find_spec("openvino") is None:
            return "openvino is not installed (pip install openvino)"
        return "" if "CPU" in core().available_devices else "openvino finds no CPU device"

    def device(self) -> torch.device:
        return torch.device("cpu")

    def ladder(self) -> tuple[str, ...]:
        # Asked for bf16 on a CPU without it, OpenVINO computes in float32 and says nothing: name what really runs.
        if "BF16" not in self._capabilities():
            return ("float32",)
        return self.precisions if bfloat16_pays() else self.precisions[::-1]

    def identity(self) -> dict[str, str]:
        import openvino

        return {
            "openvino": openvino.get_version(),
            "torch": torch.__version__,
            "cpu": core().get_property("CPU", "FULL_DEVICE_NAME"),
            "capabilities": ",".join(sorted(self._capabilities())),
        }

    def build(self, program: Program, precision: str, threads: int) -> memoryview:
        import openvino

        types = {torch.uint8: openvino.Type.u8, torch.float32: openvino.Type.f32}
        shapes = [(tuple(t.shape), types[t.dtype]) for t in program.example]
        with warnings.catch_warnings():  # torch deprecates parts of its own that the conversion walks through
            warnings.simplefilter("ignore", FutureWarning)
            model = openvino.convert_model(exact_upsampling.with_exact_tail(program.exported), input=shapes)
        return core().compile_model(model, "CPU", options(precision, threads)).export_model().getbuffer()

    def load(self, blob: memoryview, example: Sequence[torch.Tensor], precision: str, threads: int) -> Compiled:
        import numpy
        import openvino

        # Over the mapped file itself: half the memory and half the time of handing the bytes over.
        mapped = openvino.Tensor(numpy.frombuffer(blob, dtype=numpy.uint8), shared_memory=True)
        return OpenVinoCompiled(
            core().import_model(mapped, "CPU", options(precision, threads)), example, precision, mapped
        )

    @staticmethod
    @functools.cache
    def _capabilities() -> tuple[str, ...]:
        return tuple(core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"))


class OpenVinoCompiled(Compiled):
    def __init__(self, compiled, example: Sequence[torch.Tensor], precision: str, memory):
        super().__init__(example)
        self.device = torch.device("cpu")
        self.request = compiled.create_infer_request()
        self.compiled = compiled
        self.memory = memory  # the engine's weights stay in it, so it must go last
        self.info = EngineInfo("openvino", precision, core().get_property("CPU", "FULL_DEVICE_NAME"))

    def run(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        import openvino

        for index, tensor in enumerate(inputs):
            self.request.set_input_tensor(index, openvino.Tensor(tensor.detach().numpy(), shared_memory=True))
        self.request.infer()
        return tuple(
            torch.from_numpy(self.request.get_output_tensor(index).data) for index in range(len(self.compiled.outputs))
        )

    def close(self) -> None:
        self.request = None
        self.compiled = None
        self.memory = None


def options(precision: str, threads: int) -> dict:
    """What OpenVINO is told about how to run."""
    chosen = {"INFERENCE_PRECISION_HINT": _HINTS[precision], "PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1}
    return {**chosen, "INFERENCE_NUM_THREADS": threads} if threads else chosen
