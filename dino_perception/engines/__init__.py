"""How it is run: one runtime, one file, each checked against the float32 reference before it is used."""

from __future__ import annotations

from dino_perception.engines.base import Compiled, EngineError, EngineInfo
from dino_perception.engines.cache_folder import default_folder
from dino_perception.engines.ladder import ENGINES, build
from dino_perception.engines.parity import Gate, summary
from dino_perception.engines.parity_pictures import parity_inputs

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
