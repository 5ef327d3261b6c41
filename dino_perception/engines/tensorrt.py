"""Engine `tensorrt`: Torch-TensorRT's dynamo path over a typed graph, the fastest on an NVIDIA GPU.

DINO under TensorRT has gone wrong silently in many versions, so the graph leaves it no choice where that matters: one
fixed shape, constant position tables, every precision written in (retype.py), and the parity gate over each result.
Every graph that ships is converted whole; what TensorRT cannot convert of others Torch-TensorRT leaves to torch, on the
same device. Without Torch-TensorRT, or where it fails, the same graph goes by way of ONNX (tensorrt_onnx.py).
"""

from __future__ import annotations

import importlib.util
import inspect
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from dino_perception.engines import cuda, placement, retype, tensorrt_bindings
from dino_perception.engines.base import Compiled, Engine, EngineError, EngineInfo, Program
from dino_perception.engines.tensorrt_bindings import Options
from dino_perception.engines.tensorrt_onnx import ByOnnx


class TensorRt(Engine):
    name = "tensorrt"
    way = "torch_tensorrt"
    precisions = ("bfloat16", "float16", "tensorfloat32", "float32")
    helpers = (retype, placement, cuda, tensorrt_bindings)
    isolated = True
    limit_s = 3600.0

    def __init__(self, options: Options = Options()):
        self.options = options

    def unavailable(self) -> str:
        return tensorrt_bindings.unfit()

    def rungs(self, precision: str) -> list[tuple[Engine, str]]:
        """At each precision first the way through Torch-TensorRT, if it is installed, then the one by ONNX."""
        ways = [self] if importlib.util.find_spec("torch_tensorrt") else []
        chosen = self.ladder() if precision == "auto" else (precision,)
        return [(way, each) for each in chosen for way in (*ways, ByOnnx(self.options))]

    def device(self) -> torch.device:
        return torch.device("cuda", torch.cuda.current_device())

    def ladder(self) -> tuple[str, ...]:
        return self.precisions if torch.cuda.is_bf16_supported(including_emulation=False) else self.precisions[1:]

    def identity(self) -> dict[str, str]:
        bindings = tensorrt_bindings.load()
        version = tensorrt_bindings.version_of("torch-tensorrt", "torch-tensorrt-rtx")
        return {**cuda.gpu_identity(), "torch_tensorrt": version, bindings.__name__: bindings.__version__}

    def build(self, program: Program, precision: str, threads: int) -> bytes:
        import torch_tensorrt

        exported = typed(program, precision)
        exported = placement.placed(exported, self.device(), program.name)
        inputs = cuda.static_inputs(program.example, self.device())
        options = compile_options(self.options, precision, self.device(), program.scratch)
        module = torch_tensorrt.dynamo.compile(
            exported, inputs=inputs, **checked(torch_tensorrt.dynamo.compile, options)
        )
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "engine.ep")
            torch_tensorrt.save(module, str(path), output_format="exported_program", inputs=inputs)
            return tensorrt_bindings.packed(path.read_bytes(), program)

    def load(self, blob: memoryview, example: Sequence[torch.Tensor], precision: str, threads: int) -> Compiled:
        import torch_tensorrt

        types, saved = tensorrt_bindings.unpacked(blob)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "engine.ep")
            path.write_bytes(saved)
            model = torch_tensorrt.load(str(path)).module()
        return TensorRtCompiled(model, types, example, precision, self.device())


class TensorRtCompiled(Compiled):
    def __init__(
        self,
        model: Callable,
        types: Sequence[torch.dtype],
        example: Sequence[torch.Tensor],
        precision: str,
        device: torch.device,
    ):
        super().__init__(example)
        self.device, self.model, self.types = device, model, types
        self.info = EngineInfo("tensorrt", precision, torch.cuda.get_device_name(device))
        self.buffers = cuda.static_inputs(example, device)

    @torch.inference_mode()
    def run(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        for buffer, tensor in zip(self.buffers, inputs):
            buffer.copy_(tensor, non_blocking=True)
        return tensorrt_bindings.narrowed(self.model(*self.buffers), self.types)

    def close(self) -> None:
        self.model = self.buffers = None


def typed(program: Program, precision: str) -> torch.export.ExportedProgram:
    """The graph that is handed over: `precision` written in, 8-bit inputs and outputs as float32."""
    return retype.retyped(program, precision, wide_outputs=True)


def compile_options(options: Options, precision: str, device: torch.device, scratch: Path | None) -> dict[str, Any]:
    """Keyword arguments of `torch_tensorrt.dynamo.compile`."""
    chosen: dict[str, Any] = {
        "device": device,
        "workspace_size": options.workspace,
        "optimization_level": options.optimization_level,
        "disable_tf32": precision == "float32",  # the last rung is the one where nothing is rounded
        "use_fp32_acc": precision == "float16",
        "truncate_double": True,
        "require_full_compilation": False,
        "min_block_size": 1,  # a head of few operations is a graph of its own, too
        "use_explicit_typing": True,
        "attn_bias_is_causal": False,
    }
    if scratch is not None:
        chosen["timing_cache_path"] = str(scratch / "tensorrt-timing.cache")
    return chosen


NOT_EVERYWHERE = {"use_explicit_typing", "attn_bias_is_causal"}
"""Options that some versions lack: typing is always explicit from 2.13 on, and before 2.12 nothing made attention
causal unasked."""


def checked(function: Callable, options: dict[str, Any]) -> dict[str, Any]:
    """The options, each of them a real argument of `function`, which would swallow an unknown one without a word.
    Raises EngineError on one it lacks, unless it may."""
    known = inspect.signature(function).parameters
    present = {name: value for name, value in options.items() if name in known}
    if missing := sorted(set(options) - set(present) - NOT_EVERYWHERE):
        raise EngineError(
            f"torch_tensorrt {tensorrt_bindings.version_of('torch-tensorrt', 'torch-tensorrt-rtx')} does not take "
            f"{', '.join(missing)}; versions 2.8 to 2.14 do"
        )
    return present
