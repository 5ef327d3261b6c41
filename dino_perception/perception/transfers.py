"""Between the host's memory and the device's: a frame goes up once, small arrays come back once.

On a GPU every copy is queued from or into pinned memory and nobody waits for it, so that the pass is one queue of work
from the image to the answers. The host waits once a pass, in `Home.arrive`. On a CPU the same calls copy nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch


class Uploads:
    """Images on their way to `device`, each through pinned memory of its slot, which is used again for the next image.

    The memory of a slot may be written again only when the copy out of it is over: after the pass was waited for.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self._pinned: dict[int, torch.Tensor] = {}

    def up(self, slot: int, image: np.ndarray) -> torch.Tensor:
        """An image (H, W, 3) uint8 on the device, as far as work queued after this call can tell."""
        flat = torch.from_numpy(np.ascontiguousarray(image)).flatten()
        if self.device.type != "cuda":
            return flat.view(image.shape).to(self.device)
        held = self._pinned.get(slot)
        if held is None or len(held) < len(flat):
            held = self._pinned[slot] = torch.empty(len(flat), dtype=torch.uint8, pin_memory=True)
        held[: len(flat)].copy_(flat)
        return held[: len(flat)].view(image.shape).to(self.device, non_blocking=True)


class Home:
    """Arrays on their way back from `device`; what `bring` gives may be read after `arrive`, until the next `bring` of
    the same name."""

    def __init__(self, device: torch.device):
        self.device = device
        self._pinned: dict[tuple, torch.Tensor] = {}
        self._sent = torch.cuda.Event() if device.type == "cuda" else None

    def bring(self, name: str, arrays: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Queue the copies of a head's arrays. `name` keeps apart what is on its way at the same time."""
        if self.device.type != "cuda":
            return list(arrays)
        found = []
        for index, array in enumerate(arrays):
            key = (name, index, tuple(array.shape), array.dtype)
            if key not in self._pinned:
                self._pinned[key] = torch.empty(array.shape, dtype=array.dtype, pin_memory=True)
            found.append(self._pinned[key].copy_(array, non_blocking=True))
        self._sent.record()
        return found

    def arrive(self) -> None:
        """Wait for everything that was brought: the one time that the host waits for the device in a pass. What other
        threads have queued since, such as the matching of the frame before, is not waited for."""
        if self._sent is not None:
            self._sent.synchronize()
