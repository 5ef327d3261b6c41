"""What a process says of its own memory, against an array whose size is known."""

import subprocess
import sys

from dino_perception.process_memory import peak, resident

GROW_AND_SHRINK = """
import numpy as np
from dino_perception.process_memory import peak, resident
before = resident()
held = np.ones(50_000_000, np.uint8)
during, most = resident(), peak()
del held
assert during - before > 40_000_000 and resident() < during - 40_000_000
assert min(most, peak()) > during - 2_000_000  # the kernel counts pages a little late
"""


def test_resident_memory_grows_and_shrinks_with_an_array_and_the_peak_stays():
    """In a process of its own: in this one another test may have told the allocator to keep what is freed."""
    done = subprocess.run([sys.executable, "-c", GROW_AND_SHRINK], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_process_that_is_gone_has_none():
    assert resident(2**22 + 1) is None and peak(2**22 + 1) is None
