"""One rung of the ladder: an engine at one precision, from the cache or built, and compared with float32 torch."""

from __future__ import annotations

import contextlib
import functools
import mmap
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from dino_perception.engines import cache as engine_cache
from dino_perception.engines import identity
from dino_perception.engines.base import Compiled, Engine, EngineError, Program
from dino_perception.engines.build_process import BUILDS, BuildDied, Graph, reminding
from dino_perception.engines.cache import CachedEngine
from dino_perception.engines.parity import Gate, Reference
from dino_perception.engines.parity_pictures import parity_inputs as default_inputs

Inputs = Sequence[tuple[torch.Tensor, ...]]

MOST_DEATHS = 3
"""An engine is given up when this many processes have ended with it in hand, although it survived on its own."""

AGAIN = "it is not tried again until something of it changes; `dino-perception compile --force` tries at once"


class Climb:
    """One module's way up the ladder: what its rungs share. `forced` keeps engines that fail the gate; `rebuild` builds
    what the cache has."""

    def __init__(
        self, program: Program, threads: int, cache: Path | None, inputs, gate: Gate, report: Callable[[str], None],
        forced: bool = False, rebuild: bool = False,
    ):  # fmt: skip
        self.program, self.threads, self.cache, self.gate, self.report = program, threads, cache, gate, report
        self.inputs, self.forced, self.rebuild = inputs, forced, rebuild
        self.references: dict[torch.device, Reference] = {}
        self.graph = Graph(program.module, program.example, program.name, program.scratch, lambda: self.inputs_now)

    def close(self) -> None:
        self.graph.close()

    def rung(self, runtime: Engine, precision: str) -> tuple[Compiled | None, dict[str, Any] | None, bool]:
        """(engine or None when it failed the gate, its parity record, loaded from the cache). May raise anything."""
        if runtime.name == "torch" and precision == "float32":  # the reference
            return runtime.compile(self.program, precision, self.threads), None, False
        if not runtime.saves:
            compiled = runtime.compile(self.program, precision, self.threads)
            record = self._measured(runtime, compiled)
            return (compiled if self._passes(record) else None), record, False
        if self.cache is None:
            return *self._built(None, runtime, precision, runtime.isolated), False
        entry = CachedEngine(Path(self.cache), identity.describe(self.program, runtime, precision, self.threads))
        with entry.locked(self.report), entry.tried() as deaths:
            # A process ended hard while it had this engine in hand: whatever the engine, look from outside first.
            apart = runtime.isolated or deaths > 0
            if deaths >= MOST_DEATHS and not self.rebuild:
                engine_cache.mark(entry, f"{deaths} processes ended while they built or loaded it")
            found = None if self.rebuild else self._cached(entry, runtime, precision, deaths > 0)
            return found if found else (*self._built(entry, runtime, precision, apart), False)

    def _cached(self, entry: CachedEngine, runtime: Engine, precision: str, suspicious: bool = False):
        """What the cache says of this rung, or None when it must be built. Raises EngineError for one that died."""
        record, why = entry.read()
        if record and record.get("died"):
            raise EngineError(f"{record['died']}; {AGAIN}")
        if record and not self.forced and not record["blob"] and not self._other_inputs(record):
            if self.gate.failures(record["parity"]):
                return None, record["parity"], True  # known to fail: not built again only to fail again
            return None  # failed a stricter gate than today's
        if record and record["blob"]:
            blob, why = entry.blob(record)
            if blob is not None:
                if suspicious and self._can_be_handed_over():
                    self._apart(entry, runtime, precision, entry.folder / record["blob"], None, built=True)
                try:
                    compiled = runtime.load(blob, self.program.example, precision, self.threads)
                    return self._judged(entry, record, runtime, compiled)
                except Exception as error:
                    why = f"it does not load ({first_line(error)})"
        if why:
            self.report(f"{self.program.name}: cached engine {entry.stem} is rebuilt: {why}")
        return None

    def _judged(self, entry: CachedEngine, record: dict[str, Any], runtime: Engine, compiled: Compiled):
        parity = record["parity"]
        if self._other_inputs(record):
            parity = self._measured(runtime, compiled)
            with contextlib.suppress(OSError):  # a read-only cache: measured again next time
                entry.commit({**record, "parity": parity})
        return (compiled if self._passes(parity) else None), parity, True

    def _built(self, entry: CachedEngine | None, runtime: Engine, precision: str, apart: bool):
        """(the engine as it came back from its bytes, which is what later starts will run; its parity record)."""
        start = time.perf_counter()
        expected = engine_cache.build_time(entry.folder, entry.description) if entry else None
        about = f", about {expected:.0f} s the last time" if expected else ""
        self.report(f"{self.program.name}: building engine {runtime.label(precision)}{about}")
        parity = None
        if apart and self._can_be_handed_over():
            path = self.graph.file().with_name("engine")
            parity = self._apart(entry, runtime, precision, path, expected)
            with open(path, "rb") as file:
                blob = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))
            path.unlink()
        else:
            what = f"{self.program.name}: engine {runtime.label(precision)}"
            with reminding(self.report, what, "building", expected):
                blob = memoryview(runtime.build(self.program, precision, self.threads))
        record = None
        try:
            if entry:
                record, blob = entry.store(blob)
        except OSError as error:  # costs the next start its time, not this one its engine
            self.report(f"{self.program.name}: the engine cannot be kept in {self.cache}: {error}")
        compiled = runtime.load(blob, self.program.example, precision, self.threads)
        parity = parity or self._measured(runtime, compiled)
        usable = self._passes(parity)
        if record:
            record.update(parity=parity, build_s=round(time.perf_counter() - start, 3))
            try:
                entry.commit(record, keep_blob=usable)
            except OSError as error:  # a disk that is full now: the engine is none the worse
                self.report(f"{self.program.name}: the engine cannot be kept in {self.cache}: {error}")
        return (compiled if usable else None), parity

    def _apart(
        self, entry: CachedEngine | None, runtime: Engine, precision: str, blob: Path, expected: float | None,
        built: bool = False,
    ) -> dict[str, Any]:  # fmt: skip
        """The parity record from the child process, which leaves the engine in the file `blob`, or finds it there when it
        is `built` already. Raises EngineError; an engine that died is marked in the cache."""
        log = _log_file(entry)
        try:
            parity = BUILDS.build(
                self.graph, runtime, precision, self.threads, blob, log, self.report, expected, built
            )  # fmt: skip
        except BuildDied as error:
            if entry and error.deadly:
                with contextlib.suppress(OSError):
                    engine_cache.mark(entry, str(error))
            raise
        if not entry or log.parent != entry.folder:
            log.unlink(missing_ok=True)
        return {**parity, "inputs": identity.inputs_hash(self.inputs_now)}

    def _can_be_handed_over(self) -> bool:
        try:
            self.graph.file()
        except EngineError as error:
            self.report(f"{first_line(error)}; the engine is built in this one")
            return False
        return True

    def _passes(self, parity: dict[str, Any]) -> bool:
        return self.forced or not self.gate.failures(parity)

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


def first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def _log_file(entry: CachedEngine | None) -> Path:
    """An empty file for what the build prints: beside the engine, or where temporary files go."""
    if entry:
        try:
            entry.folder.mkdir(parents=True, exist_ok=True)
            entry.log_path.write_bytes(b"")
            return entry.log_path
        except OSError:
            pass
    handle, path = tempfile.mkstemp(prefix="dino_perception-build-", suffix=".log")
    os.close(handle)
    return Path(path)
