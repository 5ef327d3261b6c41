"""A function of tensors as one CUDA graph a set of shapes; elsewhere the function itself."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor


class CapturedFunction:
    """Calls `function(static, tensors)`. On a GPU the second call of the same shapes is captured, and replayed from then on: its
    thousands of small kernels would take longer to launch than to run. What it returns there is valid until the next call."""

    def __init__(self, function: Callable[[Hashable, list[Tensor]], tuple[Tensor, ...]]):
        self._function = function
        self._graphs: dict[Hashable, tuple | None] = {}

    def __call__(self, static: Hashable, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        tensors = list(tensors)
        if tensors[0].device.type != "cuda":
            return self._function(static, tensors)
        key = (static, *((t.shape, t.dtype) for t in tensors))
        if key not in self._graphs:
            self._graphs[key] = None
            return self._function(static, tensors)
        if self._graphs[key] is None:
            self._graphs[key] = self._capture(static, [t.clone() for t in tensors])
        graph, inputs, outputs = self._graphs[key]
        for own, given in zip(inputs, tensors):
            own.copy_(given)
        graph.replay()
        return outputs

    def _capture(self, static: Hashable, inputs: list[Tensor]) -> tuple:
        graph = torch.cuda.CUDAGraph()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self._function(static, inputs)  # plans of FFTs and matrix products are made outside of the capture
        torch.cuda.current_stream().wait_stream(stream)
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            outputs = self._function(static, inputs)
        return graph, inputs, outputs
