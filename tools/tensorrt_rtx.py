#!/usr/bin/env python3
"""Puts TensorRT-RTX and its Torch-TensorRT into .venv/opt/tensorrt-rtx, for tests that build with them on a CPU.

They are kept out of the environment itself, where the engines would take them for a TensorRT that runs here. Run by
`make test`; 100 MB once. Where they cannot be had, it says so in one line, and the tests that want them are skipped.
"""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WHEELS = ROOT / "requirements" / "tensorrt-rtx.txt"
FOLDER = ROOT / ".venv" / "opt" / "tensorrt-rtx"


def main() -> int:
    stamp, wanted = FOLDER / "installed.txt", WHEELS.read_text()
    if stamp.is_file() and stamp.read_text() == wanted:
        return 0
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        return 0  # there are no such wheels, and the tests say that they are skipped
    print("Installing TensorRT-RTX for the tests that build with it (100 MB)", flush=True)
    shutil.rmtree(FOLDER, ignore_errors=True)
    pip = [str(ROOT / ".venv" / "bin" / "python"), "-m", "pip", "install", "--no-input", "--quiet", "--no-deps"]
    command = [*pip, "--retries", "1", "--timeout", "30", "--target", str(FOLDER), "-r", str(WHEELS)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        why = (done.stderr.strip().splitlines() or ["pip did not say why"])[-1]
        print(f"TensorRT-RTX cannot be had here, and the tests that build with it are skipped: {why}", flush=True)
        shutil.rmtree(FOLDER, ignore_errors=True)
        return 0
    stamp.write_text(wanted)
    return 0


if __name__ == "__main__":
    sys.exit(main())
