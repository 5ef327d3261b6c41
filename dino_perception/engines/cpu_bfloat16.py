"""Which arithmetic is fast on this processor: a short measurement tells what its list of instructions does not."""

from __future__ import annotations

import functools
import time

import torch

GAIN = 1.1
"""bfloat16 must be this many times as fast to be worth its rounding; where it pays, it is nearly twice as fast."""


@functools.cache
def bfloat16_pays() -> bool:
    """Whether this CPU multiplies matrices faster in bfloat16 than in float32. Takes 0.2 s at most, once a process.

    With a matrix unit (Intel's AMX) or full-rate products (AMD's Zen 4) it is about twice as fast or more. Without the
    unit, which virtual machines often hide, an Intel Xeon that lists the instructions is slower by a third or more.
    """
    pairs = {dtype: torch.ones(2, 512, 512, dtype=dtype) for dtype in (torch.float32, torch.bfloat16)}
    best = dict.fromkeys(pairs, float("inf"))
    for turn in range(9):  # in turns, so that a busy moment hits both; the first is for warming up
        for dtype, (a, b) in pairs.items():
            start = time.perf_counter()
            a @ b
            took = time.perf_counter() - start
            if turn:
                best[dtype] = min(best[dtype], took)
    return best[torch.float32] > GAIN * best[torch.bfloat16]
