"""A process of its own in which engines are built, loaded for the first time and compared: seen from inside.

Orders come as lines of JSON on standard input, answers go out on what was standard output. Everything that a compiler,
a native library or Python itself prints goes to the log file of the order, down to the file descriptors.
"""

from __future__ import annotations

import ctypes
import faulthandler
import functools
import json
import os
import select
import sys
import threading
import time
from pathlib import Path
from typing import Any, NoReturn

IDLE_S = 5.0
"""The process ends after this many seconds without an order: it holds memory that the node's own engines can use."""


def main(parent: int) -> None:
    """Serve orders until there are none, the pipe closes or process `parent` is gone."""
    threading.Thread(target=_follow, args=(parent,), daemon=True).start()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    os.environ.setdefault("PYTHONUNBUFFERED", "1")

    def say(**answer: Any) -> None:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    while select.select([0], [], [], IDLE_S)[0]:
        line = _line()
        if not line:
            break
        order = json.loads(line)
        _log_to(order["log"])
        try:
            say(parity=_serve(order, say))
        except Exception as error:
            import traceback

            traceback.print_exc()
            text = str(error).strip() or type(error).__name__
            say(failed=text.splitlines()[0])
    _end()


def _serve(order: dict[str, Any], say) -> dict[str, Any]:
    import torch

    job = torch.load(order["job"], weights_only=False)  # written by the process that started this one
    torch.set_num_threads(job["torch_threads"])
    program, reference = _graph(order["graph"])
    engine, precision, threads = job["engine"], job["precision"], job["threads"]
    if not order["built"]:
        say(stage="building")
        Path(order["blob"]).write_bytes(engine.build(program, precision, threads))
        _flush()
    say(stage="loading")
    mapped = _mapped(Path(order["blob"]))
    compiled = engine.load(mapped, program.example, precision, threads)
    say(stage="comparing")
    record = reference(engine.device()).compare(compiled)
    compiled.close()
    _flush()
    return record


@functools.lru_cache(maxsize=1)
def _graph(path: str):
    """The program in a file, and a function of a device that gives its outputs in float32 there, computed once."""
    import torch

    from dino_perception.engines.base import Program
    from dino_perception.engines.parity import Reference

    found = torch.load(path, weights_only=False, mmap=True)
    example = tuple(torch.zeros(shape, dtype=dtype) for shape, dtype in found["example"])
    program = Program(found["module"].eval(), example, found["name"], found["scratch"])
    return program, functools.cache(lambda device: Reference(program.module, found["inputs"], device))


def _mapped(path: Path) -> memoryview:
    import mmap

    with open(path, "rb") as file:
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))


def _line() -> bytes:
    """One line of standard input, read byte by byte so that nothing waits unseen in a buffer."""
    line = b""
    while not line.endswith(b"\n"):
        byte = os.read(0, 1)
        if not byte:
            return b""
        line += byte
    return line


def _log_to(path: str) -> None:
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    _flush()
    os.dup2(log, 1), os.dup2(log, 2)
    os.close(log)
    faulthandler.enable(2)  # where Python was when native code died


def _flush() -> None:
    """What Python and the C library still hold of the output: native code prints through the latter."""
    sys.stdout.flush(), sys.stderr.flush()
    ctypes.CDLL(None).fflush(None)


def _follow(parent: int) -> None:
    """End with the parent, even one that was killed while native code keeps this process busy."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(0)


def _end() -> NoReturn:
    """Without the interpreter's tidying up, in which native libraries like to crash."""
    os._exit(0)
