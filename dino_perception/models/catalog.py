"""Every backbone this package can load, as data: shapes, what its pixels are normalised with, names, licence, scores."""

from __future__ import annotations

from dataclasses import dataclass, field, replace


class UnknownBackbone(KeyError):
    """No backbone has that id; the message lists the ids that exist."""

    def __str__(self) -> str:  # KeyError would print the repr of the sentence
        return str(self.args[0])


@dataclass(frozen=True)
class Normalisation:
    """`(pixel / 255 - mean) / std` a channel, RGB."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


IMAGENET = Normalisation((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
SATELLITE = Normalisation((0.430, 0.411, 0.296), (0.213, 0.156, 0.143))


@dataclass(frozen=True)
class Published:
    """Scores of the DINOv3 paper's evaluation (Tab. 14): linear mIoU on ADE20k in percent, linear RMSE on NYUv2 in
    metres (lower is better), correspondence recall on NAVI in percent. None: never published."""

    ade20k: float | None = None
    nyuv2: float | None = None
    navi: float | None = None


@dataclass(frozen=True)
class BackboneSpec:
    """One released backbone.

    `dims` and `depths` have one entry for a ViT and four (the stages) for a ConvNeXt. `hidden` is the width of a ViT's
    feed-forward layer and `gated` says that it is SwiGLU. `grid` is the side of a learned position table in patches
    (DINOv2). `file` is the released file of the original format, its hash in the name.
    """

    id: str
    family: str  # "dinov3-vit", "dinov3-convnext" or "dinov2-vit"
    dims: tuple[int, ...]
    depths: tuple[int, ...]
    heads: int = 0
    hidden: int = 0
    gated: bool = False
    patch: int = 16
    registers: int = 0
    qkv_bias: bool = True
    eps: float = 1e-5
    grid: int = 0
    offset: float = 0.0  # DINOv2: added to the grid before its position table is scaled
    antialias: bool = False  # DINOv2: how its position table is scaled
    untied_norm: bool = False  # training-only second final norm in the original file
    normalisation: Normalisation = IMAGENET
    taps: tuple[int, ...] = ()
    data: str = "LVD-1689M"
    file: str = ""
    huggingface: str = ""
    timm: str = ""
    licence: str = "DINOv3 License"
    access: str = "https://ai.meta.com/resources/models-and-libraries/dinov3-downloads/"
    published: Published = field(default_factory=Published)
    recommended: bool = False

    def __post_init__(self):
        if not self.taps:
            quarter = self.depth // 4
            even = (0, 1, 2, 3) if self.convolutional else tuple(i * quarter - 1 for i in range(1, 5))
            object.__setattr__(self, "taps", even)

    @property
    def convolutional(self) -> bool:
        return self.family == "dinov3-convnext"

    @property
    def dim(self) -> int:
        """Channels of the last layer."""
        return self.dims[-1]

    @property
    def depth(self) -> int:
        """Number of layers a tap can name: blocks of a ViT, stages of a ConvNeXt."""
        return len(self.depths) if self.convolutional else self.depths[0]

    @property
    def stride(self) -> int:
        """Pixels by which the input's sides must be divisible."""
        return 32 if self.convolutional else self.patch

    def channels(self, tap: int) -> int:
        """Channels of the map of layer `tap`."""
        return self.dims[tap] if self.convolutional else self.dims[0]

    def tap_stride(self, tap: int) -> int:
        """Pixels between neighbouring cells of the map of layer `tap`."""
        return 4 * 2**tap if self.convolutional else self.patch


def get(backbone_id: str) -> BackboneSpec:
    """The backbone of that id. Raises UnknownBackbone."""
    try:
        return _CATALOG[backbone_id]
    except KeyError:
        raise UnknownBackbone(f"there is no backbone '{backbone_id}'; the ids are {', '.join(_CATALOG)}") from None


def all_ids() -> list[str]:
    """Every id, the bundled backbone first."""
    return list(_CATALOG)


def _vit(name: str, dim: int, depth: int, heads: int, hidden: int, **rest) -> BackboneSpec:
    return BackboneSpec(id=name, family="dinov3-vit", dims=(dim,), depths=(depth,), heads=heads, hidden=hidden,
                        **{"registers": 4, **rest})


_ENTRIES = [
    _vit("rover-tiny", 256, 8, 4, 512, gated=True, data="rendered terrain", licence="Apache-2.0", access="in the package"),
    _vit("dinov3-vits16", 384, 12, 6, 1536),
    _vit("dinov3-vits16plus", 384, 12, 6, 1536, gated=True, recommended=True),
]
_CATALOG = {entry.id: entry for entry in _ENTRIES}
