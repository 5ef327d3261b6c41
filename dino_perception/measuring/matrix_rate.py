"""How fast the machine multiplies matrices, in the precision and on the device of an engine: the floor under a pass."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

from dino_perception.engines.runtimes import RUNTIMES

SIDE, CHAIN = 1536, 6
"""Square matrices of this side, so many in a row: large enough for the full rate, 43 GFLOP."""


class MatrixRate:
    """Measures the rate with every library that could run the products; the fastest library counts."""

    def __init__(self, engine: str, precision: str, threads: int = 0):
        on_gpu = RUNTIMES[engine].on_gpu or (engine == "torch" and torch.cuda.is_available())
        self._runs = [_torch_chain(precision, "cuda", 8192)] if on_gpu else [_torch_chain(precision, "cpu", SIDE)]
        if not on_gpu and precision in ("float32", "bfloat16"):
            openvino = _openvino_chain(precision, threads)
            self._runs += [openvino] if openvino else []
        self._rates: list[list[float]] = [[] for _ in self._runs]

    def measure(self) -> None:
        for (run, work), rates in zip(self._runs, self._rates):
            start = time.perf_counter()
            run()
            rates.append(work / (time.perf_counter() - start) / 1e9)

    def clear(self) -> None:
        self._rates = [[] for _ in self._runs]

    @property
    def gflops(self) -> float:
        """The median over all measurements, of the fastest library."""
        return max(statistics.median(rates) for rates in self._rates)


def _torch_chain(precision: str, device: str, side: int) -> tuple[Callable[[], None], float]:
    dtype = {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(precision, torch.float32)
    weights = [(torch.randn(side, side, device=device) / side**0.5).to(dtype) for _ in range(CHAIN)]
    start = torch.randn(side, side, device=device).to(dtype)

    def run() -> None:
        with torch.inference_mode():
            x = start
            for weight in weights:
                x = x @ weight
        if device == "cuda":
            torch.cuda.synchronize()

    return run, 2.0 * side**3 * CHAIN


def _openvino_chain(precision: str, threads: int) -> tuple[Callable[[], None], float] | None:
    from dino_perception.engines.openvino import OpenVino, core, options

    engine = OpenVino()
    if engine.unavailable() or precision not in engine.ladder():
        return None
    import openvino
    from openvino import opset13

    rng = np.random.default_rng(0)
    start = opset13.parameter([SIDE, SIDE], np.float32)
    x = start
    for _ in range(CHAIN):
        weight = (rng.standard_normal((SIDE, SIDE)) / SIDE**0.5).astype(np.float32)
        x = opset13.matmul(x, opset13.constant(weight), False, False)
    request = (
        core().compile_model(openvino.Model([x], [start]), "CPU", options(precision, threads)).create_infer_request()
    )
    request.set_input_tensor(0, openvino.Tensor(rng.standard_normal((SIDE, SIDE)).astype(np.float32)))
    return request.infer, 2.0 * SIDE**3 * CHAIN
