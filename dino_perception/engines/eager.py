"""Engine `torch`: the module as it is, in float32. Slow, and the reference that every other engine is held against."""

from __future__ import annotations

import copy

import torch

from dino_perception.engines.base import Compiled, Engine, EngineInfo, Program


class Eager(Engine):
    name = "torch"
    precisions = ("float32", "bfloat16")
    saves = False

    def unavailable(self) -> str:
        return ""

    def device(self) -> torch.device:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def ladder(self) -> tuple[str, ...]:
        return ("float32",)

    def identity(self) -> dict[str, str]:
        return {"torch": torch.__version__}

    def compile(self, program: Program, precision: str, threads: int) -> Compiled:
        return EagerCompiled(program, precision, threads, self.device())


class EagerCompiled(Compiled):
    def __init__(self, program: Program, precision: str, threads: int, device: torch.device):
        super().__init__(program.example)
        self.device = device
        # A copy on another device: the caller's module stays on the CPU, where the next engine exports it.
        self.module = (program.module if device.type == "cpu" else copy.deepcopy(program.module).to(device)).eval()
        self.autocast = precision == "bfloat16"
        if threads and device.type == "cpu":
            torch.set_num_threads(threads)  # torch has one pool a process: the last engine built sets it
        name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
        self.info = EngineInfo("torch", precision, name)

    @torch.inference_mode()
    def run(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
            return tuple(self.module(*inputs))
