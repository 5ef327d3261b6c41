"""Images of any size into one uint8 batch in the network's input; normalisation happens inside the graph."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import torch
from torch.nn import functional

from dino_perception.perception.geometry import Letterbox
from dino_perception.perception.transfers import Uploads


class Preprocessor:
    """Letterboxes images into reused (B, height, width, 3) uint8 tensors on the engine's device.

    `colour` (RGB, 0..255) fills the padding: the backbone's mean colour, which normalises to zero. On a CPU OpenCV
    resizes; elsewhere each image is uploaded once and resized there.
    """

    def __init__(self, height: int, width: int, colour: Sequence[float], device: torch.device | str = "cpu"):
        self.height, self.width = height, width
        self.device = torch.device(device)
        self.colour = torch.tensor([round(c) for c in colour], dtype=torch.uint8, device=self.device)
        self._uploads = Uploads(self.device)
        self._batches: dict[int, torch.Tensor] = {}
        self._filled: dict[int, list[tuple[int, int]]] = {}  # content size of each slot: what lies outside is padding

    def __call__(
        self, images: Sequence[np.ndarray], boxes: Sequence[Letterbox], size: int | None = None
    ) -> torch.Tensor:
        """The batch of `size` slots (default: as many as images); slots without an image keep what they held.

        `images` are (H, W, 3) uint8. The tensor is valid until the next call for the same size.
        """
        size = size or len(images)
        if size not in self._batches:
            self._batches[size] = self.colour.expand(size, self.height, self.width, 3).contiguous()
            self._filled[size] = [(0, 0)] * size
        batch, filled = self._batches[size], self._filled[size]
        for slot, (image, box) in enumerate(zip(images, boxes)):
            content = (box.content_height, box.content_width)
            if filled[slot] != content:
                batch[slot] = self.colour
                filled[slot] = content
            target = batch[slot, : content[0], : content[1]]
            if self.device.type == "cpu":
                resize_into(np.ascontiguousarray(image), target.numpy())
            else:
                target.copy_(resize_tensor(self._uploads.up(slot, image), content))
        return batch


def resize_into(image: np.ndarray, target: np.ndarray) -> None:
    """Resizes `image` (H, W, 3) uint8 into `target` (h, w, 3) uint8, edges on edges.

    Shrinking halves first, which linear interpolation does as the mean of 2x2, and so never leaves pixels out. Measured
    against exact area averaging, 1080p to 640x360: 1.1 against 2.7 ms, with a quarter of plain interpolation's aliasing.
    """
    for height, width in _steps(image.shape[:2], target.shape[:2]):
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
    if image.shape == target.shape:
        np.copyto(target, image)
    else:
        cv2.resize(image, target.shape[1::-1], dst=target, interpolation=cv2.INTER_LINEAR)


def resize_tensor(image: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """The same in torch, for images that live on a GPU: (H, W, 3) uint8 to (h, w, 3) uint8."""
    if tuple(image.shape[:2]) == tuple(size):
        return image
    planes = image.permute(2, 0, 1)[None].float()
    for step in (*_steps(image.shape[:2], size), size):
        planes = functional.interpolate(planes, tuple(step), mode="bilinear", align_corners=False)
    return planes[0].round_().clamp_(0, 255).to(torch.uint8).permute(1, 2, 0)


def _steps(start: Sequence[int], end: Sequence[int]) -> list[tuple[int, int]]:
    """The sizes (h, w) on the way from `start` to `end`: halves as long as more than a half is left to shrink."""
    steps = []
    height, width = start
    while height > 2 * end[0] and width > 2 * end[1]:
        height, width = height // 2, width // 2
        steps.append((height, width))
    return steps
