"""What every engine promises: a fixed-shape module goes in, something that runs it comes out and describes itself."""

from __future__ import annotations

import abc
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn


class EngineError(RuntimeError):
    """An engine cannot be had or used; the message is one sentence that says which, why and what to do."""


@dataclass(frozen=True)
class EngineInfo:
    """What a compiled engine is and how it came to be.

    `parity` is the record of parity.py (None for the float32 reference itself); `reason` says in one sentence why
    this engine and precision were taken; `overridden` is True when it runs although it failed the parity gate.
    `build_s` is the wall time of this start in seconds, whether it built or loaded. `way` tells apart the ways in which
    one runtime can run a graph, such as compiled or captured.
    """

    engine: str
    precision: str
    device: str
    way: str = ""
    build_s: float = 0.0
    from_cache: bool = False
    parity: Mapping[str, Any] | None = None
    reason: str = ""
    overridden: bool = False


@dataclass
class Program:
    """A module with the example inputs that fix its shapes, and what engines derive from it, once."""

    module: nn.Module
    example: tuple[torch.Tensor, ...]
    name: str = "graph"
    scratch: Path | None = None
    """A folder that outlives the process, for what a runtime keeps between builds (timing caches)."""

    def __post_init__(self):
        """An example fixes shapes and types and nothing else: one that lives on another device (a GPU's feature map)
        is stood in for by zeros, so that everything is exported on the CPU and only an engine places it."""
        self.example = tuple(
            t if t.device.type == "cpu" else torch.zeros(t.shape, dtype=t.dtype, device="cpu") for t in self.example
        )

    @functools.cached_property
    def exported(self) -> torch.export.ExportedProgram:
        """The module as a flat graph of ATen operations at the example's shapes. Raises EngineError."""
        for key, tensor in [*self.module.named_parameters(), *self.module.named_buffers()]:
            if tensor.device.type != "cpu":
                raise EngineError(
                    f"{self.name} cannot be exported: its weight '{key}' is on {tensor.device}; give engines a module "
                    "on the CPU, they place a copy of it themselves"
                )
        try:
            with torch.no_grad():
                return torch.export.export(self.module.eval(), self.example, strict=False)
        except Exception as error:  # torch.export raises many types, each a page long
            first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise EngineError(f"{self.name} cannot be exported as a graph of fixed shape: {first}") from error


class Compiled(abc.ABC):
    """A graph ready to run at its fixed shapes. One caller at a time."""

    info: EngineInfo
    device: torch.device

    def __init__(self, example: Sequence[torch.Tensor]):
        self.signature = tuple((tuple(t.shape), t.dtype) for t in example)

    def __call__(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Run once. `inputs` have the shapes and dtypes of the build's example and are copied only where they are
        not contiguous or not on `device`. The outputs are on `device` and stay valid until the next call.
        Raises EngineError."""
        got = tuple((tuple(t.shape), t.dtype) for t in inputs)
        if got != self.signature:
            raise EngineError(
                f"the {self.info.engine} engine was given {_in_words(got)}; "
                f"it was built for {_in_words(self.signature)}"
            )
        return self.run(*(t.to(self.device).contiguous() for t in inputs))

    @abc.abstractmethod
    def run(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """`__call__` after its checks."""

    def close(self) -> None:
        """Free what the engine holds; it cannot run afterwards."""


class Engine(abc.ABC):
    """One runtime. Building is slow and may raise anything; `ladder.build` turns that into EngineError or goes on."""

    name: str
    precisions: tuple[str, ...]
    """Precisions this runtime can build, the wanted one first, the safest last."""
    saves = True
    """Whether a built engine is bytes that another process can load."""
    helpers: tuple[Any, ...] = ()
    """Modules of this package whose code takes part in the build; like the engine's own, it is part of the key."""
    way: str = ""
    """Which of its ways this engine is, where a runtime has several (see `rungs`); part of the key."""
    isolated = False
    """Whether a build runs or makes native code that could take this process down with it. Such an engine is built,
    loaded for the first time and compared in a process of its own (see build_process.py)."""
    limit_s = 600.0
    """How long an isolated build may take, loading and comparing included, before it counts as hung."""

    @abc.abstractmethod
    def unavailable(self) -> str:
        """Why this runtime cannot be used here, or an empty string."""

    @abc.abstractmethod
    def device(self) -> torch.device:
        """Where inputs are expected and outputs are left."""

    @abc.abstractmethod
    def identity(self) -> dict[str, str]:
        """Everything about runtime, options and machine that makes a built engine wrong when it changes."""

    def ladder(self) -> tuple[str, ...]:
        """The precisions that make sense on this machine, in the order in which they are tried."""
        return self.precisions

    def rungs(self, precision: str) -> list[tuple[Engine, str]]:
        """What is tried, in this order: (the engine of a way to run a graph, its precision). `precision` is a name or
        "auto"."""
        return [(self, rung) for rung in (self.ladder() if precision == "auto" else (precision,))]

    def label(self, precision: str) -> str:
        """How messages call this engine at a precision."""
        return f"{self.name} {precision}" + (f" {self.way}" if self.way else "")

    def build(self, program: Program, precision: str, threads: int) -> bytes | memoryview:
        """The built engine as bytes."""
        raise NotImplementedError

    def load(self, blob: memoryview, example: Sequence[torch.Tensor], precision: str, threads: int) -> Compiled:
        """An engine that runs, from what `build` gave; it may keep using that memory."""
        raise NotImplementedError

    def compile(self, program: Program, precision: str, threads: int) -> Compiled:
        """Build and load, without a cache between."""
        return self.load(memoryview(self.build(program, precision, threads)), program.example, precision, threads)


def _in_words(signature) -> str:
    return ", ".join(f"{str(dtype).removeprefix('torch.')} {tuple(shape)}" for shape, dtype in signature) or "nothing"
