"""Every backbone this package can load, as data: shapes, normalisation of its pixels, names, licence, scores."""

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


REQUEST = "https://ai.meta.com/resources/models-and-libraries/dinov3-downloads"  # where DINOv3's files are asked for
IMAGENET = Normalisation((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
SATELLITE = Normalisation((0.430, 0.411, 0.296), (0.213, 0.156, 0.143))
# the canopy height model CHMv2, on satellite weights
CANOPY = Normalisation((0.420, 0.411, 0.296), (0.213, 0.156, 0.143))


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
    (DINOv2). `taps` are the layers that multi-tap heads read, four at even intervals unless stated. `file` is the
    released file of the original format, with the start of its sha256 in the name where there is one; `huggingface`
    and `timm` are repositories on huggingface.co. `access` is a page to ask at, or "open".
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
    normalisation: Normalisation = IMAGENET
    taps: tuple[int, ...] = ()
    data: str = "LVD-1689M"
    file: str = ""
    huggingface: str = ""
    timm: str = ""
    licence: str = "DINOv3 License"
    access: str = REQUEST
    published: Published = field(default_factory=Published)
    recommended: bool = False
    tuned: bool = False  # for one task, together with its head: a file is known to be it by its name only

    def __post_init__(self):
        if not self.taps:
            quarter = self.depth // 4
            even = (0, 1, 2, 3) if self.convolutional else tuple(i * quarter - 1 for i in range(1, 5))
            object.__setattr__(self, "taps", even)

    @property
    def address(self) -> str:
        """Where the released file is for everybody, "" where one has to ask or it is kept on huggingface.co only."""
        if self.family != "dinov2-vit" or self.tuned:
            return ""
        return f"https://dl.fbaipublicfiles.com/dinov2/{self.file.split('_reg4')[0].split('_pretrain')[0]}/{self.file}"

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
    return BackboneSpec(name, "dinov3-vit", (dim,), (depth,), heads, hidden, **{"registers": 4, **rest})


def _dinov3(
    size: str, shape: tuple[int, int, int, int], digest: str, timm: str = "", data: str = "lvd1689m", **rest
) -> BackboneSpec:
    satellite = data == "sat493m"
    released = f"vit{size}16{'plus' if rest.pop('plus', False) else ''}"
    if satellite:
        rest.update(normalisation=SATELLITE, data="SAT-493M")
    if shape[1] == 24:
        rest.update(taps=(4, 11, 17, 23))  # what DINOv2's and DINOv3's heads for ViT-L were trained on
    return _vit(
        f"dinov3-{released}" + ("-sat" if satellite else ""),
        *shape,
        file=f"dinov3_{released}_pretrain_{data}-{digest}.pth",
        huggingface=f"facebook/dinov3-{released}-pretrain-{data}" if timm else "",
        timm=f"timm/vit_{timm}_patch16_dinov3.{data}" if timm else "",
        **rest,
    )


def _convnext(size: str, depths: tuple[int, ...], width: int, digest: str, scores: Published) -> BackboneSpec:
    return BackboneSpec(
        f"dinov3-convnext-{size}",
        "dinov3-convnext",
        tuple(width * 2**i for i in range(4)),
        depths,
        patch=4,
        file=f"dinov3_convnext_{size}_pretrain_lvd1689m-{digest}.pth",
        huggingface=f"facebook/dinov3-convnext-{size}-pretrain-lvd1689m",
        timm=f"timm/convnext_{size}.dinov3_lvd1689m",
        published=scores,
    )


def _eupe_convnext(size: str, depths: tuple[int, ...], width: int) -> BackboneSpec:
    return BackboneSpec(
        f"eupe-convnext-{size}",
        "dinov3-convnext",
        tuple(width * 2**i for i in range(4)),
        depths,
        patch=4,
        timm=f"timm/convnext_{size}.eupe_lvd1689m",
        licence="FAIR non-commercial",
        access="open",
    )


def _dinov2(
    size: str, name: str, shape: tuple[int, int, int, int], gated: bool, scores: Published, registers: bool
) -> BackboneSpec:
    hf = name if not registers else f"with-registers-{name}"
    return BackboneSpec(
        f"dinov2-vit{size}14" + ("-reg" if registers else ""),
        "dinov2-vit",
        shape[:1],
        shape[1:2],
        *shape[2:],
        gated,
        14,
        4 if registers else 0,
        eps=1e-6,
        grid=37,
        offset=0.0 if registers else 0.1,
        antialias=registers,
        taps=(4, 11, 17, 23) if shape[1] == 24 else (),
        data="LVD-142M",
        file=f"dinov2_vit{size}14_{'reg4_' if registers else ''}pretrain.pth",
        huggingface=f"facebook/dinov2-{hf}",
        timm=f"timm/vit_{name}_patch14_{'reg4_' if registers else ''}dinov2.lvd142m",
        licence="Apache-2.0",
        access="open",
        published=Published() if registers else scores,
    )


def _lingbot(letter: str, size: str, shape: tuple[int, int, int, int], **rest) -> BackboneSpec:
    taps = (4, 11, 17, 23) if shape[1] == 24 else ()
    return _vit(
        f"lingbot-vit{letter}16",
        *shape,
        taps=taps,
        data="see arXiv 2607.05247",
        licence="Apache-2.0",
        access="open",
        timm=f"belfner/vit_{size}_patch16_lingbot.robbyant",
        **rest,
    )


def _eupe(letter: str, size: str, shape: tuple[int, int, int, int]) -> BackboneSpec:
    return _vit(
        f"eupe-vit{letter}16",
        *shape,
        licence="FAIR non-commercial",
        access="open",
        timm=f"timm/vit_{size}_patch16_dinov3_qkvb.eupe_lvd1689m",
    )


def _depth_anything(size: str, data: str) -> BackboneSpec:
    """Depth Anything V2's: a DINOv2 whose weights were tuned with its depth head, which lies in the same file."""
    letter, shape = {"small": ("s", _S), "base": ("b", _B), "large": ("l", _L)}[size]
    like = _dinov2(letter, size, shape, False, Published(), False)
    return replace(
        like,
        id=f"depth-anything-v2-{size}-{data}",
        data="Hypersim" if data == "hypersim" else "Virtual KITTI 2",
        file=f"depth_anything_v2_metric_{data}_vit{letter}.pth",
        huggingface="",
        timm="",
        licence="Apache-2.0" if size == "small" else "CC-BY-NC-4.0",
        tuned=True,
    )


# dim, layers, attention heads, feed-forward width
_S, _B, _L, _G = (384, 12, 6, 1536), (768, 12, 12, 3072), (1024, 24, 16, 4096), (1536, 40, 24, 4096)
_HUGE, _7B = (1280, 32, 20, 5120), (4096, 40, 32, 8192)
_T3, _S3 = (3, 3, 9, 3), (3, 3, 27, 3)

_ENTRIES = [
    _vit("rover-tiny", 256, 8, 4, 512, gated=True, data="rendered terrain", licence="Apache-2.0", access="open"),
    _dinov3("s", _S, "08c60483", "small", published=Published(47.0, 0.403, 56.3)),
    _dinov3(
        "s",
        _S,
        "4057cbaa",
        "small_plus",
        plus=True,
        gated=True,
        published=Published(48.8, 0.399, 57.1),
        recommended=True,
    ),
    _dinov3("b", _B, "73cec8be", "base", published=Published(51.8, 0.373, 58.8)),
    _dinov3("l", _L, "8aa4cbdd", "large", published=Published(54.9, 0.352, 62.3)),
    _dinov3("l", _L, "46503df0", plus=True, gated=True),
    _dinov3("h", _HUGE, "7c1da9a5", "huge_plus", plus=True, gated=True, published=Published(54.8, 0.352, 63.3)),
    _dinov3("7b", _7B, "a955f4ea", "7b", gated=True, qkv_bias=False, published=Published(55.9, 0.309, 64.4)),
    _dinov3("l", _L, "eadcf0ff", "large", data="sat493m"),
    _dinov3("7b", _7B, "a6675841", "7b", data="sat493m", gated=True, qkv_bias=False),
    _vit(
        "dinov3-vitl16-chmv2",
        *_L,
        taps=(5, 11, 17, 23),
        normalisation=CANOPY,
        data="SAT-493M",
        huggingface="facebook/dinov3-vitl16-pretrain-sat493m",
    ),
    _convnext("tiny", _T3, 96, "21b726bb", Published(42.7, 0.448)),
    _convnext("small", _S3, 96, "296db49d", Published(44.8, 0.432)),
    _convnext("base", _S3, 128, "801f2ba9", Published(46.3, 0.420)),
    _convnext("large", _S3, 192, "61fa432d", Published(47.8, 0.403)),
    _lingbot("s", "small", _S),
    _lingbot("b", "base", _B),
    _lingbot("l", "large", _L),
    _lingbot("g", "giant", _G, gated=True, qkv_bias=False),
    _eupe("t", "tiny", (192, 12, 3, 768)),
    _eupe("s", "small", _S),
    _eupe("b", "base", _B),
    _eupe_convnext("tiny", _T3, 96),
    _eupe_convnext("small", _S3, 96),
    _eupe_convnext("base", _S3, 128),
    *(
        _dinov2(size, name, shape, size == "g", scores, registers)
        for registers in (False, True)
        for size, name, shape, scores in (
            ("s", "small", _S, Published(45.5, 0.446, 53.4)),
            ("b", "base", _B, Published(48.4, 0.416, 56.9)),
            ("l", "large", _L, Published(48.8, 0.394, 59.9)),
            ("g", "giant", _G, Published()),
        )
    ),
    *(_depth_anything(size, data) for size in ("small", "base", "large") for data in ("hypersim", "vkitti")),
]
_CATALOG = {entry.id: entry for entry in _ENTRIES}
