#!/usr/bin/env python3
"""Puts TensorRT-RTX and its Torch-TensorRT into .venv/opt/tensorrt-rtx, for tests that build with them on a CPU.

They are kept out of the environment itself, where the engines would take them for a TensorRT that runs here. Run by
`make test`; 100 MB once. Where they cannot be had, it says so in one line, and the tests that want them are skipped.
"""

from __future__ import annotations

import platform

from wheels_apart import ROOT, put

WHEELS = ROOT / "requirements" / "tensorrt-rtx.txt"

if __name__ == "__main__" and (platform.system(), platform.machine()) == ("Linux", "x86_64"):
    # Elsewhere there are no such wheels, and the tests say that they are skipped.
    put(
        ROOT / ".venv" / "opt" / "tensorrt-rtx",
        WHEELS.read_text(),
        ["-r", str(WHEELS)],
        "TensorRT-RTX cannot be had here, and the tests that build with it are skipped",
        "Installing TensorRT-RTX for the tests that build with it (100 MB)",
    )
