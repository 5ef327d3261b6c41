"""Engine `tensorrt`: Torch-TensorRT's dynamo path over a typed graph, the fastest on an NVIDIA GPU.

DINO under TensorRT has gone wrong silently in many versions, so the graph leaves it no choice where that matters: one
fixed shape, constant position tables, every precision written in (retype.py), and the parity gate over each result.
Whatever TensorRT cannot convert (8-bit outputs, for one) Torch-TensorRT leaves to torch, on the same device.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import inspect
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dino_perception.engines import cuda, placement, retype
from dino_perception.engines.base import Compiled, Engine, EngineError, EngineInfo, Program


@dataclass(frozen=True)
class Options:
    """What a user may want to change of the build; it makes no engine wrong, so it is no part of the key.

    `workspace` is the scratch memory in bytes that TensorRT's kernels may ask for (0: all there is);
    `optimization_level` 0..5 trades build time for speed (None: TensorRT's own 3).
    """

    workspace: int = 0
    optimization_level: int | None = None


class TensorRt(Engine):
    name = "tensorrt"
    precisions = ("bfloat16", "float16", "tensorfloat32", "float32")
    helpers = (retype, placement, cuda)
    isolated = True
    limit_s = 3600.0

    def __init__(self, options: Options = Options()):
        self.options = options

    def unavailable(self) -> str:
        for package in ("torch_tensorrt", "tensorrt"):
            if importlib.util.find_spec(package) is None:
                return f"{package} is not installed"
        return "" if torch.cuda.is_available() else "torch finds no NVIDIA GPU"

    def device(self) -> torch.device:
        return torch.device("cuda", torch.cuda.current_device())

    def ladder(self) -> tuple[str, ...]:
        return self.precisions if torch.cuda.is_bf16_supported(including_emulation=False) else self.precisions[1:]

    def identity(self) -> dict[str, str]:
        versions = {package: importlib.metadata.version(package) for package in ("torch_tensorrt", "tensorrt")}
        return {**cuda.gpu_identity(), **versions}

    def build(self, program: Program, precision: str, threads: int) -> bytes:
        import torch_tensorrt

        exported = cuda.typed_on(program, precision, self.device())
        inputs = cuda.static_inputs(program.example, self.device())
        options = compile_options(self.options, precision, self.device(), program.scratch)
        module = torch_tensorrt.dynamo.compile(
            exported, inputs=inputs, **checked(torch_tensorrt.dynamo.compile, options)
        )
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "engine.ep")
            torch_tensorrt.save(module, str(path), output_format="exported_program", inputs=inputs)
            return path.read_bytes()

    def load(self, blob: memoryview, example: Sequence[torch.Tensor], precision: str, threads: int) -> Compiled:
        import torch_tensorrt

        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "engine.ep")
            path.write_bytes(blob)
            model = torch_tensorrt.load(str(path)).module()
        return TensorRtCompiled(model, example, precision, self.device())


class TensorRtCompiled(Compiled):
    def __init__(self, model: Callable, example: Sequence[torch.Tensor], precision: str, device: torch.device):
        super().__init__(example)
        self.device, self.model = device, model
        self.info = EngineInfo("tensorrt", precision, torch.cuda.get_device_name(device))
        self.buffers = cuda.static_inputs(example, device)

    @torch.inference_mode()
    def run(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        for buffer, tensor in zip(self.buffers, inputs):
            buffer.copy_(tensor, non_blocking=True)
        return tuple(self.model(*self.buffers))

    def close(self) -> None:
        self.model = self.buffers = None


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
            f"torch_tensorrt {importlib.metadata.version('torch_tensorrt')} does not take "
            f"{', '.join(missing)}; versions 2.8 to 2.13 do"
        )
    return present
