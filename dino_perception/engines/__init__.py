"""How it is run: one runtime, one file, each checked against the float32 reference before it is used.

What is named here is imported when it is first asked for: the names of the engines are there without torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dino_perception.engines.base import Compiled, EngineError, EngineInfo
    from dino_perception.engines.cache_folder import default_folder
    from dino_perception.engines.ladder import ENGINES, build
    from dino_perception.engines.parity import Gate, summary
    from dino_perception.engines.parity_pictures import parity_inputs

_HOMES = {
    "ENGINES": "ladder",
    "Compiled": "base",
    "EngineError": "base",
    "EngineInfo": "base",
    "Gate": "parity",
    "build": "ladder",
    "default_folder": "cache_folder",
    "parity_inputs": "parity_pictures",
    "summary": "parity",
}

__all__ = [
    "ENGINES",
    "Compiled",
    "EngineError",
    "EngineInfo",
    "Gate",
    "build",
    "default_folder",
    "parity_inputs",
    "summary",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
