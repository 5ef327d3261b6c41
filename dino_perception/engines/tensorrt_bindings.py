"""TensorRT's own Python bindings, whichever flavour is installed, and what both ways into it keep beside an engine.

TensorRT (`tensorrt`: JetPack, or NVIDIA's wheels) and TensorRT-RTX (`tensorrt_rtx`, for GeForce and RTX GPUs of a PC)
have one API. TensorRT handles no 8-bit outputs as Torch-TensorRT and older ONNX parsers hand them over, so its graphs
end in float32 (retype.py) and the types that the module gives are kept with the engine's bytes.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import importlib.util
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType

import torch

from dino_perception.engines.base import Program

NAMES = ("tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings")
"""Import names: `tensorrt_rtx` is only a name for `tensorrt_rtx_bindings`, and may be missing where those are there."""


@dataclass(frozen=True)
class Options:
    """What a user may want to change of the build; it makes no engine wrong, so it is no part of the key.

    `workspace` is the scratch memory in bytes that TensorRT's kernels may ask for (0: all there is);
    `optimization_level` 0..5 trades build time for speed (None: TensorRT's own 3).
    """

    workspace: int = 0
    optimization_level: int | None = None


def name() -> str:
    """The import name of the bindings that are installed, TensorRT before TensorRT-RTX; empty: none are."""
    return next((candidate for candidate in NAMES if importlib.util.find_spec(candidate) is not None), "")


def load() -> ModuleType:
    """The bindings. Raises ImportError."""
    return importlib.import_module(name() or NAMES[0])


def is_rtx(bindings: ModuleType) -> bool:
    return "rtx" in bindings.__name__


def unfit() -> str:
    """Why the installed bindings cannot run on the GPU at hand, or an empty string."""
    if not (found := name()):
        return "neither tensorrt nor tensorrt_rtx is installed"
    if not torch.cuda.is_available():
        return "torch finds no NVIDIA GPU"
    if "rtx" not in found:
        return ""
    major, minor = torch.cuda.get_device_capability()
    if f"SM{major}{minor}" in load().ComputeCapability.__members__:
        return ""
    return f"TensorRT-RTX does not run on a GPU of compute capability {major}.{minor}"


def version_of(*packages: str) -> str:
    """The version of the first of some distributions that is installed, or an empty string."""
    for package in packages:
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return ""


def log(bindings: ModuleType):
    """A logger for the bindings that keeps what went wrong in `errors` and passes the rest on to Python's logging: a
    builder says thousands of things that no user asked for."""
    return _log_class(bindings)()


@functools.cache
def _log_class(bindings: ModuleType) -> type:
    target = logging.getLogger(__name__)

    class Log(bindings.ILogger):
        def __init__(self):
            bindings.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity, message: str) -> None:
            if severity in (bindings.ILogger.INTERNAL_ERROR, bindings.ILogger.ERROR):
                self.errors.append(message)
            target.debug("%s: %s", severity.name, message)

    return Log


def packed(engine, program: Program) -> bytes:
    """An engine's bytes with the types of the module's outputs before them."""
    outputs = program.exported.graph_module.graph.output_node().args[0]
    types = [str(node.meta["val"].dtype).removeprefix("torch.") for node in outputs]
    return json.dumps(types).encode() + b"\n" + bytes(engine)


def unpacked(blob: memoryview) -> tuple[list[torch.dtype], memoryview]:
    """The types of the outputs, and the engine's bytes, not copied."""
    head = bytes(blob[:4096]).split(b"\n", 1)[0]
    return [getattr(torch, name) for name in json.loads(head)], blob[len(head) + 1 :]


def narrowed(outputs: Sequence[torch.Tensor], types: Sequence[torch.dtype]) -> tuple[torch.Tensor, ...]:
    """The outputs in the types that the module gives."""
    return tuple(output.to(dtype) for output, dtype in zip(outputs, types))
