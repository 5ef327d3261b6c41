"""From radiance to the bytes a camera delivers: lens, exposure, noise, tone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dino_perception.training.terrain.noise import stream, uniform


@dataclass(frozen=True)
class Sensor:
    """`blur` standard deviation in pixels of a 640 pixel wide image; `noise` relative to white at full signal."""

    exposure: float = 0.0
    """Stops from the middle exposure."""
    blur: float = 0.5
    vignette: float = 0.15
    noise: float = 0.008
    contrast: float = 1.0
    saturation: float = 1.0
    balance: tuple[float, float, float] = (1.0, 1.0, 1.0)

    @classmethod
    def draw(cls, seed: int) -> Sensor:
        rng = stream(seed, "sensor")
        return cls(
            exposure=uniform(rng, -0.6, 0.35),
            blur=uniform(rng, 0.35, 0.75),
            vignette=uniform(rng, 0.0, 0.35),
            noise=uniform(rng, 0.003, 0.02),
            contrast=uniform(rng, 0.9, 1.2),
            saturation=uniform(rng, 0.7, 1.05),
            balance=(uniform(rng, 0.95, 1.05), 1.0, uniform(rng, 0.94, 1.08)),
        )

    def develop(self, radiance: Tensor, middle: float, seed: int) -> Tensor:
        """(H, W, 3) radiance to (H, W, 3) uint8 sRGB; `middle` is the radiance that becomes middle grey."""
        height, width = radiance.shape[:2]
        device = radiance.device
        image = radiance.permute(2, 0, 1)[None]
        image = blur(image, self.blur * max(width / 640, 0.5))
        y = torch.linspace(-1, 1, height, device=device)[:, None] * height / width
        x = torch.linspace(-1, 1, width, device=device)[None, :]
        image = image * (1.0 - self.vignette * (x * x + y * y) / 1.56)
        balance = torch.tensor(self.balance, device=device).view(1, 3, 1, 1)
        image = image * balance * (0.19 * 2.0**self.exposure / middle)
        grey = (image * torch.tensor([0.30, 0.59, 0.11], device=device).view(1, 3, 1, 1)).sum(1, keepdim=True)
        image = (grey + (image - grey) * self.saturation).clamp_min(0.0)
        rng = torch.Generator(device=device).manual_seed(seed)
        grain = torch.randn(image.shape, generator=rng, device=device)
        image = image + grain * torch.sqrt(self.noise**2 * image.clamp_max(1.0) + (0.35 * self.noise) ** 2)
        # A soft shoulder keeps bright sand and sky from clipping hard.
        image = torch.where(image > 0.5, 0.5 + 0.5 * (1 - torch.exp(-(image - 0.5) / 0.5)), image.clamp_min(0.0))
        coded = torch.where(image <= 0.0031308, 12.92 * image, 1.055 * image.clamp_min(1e-6) ** (1 / 2.4) - 0.055)
        coded = ((coded - 0.45) * self.contrast + 0.45).clamp(0, 1)
        return (coded[0] * 255.0 + 0.5).to(torch.uint8).permute(1, 2, 0).contiguous()


def blur(image: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of (1, C, H, W)."""
    if sigma < 0.2:
        return image
    radius = max(1, int(2.5 * sigma + 0.5))
    x = torch.arange(-radius, radius + 1, device=image.device, dtype=image.dtype)
    kernel = torch.exp(-0.5 * (x / sigma) ** 2)
    kernel = kernel / kernel.sum()
    channels = image.shape[1]
    image = F.pad(image, (radius,) * 4, mode="replicate")
    image = F.conv2d(image, kernel.view(1, 1, 1, -1).repeat(channels, 1, 1, 1), groups=channels)
    return F.conv2d(image, kernel.view(1, 1, -1, 1).repeat(channels, 1, 1, 1), groups=channels)
