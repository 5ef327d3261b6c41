"""What a whole frame looks like, as one unit vector: places that look alike have vectors that point alike. No weights."""

from __future__ import annotations

from torch import Tensor, nn

from dino_perception.models.heads.weightless import WeightlessHead
from dino_perception.models.outputs import Output


class DescriptorHead(WeightlessHead):
    """Raw map: the mean (B, D) of the last layer's features over the image, without the padding of the network's input; a
    patch that is image in part counts in part. Final array: that at unit length, float32; the output size does not matter."""

    KIND = "descriptor"
    OUTPUTS = (Output("vector", "vector"),)
    ARCHES = {"mean": nn.Identity}
    shares = True

    def forward(self, features: Tensor, share: Tensor | None = None) -> Tensor:
        if share is None:
            return features.mean(dim=(2, 3))
        return (features * share[:, None]).sum(dim=(2, 3)) / share.sum(dim=(1, 2))[:, None].clamp_min(1e-6)

    def reduce(self, raw: Tensor, height: int, width: int) -> tuple[Tensor, ...]:
        return (raw * (raw * raw).sum(dim=-1, keepdim=True).clamp_min(1e-12).rsqrt(),)


HEAD = DescriptorHead
