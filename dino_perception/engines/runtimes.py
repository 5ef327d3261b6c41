"""The runtimes by name, in the order in which `auto` tries them. A new one is its own file and a line here.

Nothing is imported, so that settings can be checked before torch is loaded.
"""

from __future__ import annotations

from typing import NamedTuple


class Runtime(NamedTuple):
    """Where a runtime's `Engine` is defined, and whether it needs a GPU."""

    module: str
    engine: str
    on_gpu: bool


RUNTIMES = {
    "tensorrt": Runtime("tensorrt", "TensorRt", True),
    "cuda": Runtime("cuda", "CudaGraphs", True),
    "openvino": Runtime("openvino", "OpenVino", False),
    "torch": Runtime("eager", "Eager", False),
}
