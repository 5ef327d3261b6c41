"""Builds the graphs that ship with a real TensorRT, on a machine without a GPU, by both ways of engine `tensorrt`.

    python test/engines/build_with_tensorrt.py [--all] [--only WORD]     (`make test-tensorrt` does --all)

TensorRT-RTX compiles ahead of time on a CPU for a GPU that is named. Its wheels (x86-64, `make tensorrt-rtx`) lie in a
folder of their own, because the Torch-TensorRT among them would pass for one that can run here. What follows is what
the engine does, up to the bytes of the engine: export, typed graph, Torch-TensorRT's lowering and converters or our
ONNX and TensorRT's parser, strongly typed network, builder. Only running the result needs the GPU.

Each line: graph, way, precision, architecture, megabytes or why not, seconds of processor time. The exit code is 1 when a graph was not
built, or not whole. `--json` prints each line as JSON.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import logging
import os.path
import sys
import tempfile
import time
import types
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[2]))
WHEELS = Path(os.environ.get("TENSORRT_RTX", Path(sys.prefix, "opt", "tensorrt-rtx")))
"""Where `tools/tensorrt_rtx.py` puts the wheels."""

from dino_perception.engines import onnx_graph, tensorrt, tensorrt_onnx  # noqa: E402
from dino_perception.engines.base import EngineError, Program  # noqa: E402
from dino_perception.models import catalog, reference, taps  # noqa: E402
from dino_perception.models.checkpoints import load_backbone, untrained  # noqa: E402
from dino_perception.models.heads import create_head, kinds, load_head  # noqa: E402

WAYS = ("torch_tensorrt", "onnx")
PRECISIONS = ("bfloat16", "float16", "float32")
ARCHITECTURES = ("SM89", "SM86", "SM120")
BACKBONES = ("dinov3-vits16plus", "rover-tiny", "dinov3-convnext-tiny", "dinov2-vits14", "dinov3-vitb16",
             "dinov3-vits16", "dinov2-vits14-reg")  # fmt: skip
DEFAULT = BACKBONES[0]
SIZE = (480, 640)
"""Pixels of the input of the default configuration; its heads answer at half of it."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One build. `size` is in bytes, 0 when there is none; `seconds` are of processor time, which a busy machine does not
    stretch, and the first of a graph's holds its export; `lacking` are operations without a converter."""

    graph: str
    way: str
    precision: str
    architecture: str
    size: int
    seconds: float
    error: str = ""
    lacking: tuple[str, ...] = ()

    @property
    def whole(self) -> bool:
        return bool(self.size) and not self.lacking and not self.error

    def __str__(self) -> str:
        what = f"{self.size / 1e6:.1f} MB" if self.size else self.error
        lacking = f"; no converter for {', '.join(self.lacking)}" if self.lacking else ""
        return f"| {self.graph} | {self.way} | {self.precision} | {self.architecture} | {what}{lacking} | {self.seconds:.1f} |"


HEADER = "| graph | way | precision | architecture | engine | CPU seconds |\n|---|---|---|---|---|---|"


class Transposed(nn.Module):
    """A transposed convolution, which TensorRT cannot compute in bfloat16: a check that passes it checks nothing."""

    def __init__(self):
        super().__init__()
        self.up = nn.ConvTranspose2d(8, 8, 4, stride=4)

    def forward(self, x):
        return (self.up(x),)


class LargestAndWhere(nn.Module):
    """A maximum with its indices, for which Torch-TensorRT has no converter."""

    def forward(self, x):
        largest, where = x.max(dim=1)
        return largest, where.float()


def known_bad() -> Iterator[tuple[Program, str, str]]:
    """(graph, way, precision) that must not pass."""
    example = (torch.zeros(1, 8, 16, 16),)
    yield Program(Transposed(), example, "transposed convolution"), "torch_tensorrt", "bfloat16"
    yield Program(Transposed(), example, "transposed convolution"), "onnx", "bfloat16"
    yield Program(LargestAndWhere(), example, "max with indices"), "torch_tensorrt", "float32"


def backbone_graph(name: str, blocks: int = 0, size: tuple[int, int] = SIZE) -> tuple[Program, object]:
    """The graph of a backbone at a size, with random weights unless it ships; `blocks` leaves that many of it."""
    if blocks:
        backbone = untrained(reference.shortened(catalog.get(name), blocks))
    else:
        backbone = load_backbone(name, "" if name == "rover-tiny" else None)
    stride = backbone.spec.stride
    module = backbone.at(*(round(side / stride) * stride for side in size), backbone.spec.taps)
    title = f"{name}, {blocks} blocks" if blocks else name
    return Program(module, (module.example(1),), title), backbone


def head_graphs(backbone, *, every_arch: bool) -> Iterator[Program]:
    """The heads as they run on a backbone by default, and with `every_arch` each other architecture that they have."""
    for kind in kinds():
        default = load_head(kind, backbone)
        heads = {default.spec.arch: default}
        if every_arch:
            heads.update(
                {arch: create_head(kind, backbone, arch) for arch in type(default).ARCHES if arch not in heads}
            )
        for arch, head in heads.items():
            features = tuple(features_of(backbone, *output) for output in taps.outputs(head.spec.taps))
            features += head.state  # and the rest that a graph takes, as perception/graphs.py gives it
            features += (torch.ones(1, *features[0].shape[2:]),) if head.shares else ()
            yield Program(head.at(SIZE[0] // 2, SIZE[1] // 2), features, f"{backbone.spec.id} {kind} ({arch})")


def features_of(backbone, what: str, layer: int, norm: bool) -> torch.Tensor:
    stride = backbone.spec.tap_stride(layer)
    sides = tuple(side // stride for side in SIZE) if what == "map" else ()
    return torch.zeros(1, backbone.spec.channels(layer), *sides)


def quick() -> Iterator[tuple[Program, str, tuple[str, ...]]]:
    """(graph, precision, architectures) of `make test`: two blocks of the backbones, which have every operation that the
    rest repeats, and the heads that ship in every precision; architectures in turn."""
    turn = itertools.cycle(ARCHITECTURES)
    for name in BACKBONES:
        if name != "dinov3-vits16":
            yield backbone_graph(name, 2)[0], "bfloat16", (next(turn),)
    for program in head_graphs(load_backbone("rover-tiny", ""), every_arch=False):
        for precision in PRECISIONS:
            yield program, precision, (next(turn),)


def everything() -> Iterator[tuple[Program, str, tuple[str, ...]]]:
    """(graph, precision, architectures): every graph that ships, bfloat16 for each architecture, the others for one."""
    for name in BACKBONES:
        program, backbone = backbone_graph(name)
        for each in (program, *head_graphs(backbone, every_arch=name in ("rover-tiny", DEFAULT))):
            for precision in PRECISIONS:
                yield each, precision, ARCHITECTURES if precision == "bfloat16" else ARCHITECTURES[:1]


def built(program: Program, way: str, precision: str, architectures: tuple[str, ...]) -> Iterator[Row]:
    """The graph by one way for each architecture. Never raises: what went wrong is in the row."""
    start, lacking, error = time.process_time(), (), ""
    try:
        with tempfile.TemporaryDirectory() as folder:
            if way == "onnx":
                path = Path(folder, "graph.onnx")
                onnx_graph.write(program, precision, path)
                build = lambda architecture: by_onnx(path, precision, architecture)  # noqa: E731
            else:
                graph, settings = lowered(program, precision)
                lacking = without_converter(graph)
                build = lambda architecture: by_torch_tensorrt(graph, settings, architecture)  # noqa: E731
            for architecture in architectures:
                size, error = build(architecture)
                seconds = time.process_time() - start
                yield Row(program.name, way, precision, architecture, size, seconds, error, lacking)
                start = time.process_time()
    except Exception as problem:  # an exporter or a converter may fail in any way
        yield Row(program.name, way, precision, architectures[0], 0, time.process_time() - start, in_short(problem))


def by_onnx(path: Path, precision: str, architecture: str) -> tuple[int, str]:
    try:
        return tensorrt_onnx.built_from(bindings(), path, precision, architectures=(architecture,)).nbytes, ""
    except EngineError as error:
        return 0, in_short(error)


def lowered(program: Program, precision: str):
    """The graph as Torch-TensorRT hands it to its converters, and the settings that the engine asks for."""
    from torch_tensorrt.dynamo._settings import CompilationSettings
    from torch_tensorrt.dynamo.conversion._ConverterRegistry import DYNAMO_CONVERTERS
    from torch_tensorrt.dynamo.lowering import get_decompositions, post_lowering, pre_export_lowering

    options = tensorrt.compile_options(tensorrt.Options(), precision, torch.device("cpu"), None)
    fields = {field.name for field in dataclasses.fields(CompilationSettings)} - {"device"}
    settings = CompilationSettings(**{name: value for name, value in options.items() if name in fields})
    exported = pre_export_lowering(tensorrt.typed(program, precision), settings)
    graph = post_lowering(exported.run_decompositions(get_decompositions(False)).module(), settings)
    DYNAMO_CONVERTERS.set_compilation_settings(settings)
    return graph, settings


def without_converter(graph: torch.fx.GraphModule) -> tuple[str, ...]:
    from torch_tensorrt.dynamo.conversion._ConverterRegistry import DYNAMO_CONVERTERS

    calls = (node for node in graph.graph.nodes if node.op == "call_function")
    return tuple(sorted({str(node.target) for node in calls if node not in DYNAMO_CONVERTERS}))


def by_torch_tensorrt(graph: torch.fx.GraphModule, settings, architecture: str) -> tuple[int, str]:
    """Bytes of the engine, or 0 and why. Torch-TensorRT loads what it builds, which takes the GPU: that step alone is
    replaced by one that takes the engine's size."""
    import torch_tensorrt
    import torch_tensorrt.dynamo.conversion._TRTInterpreter as interpreter

    values = [node.meta["val"] for node in graph.graph.nodes if node.op == "placeholder"]
    names = [node.name for node in graph.graph.nodes if node.op == "placeholder"]
    inputs = [torch_tensorrt.Input(shape=tuple(v.shape), dtype=v.dtype, name=n) for v, n in zip(values, names)]
    fill = interpreter.TRTInterpreter(graph, inputs, compilation_settings=settings)
    configure, sizes, problem = fill._populate_trt_builder_config, [], ""

    def for_architecture(*args, **kwargs):
        config = configure(*args, **kwargs)
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(bindings().ComputeCapability, architecture), 0)
        return config

    class Taker:
        def __init__(self, *_): ...

        def deserialize_cuda_engine(self, blob):
            sizes.append(blob.nbytes)
            return object()

    fill._populate_trt_builder_config = for_architecture
    module = object.__getattribute__(interpreter.trt, "_target_module")
    runtime, module.Runtime = module.Runtime, Taker
    try:
        fill.run()
    except Exception as error:  # after the build it asks the engine, which is not there, about itself
        problem = in_short(error)
    finally:
        module.Runtime = runtime
    return (sizes[0], "") if sizes else (0, problem or "TensorRT gave no engine")


def bindings() -> types.ModuleType:
    import tensorrt_rtx_bindings

    return tensorrt_rtx_bindings


def import_torch_tensorrt() -> None:
    """Imports it where torch has no CUDA: while it is imported, torch says what it asks for."""
    said = dict(
        is_available=lambda: True, get_device_capability=lambda *a, **k: (8, 9), get_device_name=lambda *a, **k: "none",
        current_device=lambda: 0, set_device=lambda *a: None, empty_cache=lambda *a: None, synchronize=lambda *a: None,
        get_device_properties=lambda *a: types.SimpleNamespace(
            total_memory=8 << 30, name="none", major=8, minor=9, multi_processor_count=1),
    )  # fmt: skip
    available, isfile = torch.cuda.is_available, os.path.isfile
    for name, answer in said.items():
        setattr(torch.cuda, name, answer)
    torch._C._CudaDeviceProperties = object
    # Its C++ runtime is linked against CUDA's torch; without it the Python one is taken.
    os.path.isfile = lambda path: not str(path).endswith(("libtorchtrt.so", "libtorchtrt_runtime.so")) and isfile(path)
    found = bindings()  # `tensorrt_rtx` is a package that is only a name for them
    module = types.ModuleType("tensorrt_rtx")
    module.__dict__.update({name: value for name, value in vars(found).items() if not name.startswith("__")})
    module.__version__, module.__path__, module.__file__ = found.__version__, [], found.__file__
    module.__spec__ = types.SimpleNamespace(name="tensorrt_rtx", submodule_search_locations=[])
    sys.modules["tensorrt_rtx"] = module
    try:
        import torch_tensorrt  # noqa: F401
    finally:
        os.path.isfile, torch.cuda.is_available = isfile, available


def in_short(error: Exception) -> str:
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines[:2])[:200]}" if lines else type(error).__name__


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--all", action="store_true", help="every graph, precision and architecture; else a choice")
    parser.add_argument("--only", default="", help="graphs whose name holds this word")
    parser.add_argument("--bad", action="store_true", help="graphs that TensorRT cannot take, which must fail")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    sys.path.insert(0, str(WHEELS))
    logging.disable(logging.WARNING)
    import_torch_tensorrt()
    jobs = [(p, precision, ARCHITECTURES[:1], (way,)) for p, way, precision in known_bad()] if args.bad else (
        (p, precision, architectures, WAYS) for p, precision, architectures in (everything() if args.all else quick())
        if args.only in p.name
    )  # fmt: skip
    print("" if args.json else HEADER, flush=True)
    rows = []
    for program, precision, architectures, ways in jobs:
        for way in ways:
            for row in built(program, way, precision, architectures):
                print(json.dumps(dataclasses.asdict(row)) if args.json else row, flush=True)
                rows.append(row)
    return int(not all(row.whole for row in rows))


if __name__ == "__main__":
    sys.exit(main())
