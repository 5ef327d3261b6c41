"""From a module to an engine that may be used: choose the runtime, try its precisions, let parity judge each.

Each rung of the ladder is an engine at one precision. It is loaded from the cache or built, compared with float32
torch, and taken when it passes the gate; else the next, safer one is tried. Nothing steps down silently: every step is
reported, the reason is part of the engine's `info`, and the numbers are stored beside the engine.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dino_perception.engines import identity
from dino_perception.engines.base import Compiled, Engine, EngineError, Program
from dino_perception.engines.cache import Entry
from dino_perception.engines.cache_folder import usable_folder
from dino_perception.engines.cuda import CudaGraphs
from dino_perception.engines.eager import Eager
from dino_perception.engines.openvino import OpenVino
from dino_perception.engines.parity import Gate, Reference, summary
from dino_perception.engines.parity_pictures import parity_inputs as default_inputs
from dino_perception.engines.tensorrt import TensorRt

ENGINES: dict[str, Engine] = {engine.name: engine for engine in (TensorRt(), CudaGraphs(), OpenVino(), Eager())}
"""Every runtime by name, in the order in which `auto` tries them."""

Inputs = Sequence[tuple[torch.Tensor, ...]]
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
    report: Callable[[str], None] = log.info,
) -> Compiled:
    """An engine for `module` at the shapes and dtypes of `example`, checked against float32 torch.

    `engine` and `precision` name a runtime and an arithmetic, or "auto": the first runtime that works here, and of its
    precisions the fastest that passes `gate`. A named precision that fails raises EngineError instead of stepping
    down, unless `override` is True and the engine is named too. `threads` 0 takes all cores (CPU only). `cache` is the
    folder of built engines; None builds anew every time. `name` is how messages and files call the graph.

    `parity_inputs` are the inputs to compare on, default bundled frames (or noise, for a graph of features). A list is
    compared on again when it differs from the one of the cached record; a function is called only when a build needs
    inputs. Slow when it builds (seconds to many minutes). Raises EngineError.
    """
    start = time.perf_counter()
    cache = usable_folder(Path(cache), report) if cache else None
    program = Program(module.eval(), tuple(example), name, cache)
    chosen, reason = _candidates(engine, precision)
    climb = _Climb(program, threads, cache, parity_inputs, gate, report)
    tried: list[str] = []
    for runtime in chosen:
        for rung in runtime.ladder() if precision == "auto" else (precision,):
            forced = override and engine != "auto"
            try:
                compiled, record, warm = climb.rung(runtime, rung, forced)
            except Exception as error:  # a runtime may fail in any way; the next one is the answer, and the log tells
                tried.append(f"{runtime.name} {rung}: {_first_line(error)}")
                log.debug("%s %s failed", runtime.name, rung, exc_info=True)
                report(f"{name}: engine {tried[-1]}")
                continue
            failures = gate.failures(record) if record else []
            if compiled is not None:
                why = f"{reason}; after {'; '.join(tried)}" if tried else reason
                if failures:
                    why = f"named with parity override although it failed: {'; '.join(failures)}"
                    report(f"{name}: engine {runtime.name} {rung} {why}")
                compiled.info = dataclasses.replace(
                    compiled.info,
                    build_s=time.perf_counter() - start,
                    from_cache=warm,
                    parity=record,
                    reason=why,
                    overridden=bool(failures),
                )
                report(
                    f"{name}: engine {runtime.name} {rung} {'loaded' if warm else 'built'} in "
                    f"{compiled.info.build_s:.1f} s; {summary(record)}"
                )
                return compiled
            tried.append(f"{runtime.name} {rung} failed parity: {'; '.join(failures)}")
            report(f"{name}: engine {tried[-1]}")
    hint = "; set parity_override to use it all the same" if any("parity" in line for line in tried) else ""
    raise EngineError(f"no engine of '{engine}' at precision '{precision}' may run {name}: {' | '.join(tried)}{hint}")


def _candidates(engine: str, precision: str) -> tuple[list[Engine], str]:
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
    before = list(missing)[: list(missing).index(able[0].name)]
    ahead = ", ".join(f"{name} ({missing[name] or f'no {precision}'})" for name in before)
    return able, "auto: the fastest runtime that works here" + (f"; not {ahead}" if ahead else "")


class _Climb:
    """One module's way up the ladder: what its rungs share."""

    def __init__(self, program: Program, threads: int, cache: Path | None, inputs, gate: Gate, report):
        self.program, self.threads, self.cache, self.gate, self.report = program, threads, cache, gate, report
        self.inputs = inputs
        self.references: dict[torch.device, Reference] = {}

    def rung(
        self, runtime: Engine, precision: str, forced: bool
    ) -> tuple[Compiled | None, dict[str, Any] | None, bool]:
        """(engine or None when it failed the gate, its parity record, loaded from the cache). May raise anything."""
        if runtime.name == "torch" and precision == "float32":  # the reference
            return runtime.compile(self.program, precision, self.threads), None, False
        if self.cache is None or not runtime.saves:
            compiled = runtime.compile(self.program, precision, self.threads)
            record = self._measured(runtime, compiled)
            return (compiled if forced or not self.gate.failures(record) else None), record, False
        entry = Entry(Path(self.cache), identity.describe(self.program, runtime, precision, self.threads))
        with entry.locked(self.report):
            found = self._cached(entry, runtime, precision, forced)
            return found if found else (*self._built(entry, runtime, precision, forced), False)

    def _cached(self, entry: Entry, runtime: Engine, precision: str, forced: bool):
        """What the cache says of this rung, or None when it must be built."""
        record, why = entry.read()
        if record and not forced and not record["blob"] and not self._other_inputs(record):
            if self.gate.failures(record["parity"]):
                return None, record["parity"], True  # known to fail: not built again only to fail again
            return None  # failed a stricter gate than today's
        if record and record["blob"]:
            blob, why = entry.blob(record)
            if blob is not None:
                try:
                    compiled = runtime.load(blob, self.program.example, precision, self.threads)
                    return self._judged(entry, record, runtime, compiled, forced)
                except Exception as error:
                    why = f"it does not load ({_first_line(error)})"
        if why:
            self.report(f"{self.program.name}: cached engine {entry.stem} is rebuilt: {why}")
        return None

    def _judged(self, entry: Entry, record: dict[str, Any], runtime: Engine, compiled: Compiled, forced: bool):
        parity = record["parity"]
        if self._other_inputs(record):
            parity = self._measured(runtime, compiled)
            with contextlib.suppress(OSError):  # a read-only cache: measured again next time
                entry.commit({**record, "parity": parity})
        passed = not self.gate.failures(parity)
        return (compiled if passed or forced else None), parity, True

    def _built(self, entry: Entry, runtime: Engine, precision: str, forced: bool):
        start = time.perf_counter()
        self.report(f"{self.program.name}: building engine {runtime.name} {precision}")
        blob, record = memoryview(runtime.build(self.program, precision, self.threads)), None
        try:
            record, blob = entry.store(blob)
        except OSError as error:  # costs the next start its time, not this one its engine
            self.report(f"{self.program.name}: the engine cannot be kept in {self.cache}: {error}")
        # What is checked is what later starts will run: the engine as it comes back from its bytes.
        compiled = runtime.load(blob, self.program.example, precision, self.threads)
        parity = self._measured(runtime, compiled)
        usable = forced or not self.gate.failures(parity)
        if record:
            record.update(parity=parity, build_s=round(time.perf_counter() - start, 3))
            try:
                entry.commit(record, keep_blob=usable)
            except OSError as error:  # a disk that is full now: the engine is none the worse
                self.report(f"{self.program.name}: the engine cannot be kept in {self.cache}: {error}")
        return (compiled if usable else None), parity

    def _other_inputs(self, record: dict[str, Any]) -> bool:
        """Whether the caller's frames are others than the record's. Frames that are not given are not asked for."""
        given = self.inputs is not None and not callable(self.inputs)
        return given and record["parity"].get("inputs") != identity.inputs_hash(self.inputs)

    def _measured(self, runtime: Engine, compiled: Compiled) -> dict[str, Any]:
        device = runtime.device()
        if device not in self.references:
            self.references[device] = Reference(self.program.module, self.inputs_now, device)
        return {**self.references[device].compare(compiled), "inputs": identity.inputs_hash(self.inputs_now)}

    @functools.cached_property
    def inputs_now(self) -> Inputs:
        if self.inputs is None:
            return default_inputs(self.program.example)
        return self.inputs() if callable(self.inputs) else self.inputs


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
