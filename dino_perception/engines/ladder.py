"""From a module to an engine that may be used: choose the runtime, try its precisions, let parity judge each.

Each rung of the ladder is an engine at one precision. It is loaded from the cache or built, compared with float32
torch, and taken when it passes the gate; else the next, safer one is tried. Nothing steps down silently: every step is
reported, the reason is part of the engine's `info`, and the numbers are stored beside the engine.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import logging
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from dino_perception.engines.base import Compiled, Engine, EngineError, Program
from dino_perception.engines.cache_folder import usable_folder
from dino_perception.engines.parity import Gate, summary
from dino_perception.engines.rung import Climb, Inputs, first_line
from dino_perception.engines.runtimes import RUNTIMES

ENGINES: dict[str, Engine] = {
    name: getattr(importlib.import_module(f"{__package__}.{home.module}"), home.engine)()
    for name, home in RUNTIMES.items()
}
"""Every runtime by name, in the order in which `auto` tries them."""

log = logging.getLogger(__name__)


def build(
    module: nn.Module,
    example: tuple[torch.Tensor, ...],
    *,
    engine: str = "auto",
    precision: str = "auto",
    threads: int = 0,
    cache: Path | None = None,
    override: bool = False,
    name: str = "backbone",
    parity_inputs: Inputs | Callable[[], Inputs] | None = None,
    gate: Gate = Gate(),
    beside: Compiled | None = None,
    rebuild: bool = False,
    report: Callable[[str], None] = log.info,
) -> Compiled:
    """An engine for `module` at the shapes and dtypes of `example`, checked against float32 torch.

    `engine` and `precision` name a runtime and an arithmetic, or "auto": the first runtime that works here, and of its
    precisions the fastest that passes `gate`. A named precision that fails raises EngineError instead of stepping
    down, unless `override` is True and the engine is named too. `threads` 0 takes all cores (CPU only). `cache` is the
    folder of built engines; None builds anew every time. `name` is how messages and files call the graph.

    `parity_inputs` are the inputs to compare on, default bundled frames (or noise, for a graph of features). A list is
    compared on again when it differs from the one of the cached record; a function is called only when a build needs
    inputs. `beside` is a graph whose outputs this one reads: "auto" then begins with its runtime and stays on its
    device. `rebuild` builds what the cache has, and tries again what once died.

    A runtime that could take the process down is built and first loaded in a child process. Slow when it builds (seconds
    to many minutes). Raises EngineError.
    """
    start = time.perf_counter()
    cache = usable_folder(Path(cache), report) if cache else None
    program = Program(module.eval(), tuple(example), name, cache)
    chosen, reason = _candidates(engine, precision, beside)
    climb = Climb(program, threads, cache, parity_inputs, gate, report, override and engine != "auto", rebuild)
    tried: list[str] = []
    with contextlib.closing(climb):
        for runtime, rung in [step for each in chosen for step in each.rungs(precision)]:
            label = runtime.label(rung)
            try:
                compiled, record, warm = climb.rung(runtime, rung)
            except Exception as error:  # a runtime may fail in any way; the next one is the answer, and the log tells
                tried.append(f"{label}: {first_line(error)}")
                log.debug("%s failed", label, exc_info=True)
                report(f"{name}: engine {tried[-1]}")
                continue
            failures = gate.failures(record) if record else []
            if compiled is None:
                tried.append(f"{label} failed parity: {'; '.join(failures)}")
                report(f"{name}: engine {tried[-1]}")
                continue
            why = f"{reason}; after {'; '.join(tried)}" if tried else reason
            if failures:
                why = f"named with parity override although it failed: {'; '.join(failures)}"
                report(f"{name}: engine {label} {why}")
            compiled.info = dataclasses.replace(
                compiled.info,
                way=runtime.way,
                build_s=time.perf_counter() - start,
                from_cache=warm,
                parity=record,
                reason=why,
                overridden=bool(failures),
            )
            report(
                f"{name}: engine {label} {'loaded' if warm else 'built'} in "
                f"{compiled.info.build_s:.1f} s; {summary(record)}"
            )
            return compiled
    hint = "; set parity_override to use it all the same" if any("parity" in line for line in tried) else ""
    raise EngineError(f"no engine of '{engine}' at precision '{precision}' may run {name}: {' | '.join(tried)}{hint}")


def _candidates(engine: str, precision: str, beside: Compiled | None = None) -> tuple[list[Engine], str]:
    """The runtimes to try, in order, and why these. Raises EngineError."""
    if engine != "auto":
        if engine not in ENGINES:
            raise EngineError(f"there is no engine '{engine}'; accepted are auto, {', '.join(ENGINES)}")
        runtime = ENGINES[engine]
        if why := runtime.unavailable():
            raise EngineError(f"engine '{engine}' cannot be used here: {why}")
        if precision != "auto" and precision not in runtime.precisions:
            raise EngineError(
                f"engine '{engine}' does not compute in {precision}; accepted are auto, {', '.join(runtime.precisions)}"
            )
        return [runtime], "named by the user"
    missing = {runtime.name: runtime.unavailable() for runtime in ENGINES.values()}
    able = [
        runtime
        for runtime in ENGINES.values()
        if not missing[runtime.name] and precision in ("auto", *runtime.precisions)
    ]
    if not able:
        raise EngineError(f"no engine that works here computes in {precision}; set precision to auto or float32")
    if beside is not None:
        known = [runtime.name for runtime in able]
        able = able[known.index(beside.info.engine) if beside.info.engine in known else 0 :]
        able = [runtime for runtime in able if runtime.device().type == beside.device.type] or able
        return able, f"auto: beside the graph on {beside.info.engine}"
    before = list(missing)[: list(missing).index(able[0].name)]
    ahead = ", ".join(f"{name} ({missing[name] or f'no {precision}'})" for name in before)
    return able, "auto: the fastest runtime that works here" + (f"; not {ahead}" if ahead else "")
