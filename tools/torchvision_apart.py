#!/usr/bin/env python3
"""Puts torchvision's wheel into .venv/opt/torchvision, for the tests that compare with its detector.

It is kept out of the environment itself: its compiled part fits another build of torch than the tests', and other packages
would take it for one that works. 8 MB once; `python tools/torchvision_apart.py`. Where it cannot be had, it says so in one
line, and the tests that want it are skipped.
"""

from __future__ import annotations

from wheels_apart import ROOT, put

WANTED = "torchvision==0.28.0"  # of torch 2.13

if __name__ == "__main__":
    put(
        ROOT / ".venv" / "opt" / "torchvision",
        WANTED,
        [WANTED],
        "torchvision cannot be had here, and the tests that compare with it are skipped",
    )
