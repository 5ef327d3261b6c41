"""How it is run: one runtime, one file, each checked against the float32 reference before it is used."""

from __future__ import annotations

from dino_perception.engines.base import Compiled, EngineError, EngineInfo
from dino_perception.engines.ladder import ENGINES, build

__all__ = ["ENGINES", "Compiled", "EngineError", "EngineInfo", "build"]
