"""An engine that goes wrong in ways that no `try` catches: a child process finds this module by its name."""

from __future__ import annotations

import ctypes
import os
import signal
import time

import torch

from dino_perception.engines.base import Compiled, Engine, EngineInfo

FATAL = {"load": signal.SIGSEGV, "run": signal.SIGABRT, "killed": signal.SIGKILL}


class Deadly(Engine):
    """`faults` says what each precision does: "build" exits, "load" and "run" die of a signal, "hang" never loads,
    "fail" raises, "killed" is killed from outside while it builds, "loud" only talks, "slow" takes most of a second."""

    name = "deadly"
    precisions = ("bfloat16", "float16", "float32")
    isolated = True

    def __init__(self, faults=None, limit_s=60.0):
        self.faults, self.limit_s = faults or {}, limit_s

    def unavailable(self) -> str:
        return ""

    def device(self) -> torch.device:
        return torch.device("cpu")

    def identity(self) -> dict[str, str]:
        return {"deadly": "1"}

    def build(self, program, precision, threads) -> bytes:
        fault = self.faults.get(precision)
        if fault == "build":
            os._exit(7)
        if fault == "fail":
            raise RuntimeError("no kernel\nand a page of trace")
        if fault == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if fault == "slow":
            time.sleep(0.8)
        if fault == "loud":
            ctypes.CDLL(None).puts(b"a native library talks about kernels")
            print("a compiler warns", flush=True)
        return repr((os.getpid(), precision)).encode()

    def load(self, blob, example, precision, threads):
        fault = self.faults.get(precision)
        if fault == "load":
            os.kill(os.getpid(), signal.SIGSEGV)
        if fault == "hang":
            time.sleep(600)
        return Doubled(example, precision, fault == "run")


class Doubled(Compiled):
    def __init__(self, example, precision, dies):
        super().__init__(example)
        self.device, self.dies = torch.device("cpu"), dies
        self.info = EngineInfo("deadly", precision, "bench")

    def run(self, x):
        if self.dies:
            os.kill(os.getpid(), signal.SIGABRT)
        return (2 * x,)


class Double(torch.nn.Module):
    meanings = ("features",)

    def forward(self, x):
        return (2 * x,)
