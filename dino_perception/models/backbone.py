"""What every frozen backbone offers: a fixed-shape graph from raw pixels to feature maps, and a hash of its weights."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from dino_perception.models.catalog import BackboneSpec
from dino_perception.models.taps import Tap, outputs, tap


class Backbone(nn.Module):
    """The weights of one backbone. `at` gives the graph that computes with them.

    `spec` is its catalogue entry and `trained` says whether the weights came from a file.
    """

    DERIVED = ("_hash",)  # attributes that follow from the others and say nothing about the graph

    def __init__(self, spec: BackboneSpec):
        super().__init__()
        self.spec = spec
        self.trained = False
        self._hash: tuple[list, str] | None = None

    def at(
        self,
        height: int,
        width: int,
        taps: Sequence[int | Tap],
        *,
        norm: bool = True,
        pixels: str = "uint8",
        extras: Sequence[str] = (),
    ) -> FixedBackbone:
        """The graph for images of `height` x `width` pixels, sharing these parameters.

        Its `forward` takes (B, H, W, 3) uint8 RGB, or with `pixels="float"` (B, 3, H, W) float32 that is already
        normalised, and returns one float32 map (B, C, H/stride, W/stride) a tap, in the order of `taps`, then the CLS
        token (B, C) of every tap that asks for it, in the same order. A tap may be a 0-based layer index: then `norm`
        says whether the final norm is applied, as DINOv3's heads expect, and `extras` may name "cls". With "registers"
        among `extras`, the registers (B, R, C) of every tap come last. Raises ValueError when a size, tap or extra does
        not fit the backbone.
        """
        spec = self.spec
        taps = tuple(tap(t, norm, "cls" in extras) for t in taps)
        if height <= 0 or width <= 0 or height % spec.stride or width % spec.stride:
            good = [max(1, round(side / spec.stride)) * spec.stride for side in (height, width)]
            raise ValueError(
                f"{height}x{width} pixels do not fit {spec.id}, whose sides must be multiples of "
                f"{spec.stride}; {good[0]}x{good[1]} does"
            )
        if not taps or any(not 0 <= t.layer < spec.depth for t in taps):
            raise ValueError(
                f"taps {[t.layer for t in taps]} do not fit {spec.id}; accepted are layers 0 to {spec.depth - 1}"
            )
        if pixels not in ("uint8", "float"):
            raise ValueError(f"pixels is '{pixels}'; accepted are uint8 and float")
        known = ("cls", "registers") if spec.registers else ("cls",)
        if unknown := [name for name in extras if name not in known]:
            raise ValueError(f"{spec.id} has no extra '{unknown[0]}'; accepted are {', '.join(known)}")
        return self._fixed(height, width, taps, pixels, "registers" in extras)

    @property
    def weights_hash(self) -> str:
        """First 16 hex digits of a sha256 over names, shapes and float32 values of the parameters.

        The same weights give the same hash whichever file format they came from; the rotary periods, which formats
        store rounded differently, are not part of it.
        """
        state = [(p.data_ptr(), p._version, p.requires_grad) for p in self.parameters()]
        if self._hash is None or self._hash[0] != state or any(trains for *_, trains in state):
            self._hash = state, hash_of(dict(self.named_parameters()))
        return self._hash[1]

    def draw(self) -> None:
        """Fill the parameters with random values that depend only on the id, so that features vary with the image.

        Matrices keep the variance of their input; LayerScale is drawn from 0.1 to 1, because at its usual start
        (1e-5) every block would be switched off.
        """
        generator = torch.Generator().manual_seed(zlib.crc32(self.spec.id.encode()))
        with torch.no_grad():
            for name, p in self.named_parameters():
                leaf = name.rsplit(".", 1)[-1]
                if leaf in ("scale1", "scale2", "gamma"):
                    p.uniform_(0.1, 1.0, generator=generator)
                elif p.dim() >= 2 and leaf == "weight":
                    p.normal_(0, p[0].numel() ** -0.5, generator=generator)
                elif leaf == "weight":  # of a norm
                    p.uniform_(0.8, 1.2, generator=generator)
                else:  # biases, CLS, registers, positions
                    p.normal_(0, 0.02, generator=generator)
                if name.endswith("qkv.bias") and self.spec.family == "dinov3-vit":
                    p.view(3, -1)[1].zero_()  # DINOv3's keys have none

    def _fixed(self, height: int, width: int, taps: tuple[Tap, ...], pixels: str, registers: bool) -> FixedBackbone:
        raise NotImplementedError


class FixedBackbone(nn.Module):
    """A backbone at one image size: no branch and no shape in its graph depends on data."""

    def __init__(
        self, backbone: Backbone, height: int, width: int, taps: tuple[Tap, ...], pixels: str, registers: bool
    ):
        super().__init__()
        self.backbone = backbone
        self.height, self.width, self.taps = height, width, taps
        self.pixels, self.registers = pixels, registers
        mean, std = (
            torch.tensor(v).view(1, 3, 1, 1)
            for v in (backbone.spec.normalisation.mean, backbone.spec.normalisation.std)
        )
        self.register_buffer("scale", 1 / (255 * std), persistent=False)
        self.register_buffer("shift", -mean / std, persistent=False)
        self.eval()

    @property
    def meanings(self) -> tuple[str, ...]:
        """What each output means (outputs.py)."""
        return ("features",) * (len(outputs(self.taps)) + (len(self.taps) if self.registers else 0))

    def example(self, batch: int = 1) -> Tensor:
        """An input of the right shape and type, all zeros: what an exporter traces with."""
        device = self.scale.device
        if self.pixels == "uint8":
            return torch.zeros(batch, self.height, self.width, 3, dtype=torch.uint8, device=device)
        return torch.zeros(batch, 3, self.height, self.width, device=device)

    def image(self, pixels: Tensor) -> Tensor:
        """The normalised image (B, 3, H, W) float32 that the first convolution sees."""
        if self.pixels == "float":
            return pixels
        # Cast before permuting: TensorRT knows uint8 only as the input of a cast.
        return pixels.to(torch.float32).permute(0, 3, 1, 2) * self.scale + self.shift


def hash_of(parameters: Mapping[str, Tensor]) -> str:
    """`Backbone.weights_hash` of these parameters."""
    digest = hashlib.sha256()
    for name, tensor in sorted(parameters.items()):
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().float().contiguous().cpu().numpy().data)
    return digest.hexdigest()[:16]
