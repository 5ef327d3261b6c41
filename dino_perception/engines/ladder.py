"""From a module to an engine that may be used: choose the runtime, try its precisions, gate each by parity."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from dino_perception.engines.base import Compiled, Engine, EngineError, Program
from dino_perception.engines.eager import Eager
from dino_perception.engines.openvino import OpenVino

ENGINES: dict[str, Engine] = {engine.name: engine for engine in (OpenVino(), Eager())}
"""Every runtime by name, in the order in which `auto` tries them."""

log = logging.getLogger(__name__)


def build(module: nn.Module, example: tuple[torch.Tensor, ...], *, engine: str = "auto", precision: str = "auto",
          threads: int = 0, cache: Path | None = None, override: bool = False, name: str = "backbone",
          parity_inputs: Sequence[tuple[torch.Tensor, ...]] | None = None) -> Compiled:
    """An engine for `module` at the shapes and dtypes of `example`. Raises EngineError."""
    start = time.perf_counter()
    if engine == "auto":
        engine = next(e.name for e in ENGINES.values() if not e.unavailable())
        reason = f"auto: {engine} is the first engine that works here"
    elif engine in ENGINES:
        reason = "asked for by name"
    else:
        raise EngineError(f"there is no engine '{engine}'; accepted are auto, {', '.join(ENGINES)}")
    chosen = ENGINES[engine]
    if why := chosen.unavailable():
        raise EngineError(f"engine '{engine}' cannot be used here: {why}")
    rungs = chosen.ladder() if precision == "auto" else (precision,)
    if rungs[0] not in chosen.precisions:
        raise EngineError(f"engine '{engine}' cannot compute in {precision}; it can in {', '.join(chosen.precisions)}")
    compiled = chosen.compile(Program(module, tuple(example), name), rungs[0], threads)
    compiled.info = dataclasses.replace(compiled.info, build_s=time.perf_counter() - start, reason=reason)
    return compiled
