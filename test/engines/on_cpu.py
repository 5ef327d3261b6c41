"""The ways of the `cuda` engine on the CPU, all but the CUDA graph itself: a child process finds this module by name."""

from __future__ import annotations

import os
import signal

import torch

from dino_perception.engines.cuda import Captured, CudaGraphs, Uncaptured


class _OnCpu:
    limit_s = 300.0

    def unavailable(self) -> str:
        return ""

    def device(self) -> torch.device:
        return torch.device("cpu")

    def identity(self) -> dict[str, str]:
        return {"torch": torch.__version__}


class CapturedOnCpu(_OnCpu, Captured):
    pass


class UncapturedOnCpu(_OnCpu, Uncaptured):
    pass


class CompiledOnCpu(_OnCpu, CudaGraphs):
    def rungs(self, precision):
        ways = {"compiled": self, "captured": CapturedOnCpu(), "eager": UncapturedOnCpu()}
        cuda = CudaGraphs.rungs(self, precision)
        return [(ways[way.way], each) for way, each in cuda]

    def ladder(self):
        return self.precisions


class CompiledThatDies(CompiledOnCpu):
    """What a package of the ahead-of-time inductor did on a GPU: it is built, and ends the process that loads it."""

    def build(self, program, precision, threads):
        return b"a package"

    def load(self, blob, example, precision, threads):
        os.kill(os.getpid(), signal.SIGSEGV)
