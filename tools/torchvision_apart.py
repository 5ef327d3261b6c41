#!/usr/bin/env python3
"""Puts torchvision's wheel into .venv/opt/torchvision, for the tests that compare with its detector.

It is kept out of the environment itself: its compiled part fits another build of torch than the tests', and other packages
would take it for one that works. 8 MB once; `python tools/torchvision_apart.py`. Where it cannot be had, it says so in one
line, and the tests that want it are skipped.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WANTED = "torchvision==0.28.0"  # of torch 2.13
FOLDER = ROOT / ".venv" / "opt" / "torchvision"


def main() -> int:
    stamp = FOLDER / "installed.txt"
    if stamp.is_file() and stamp.read_text() == WANTED:
        return 0
    shutil.rmtree(FOLDER, ignore_errors=True)
    pip = [str(ROOT / ".venv" / "bin" / "python"), "-m", "pip", "install", "--no-input", "--quiet", "--no-deps"]
    command = [*pip, "--retries", "1", "--timeout", "30", "--target", str(FOLDER), WANTED]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        why = (done.stderr.strip().splitlines() or ["pip did not say why"])[-1]
        print(f"torchvision cannot be had here, and the tests that compare with it are skipped: {why}", flush=True)
        shutil.rmtree(FOLDER, ignore_errors=True)
        return 0
    stamp.write_text(WANTED)
    return 0


if __name__ == "__main__":
    sys.exit(main())
