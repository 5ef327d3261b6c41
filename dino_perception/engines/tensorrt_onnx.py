"""Engine `tensorrt` without Torch-TensorRT: the typed graph as ONNX, built and run by TensorRT's own Python bindings.

A Jetson has TensorRT and its bindings from JetPack, and mostly no Torch-TensorRT that fits. This way needs the bindings
alone: ONNX is written with torch's exporter (onnx_graph.py), the network is strongly typed, so that every precision is
as it stands in the graph, and the engine runs on torch's stream over torch's tensors, replayed as one CUDA graph.
"""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import torch

from dino_perception.engines import cuda, onnx_graph, retype, tensorrt_bindings
from dino_perception.engines.base import Compiled, Engine, EngineError, EngineInfo, Program
from dino_perception.engines.tensorrt_bindings import Options

TORCH_TYPES = {"FLOAT": torch.float32, "HALF": torch.float16, "BF16": torch.bfloat16, "INT32": torch.int32,
               "INT64": torch.int64, "BOOL": torch.bool, "UINT8": torch.uint8, "INT8": torch.int8}  # fmt: skip

WARM_UP = 3
"""Passes before the capture: TensorRT-RTX compiles its kernels for the GPU in the first."""

log = logging.getLogger(__name__)


class ByOnnx(Engine):
    name = "tensorrt"
    way = "onnx"
    precisions = ("bfloat16", "float16", "tensorfloat32", "float32")
    helpers = (retype, onnx_graph, tensorrt_bindings, cuda)
    isolated = True
    limit_s = 3600.0

    def __init__(self, options: Options = Options()):
        self.options = options

    def unavailable(self) -> str:
        return tensorrt_bindings.unfit()

    def device(self) -> torch.device:
        return torch.device("cuda", torch.cuda.current_device())

    def ladder(self) -> tuple[str, ...]:
        return self.precisions if torch.cuda.is_bf16_supported(including_emulation=False) else self.precisions[1:]

    def identity(self) -> dict[str, str]:
        bindings = tensorrt_bindings.load()
        return {**cuda.gpu_identity(), bindings.__name__: bindings.__version__}

    def build(self, program: Program, precision: str, threads: int) -> bytes:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "graph.onnx")
            onnx_graph.write(program, precision, path)
            built = built_from(tensorrt_bindings.load(), path, precision, self.options, program.scratch)
        return tensorrt_bindings.packed(built, program)

    def load(self, blob: memoryview, example: Sequence[torch.Tensor], precision: str, threads: int) -> Compiled:
        return ByOnnxCompiled(tensorrt_bindings.load(), blob, example, precision, self.device())


class ByOnnxCompiled(Compiled):
    def __init__(
        self,
        bindings: ModuleType,
        blob: memoryview,
        example: Sequence[torch.Tensor],
        precision: str,
        device: torch.device,
    ):
        super().__init__(example)
        self.device = device
        self.info = EngineInfo("tensorrt", precision, torch.cuda.get_device_name(device))
        self.types, plan = tensorrt_bindings.unpacked(blob)
        self.log = tensorrt_bindings.log(bindings)
        self.runtime = bindings.Runtime(self.log)
        self.engine = self.runtime.deserialize_cuda_engine(plan)
        self.context = self.engine.create_execution_context() if self.engine else None
        if self.context is None:
            raise EngineError(f"TensorRT does not load its engine: {_last(self.log)}")
        self.buffers = cuda.static_inputs(example, device)
        self.wide = [
            torch.empty(
                tuple(self.engine.get_tensor_shape(name)),
                dtype=TORCH_TYPES[self.engine.get_tensor_dtype(name).name],
                device=device,
            )
            for name in (f"output{i}" for i in range(len(self.types)))
        ]
        for kind, tensors in (("input", self.buffers), ("output", self.wide)):
            for index, tensor in enumerate(tensors):
                if not self.context.set_tensor_address(f"{kind}{index}", tensor.data_ptr()):
                    raise EngineError(f"TensorRT's engine has no {kind}{index}: {_last(self.log)}")
        self.graph, self.outputs = self._captured()

    @torch.inference_mode()
    def run(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        for buffer, tensor in zip(self.buffers, inputs):
            buffer.copy_(tensor, non_blocking=True)
        if self.graph is None:
            return self._pass()
        self.graph.replay()
        return self.outputs

    def close(self) -> None:
        self.graph = self.outputs = self.context = self.engine = self.runtime = self.buffers = self.wide = None

    def _pass(self) -> tuple[torch.Tensor, ...]:
        """One pass on torch's current stream."""
        if not self.context.execute_async_v3(torch.cuda.current_stream(self.device).cuda_stream):
            raise EngineError(f"TensorRT's pass failed: {_last(self.log)}")
        return tensorrt_bindings.narrowed(self.wide, self.types)

    @torch.inference_mode()
    def _captured(self) -> tuple[torch.cuda.CUDAGraph | None, tuple[torch.Tensor, ...]]:
        """The pass as a CUDA graph and its outputs; (None, ()) where TensorRT does what a capture does not allow."""
        stream = torch.cuda.Stream(self.device)
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                self._pass()
            capturable = getattr(self.context, "is_stream_capturable", lambda stream: True)(stream.cuda_stream)
        torch.cuda.current_stream(self.device).wait_stream(stream)
        if not capturable:
            return None, ()
        try:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                outputs = self._pass()
            return graph, outputs
        except (RuntimeError, EngineError) as error:
            log.warning("TensorRT's pass cannot be captured as a CUDA graph and runs without: %s", error)
            torch.cuda.synchronize(self.device)
            return None, ()


def built_from(
    bindings: ModuleType,
    path: Path,
    precision: str,
    options: Options = Options(),
    scratch: Path | None = None,
    architectures: Sequence[str] = (),
):
    """The engine of an ONNX file, as TensorRT's host memory. `architectures` ("SM89", ...) are GPUs to build for where
    none is at hand, which TensorRT-RTX can. Raises EngineError with TensorRT's own last word."""
    said = tensorrt_bindings.log(bindings)
    builder = bindings.Builder(said)
    network = builder.create_network(1 << int(bindings.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = bindings.OnnxParser(network, said)
    if not parser.parse_from_file(str(path)):
        errors = [parser.get_error(i).desc() for i in range(parser.num_errors)]
        raise EngineError(f"TensorRT does not read the graph: {(errors or [_last(said)])[0].strip()}")
    config = builder.create_builder_config()
    if options.workspace:
        config.set_memory_pool_limit(bindings.MemoryPoolType.WORKSPACE, options.workspace)
    if options.optimization_level is not None:
        config.builder_optimization_level = options.optimization_level
    if precision == "float32":  # the last rung is the one where nothing is rounded
        config.clear_flag(bindings.BuilderFlag.TF32)
    if architectures:
        config.num_compute_capabilities = len(architectures)
        for index, architecture in enumerate(architectures):
            config.set_compute_capability(getattr(bindings.ComputeCapability, architecture), index)
    with _timings(bindings, config, scratch):
        built = builder.build_serialized_network(network, config)
    if built is None:
        raise EngineError(f"TensorRT does not build the graph: {_last(said)}")
    return built


@contextlib.contextmanager
def _timings(bindings: ModuleType, config, scratch: Path | None):
    """Has a build use the kernel timings of builds before, and keep its own. TensorRT-RTX times nothing."""
    if scratch is None or tensorrt_bindings.is_rtx(bindings):
        yield
        return
    path = scratch / "tensorrt-onnx-timing.cache"
    known = path.read_bytes() if path.is_file() else b""
    config.set_timing_cache(config.create_timing_cache(known), ignore_mismatch=False)
    yield
    with contextlib.suppress(OSError):  # a read-only cache: timed again next time
        part = path.with_suffix(".part")
        part.write_bytes(memoryview(config.get_timing_cache().serialize()))
        part.replace(path)


def _last(said) -> str:
    return said.errors[-1].strip().splitlines()[0] if said.errors else "it does not say why"
