"""A process of its own in which engines are built, loaded for the first time and compared: seen from outside.

Code that a compiler has just made can end the process that loads it, and a runtime's builder can run out of memory or
never return. None of that may be the end of a node. So an isolated engine (`Engine.isolated`) is made in a child
process, which loads and runs it and measures its parity; only what survived there is loaded here. A child that dies,
hangs or fails is a rung of the ladder that did not hold, in one sentence, and what it printed is in a log file.

There is one child for all builds of a start, because importing torch costs it two seconds. It goes away by itself when
there is nothing to do for some seconds, and when this process ends, however it ends.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dino_perception.engines.base import Engine, EngineError

PROGRESS_S = 15.0
"""A build that is still running is reported every time this many seconds have passed."""

STARTING, START_LIMIT_S = "starting", 120.0

FROM_OUTSIDE = {signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
"""Signals that say nothing of the engine: somebody stopped the build, or the system ran out of memory."""


class BuildDied(EngineError):
    """The child process died or hung. `deadly` is True when the engine is to blame, so that it must not be tried again
    as it is."""

    def __init__(self, sentence: str, deadly: bool):
        super().__init__(sentence)
        self.deadly = deadly


@dataclass
class Graph:
    """What the child must know of a graph: written to a file once and used for every rung of the ladder.

    `inputs` are those that engines are compared on. Raises EngineError when the module cannot be written.
    """

    module: nn.Module
    example: Sequence[torch.Tensor]
    name: str
    scratch: Path | None
    inputs: Callable[[], Sequence[tuple[torch.Tensor, ...]]]
    folder: str = field(default="", init=False)

    def file(self) -> Path:
        if not self.folder:
            folder = tempfile.mkdtemp(prefix="dino_perception-build-")
            content = {
                "module": self.module,
                "example": [(tuple(t.shape), t.dtype) for t in self.example],
                "name": self.name,
                "scratch": self.scratch,
                "inputs": [tuple(t.cpu() for t in tensors) for tensors in self.inputs()],
            }
            try:
                torch.save(content, Path(folder, "graph.pt"))
            except Exception as error:  # whatever pickle finds, each of its own type
                shutil.rmtree(folder, ignore_errors=True)
                raise EngineError(f"{self.name} cannot be handed to another process: {error}") from None
            self.folder = folder
        return Path(self.folder, "graph.pt")

    def close(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder = ""


class BuildProcess:
    """The child, started when it is first needed. One build at a time; a second caller waits."""

    def __init__(self):
        self._lock = threading.Lock()
        self._child: subprocess.Popen | None = None

    def build(
        self, graph: Graph, engine: Engine, precision: str, threads: int, blob: Path, log: Path,
        report: Callable[[str], None], expected_s: float | None = None, built: bool = False,
    ) -> dict[str, Any]:  # fmt: skip
        """Build `engine` into the file `blob`, load it from there, run and compare it: the parity record. With `built` it is
        in the file already.

        Whatever the build prints goes to the file `log`. Raises BuildDied, or EngineError with the child's own error.
        """
        job = Path(graph.file()).with_name("job.pt")
        torch.save(
            {"engine": engine, "precision": precision, "threads": threads, "torch_threads": torch.get_num_threads()},
            job,
        )
        order = {"graph": str(graph.file()), "job": str(job), "blob": str(blob), "log": str(log), "built": built}
        with self._lock:
            try:
                return self._run(order, engine, f"{graph.name}: engine {engine.label(precision)}", report, expected_s)
            except BaseException:
                self.close()  # a child that failed may hold anything; Ctrl-C leaves one that is still busy
                raise

    def close(self) -> None:
        """End the child."""
        child, self._child = self._child, None
        if child is not None:
            child.kill()
            child.wait()
            for pipe in (child.stdin, child.stdout):
                with contextlib.suppress(OSError):
                    pipe.close()

    def _run(self, order, engine: Engine, what: str, report, expected_s: float | None) -> dict[str, Any]:
        self._send(order)
        start, told, stage = time.monotonic(), PROGRESS_S, STARTING
        for line in self._lines():
            passed = time.monotonic() - start
            if line is None:
                if passed > (engine.limit_s if stage != STARTING else max(engine.limit_s, START_LIMIT_S)):
                    raise BuildDied(
                        f"its process hung while {stage} it (no result in {passed:.0f} s); see {order['log']}",
                        stage != STARTING,
                    )
                if passed > told:
                    told += PROGRESS_S
                    report(still(what, stage, passed, expected_s, f", at most {engine.limit_s:.0f} s"))
            elif "stage" in line:
                if stage == STARTING:
                    start, told = time.monotonic(), PROGRESS_S
                stage = line["stage"]
            elif "failed" in line:
                raise EngineError(line["failed"])
            else:
                return line["parity"]
        code = self._child.wait()
        self.close()
        if stage == STARTING and code == 0:  # it went away for want of work while it was given some
            return self._run(order, engine, what, report, expected_s)
        raise BuildDied(
            f"its process {died(code)} while {stage} it; see {order['log']}", stage != STARTING and deadly(code)
        )

    def _send(self, order: dict[str, str]) -> None:
        if self._child is None or self._child.poll() is not None:
            self.close()
            self._child = _started(order["log"])
        with contextlib.suppress(BrokenPipeError):  # then reading finds that it has gone
            self._child.stdin.write((json.dumps(order) + "\n").encode())
            self._child.stdin.flush()

    def _lines(self):
        """What the child says, one dict a line; None about once a second while it says nothing. Ends when it dies."""
        pipe, pending = self._child.stdout.fileno(), b""
        while True:
            if not select.select([pipe], [], [], 0.5)[0]:
                yield None
                continue
            received = os.read(pipe, 1 << 16)
            if not received:
                return
            *whole, pending = (pending + received).split(b"\n")
            yield from map(json.loads, whole)


@contextlib.contextmanager
def reminding(report: Callable[[str], None], what: str, stage: str, expected_s: float | None) -> Iterator[None]:
    """While the block is at work in this process: a line every `PROGRESS_S`, from a thread of its own."""
    done, start = threading.Event(), time.monotonic()

    def remind() -> None:
        while not done.wait(PROGRESS_S):
            report(still(what, stage, time.monotonic() - start, expected_s))

    thread = threading.Thread(target=remind, name="build progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def still(what: str, stage: str, passed_s: float, expected_s: float | None, unknown: str = "") -> str:
    """The line about a build that goes on. `expected_s` is how long the last one took, `unknown` what to say without."""
    about = unknown
    if expected_s:
        about = (
            f" of about {expected_s:.0f} s"
            if passed_s < expected_s
            else f", longer than the {expected_s:.0f} s of last time"
        )
    return f"{what} is still {stage}: {passed_s:.0f} s{about}"


def died(code: int) -> str:
    """How a process ended, in words, from what `Popen.wait` gave."""
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"died of {signal.Signals(-code).name}"
    except ValueError:
        return f"died of signal {-code}"


def deadly(code: int) -> bool:
    return code >= 0 or -code not in {int(s) for s in FROM_OUTSIDE}


def _started(log: str) -> subprocess.Popen:
    """A child with this process's import path, in a session of its own (Ctrl-C is for us, and we end it)."""
    if not sys.executable:
        raise EngineError("this Python does not know its own executable, so engines cannot be built in another process")
    code = "import json, sys; sys.path[:] = json.loads(sys.argv.pop()); from {} import main; main({})"
    with open(log, "ab") as stderr:
        return subprocess.Popen(
            [
                sys.executable,
                "-c",
                code.format("dino_perception.engines.build_process_main", os.getpid()),
                json.dumps([str(Path(part).absolute()) for part in sys.path]),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            start_new_session=True,
        )


BUILDS = BuildProcess()
"""The one that all starts of this process share."""

atexit.register(BUILDS.close)
