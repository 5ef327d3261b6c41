"""Every released head this package can load, as data: on which backbone, what it tells, how well, where it is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from dino_perception.models.label_sets import LABEL_SETS, Label

DINOV2 = "https://dl.fbaipublicfiles.com/dinov2"
DEPTH_ANYTHING = "https://huggingface.co/depth-anything/Depth-Anything-V2-Metric"
DINOV3_ROS = "https://raw.githubusercontent.com/Raessan/dinov3_ros/cc2ed53/dinov3_toolkit"


@dataclass(frozen=True)
class HeadEntry:
    """One released head.

    Its `id` is "<backbone>/<name>"; a configuration that names the backbone needs only the name. `task` is the kind of
    the head, `arch` its architecture here. `labels` names a set of label_sets.py, and `depth_range` is in metres.
    `address` is "" where one has to ask for the file.
    `score` is as published, in the unit that `measure` names. `file` is the name under which it is kept; `sha256` is ""
    where none is published.
    """

    backbone: str
    name: str
    task: str
    arch: str
    data: str
    file: str
    address: str
    licence: str = "Apache-2.0"
    label_set: str = ""
    depth_range: tuple[float, float] | None = None
    measure: str = ""
    score: float | None = None
    sha256: str = ""
    note: str = ""

    @property
    def id(self) -> str:
        return f"{self.backbone}/{self.name}"

    @property
    def labels(self) -> tuple[Label, ...]:
        return LABEL_SETS[self.label_set] if self.label_set else ()


def all_heads() -> tuple[HeadEntry, ...]:
    return _ENTRIES


def find(backbone: str, name: str) -> HeadEntry | None:
    """The head of that name or id for a backbone, or None."""
    return next((e for e in _ENTRIES if e.id == name or (e.backbone, e.name) == (backbone, name)), None)


def names(backbone: str, task: str) -> list[str]:
    """The names that a configuration may use for a backbone's heads of one kind."""
    return [e.name for e in _ENTRIES if (e.backbone, e.task) == (backbone, task)]


def by_file(name: str) -> HeadEntry | None:
    """The head that is released under that file name, or None."""
    return next((e for e in _ENTRIES if e.file == name), None)


def example(backbone: str, task: str) -> str:
    """The file name of one of the backbone's heads, or of any of that kind."""
    fitting = [e for e in _ENTRIES if e.task == task]
    return next((e for e in fitting if e.backbone == backbone), fitting[0]).file


# ADE20k mIoU in percent as published in arXiv 2304.07193; "ms" also averages over scales, which we do not. The scores on
# the other data sets stand in the paper; they are left out until somebody has checked them against it.
_ADE20K = {"s": (44.3, 47.2), "b": (47.3, 51.3), "l": (47.7, 53.1), "g": (49.0, 53.0)}
_TITLES = {"ade20k": "ADE20k", "voc2012": "PASCAL VOC 2012", "nyu": "NYUv2 (indoors)", "kitti": "KITTI (streets)"}


def _dinov2(size: str) -> Iterator[HeadEntry]:
    backbone, model = f"dinov2-vit{size}14", f"dinov2_vit{size}14"
    for data, scores in (("ade20k", _ADE20K[size]), ("voc2012", (None, None))):
        for what, score in zip(("linear", "ms"), scores):
            file = f"{model}_{data}_{what}_head.pth"
            yield HeadEntry(
                backbone, data if what == "linear" else f"{data}-ms", "segmentation", "linear", _TITLES[data], file,
                f"{DINOV2}/{model}/{file}", label_set=data, measure="mIoU %", score=score,
            )  # fmt: skip
    for data in ("nyu", "kitti"):
        for what in ("linear", "linear4", "dpt"):
            file = f"{model}_{data}_{what}_head.pth"
            yield HeadEntry(
                backbone, f"{data}-{what}", "depth", "dpt" if what == "dpt" else "linear-cls", _TITLES[data], file,
                f"{DINOV2}/{model}/{file}", depth_range=(0.001, 80.0 if data == "kitti" else 10.0), measure="RMSE m",
            )  # fmt: skip


def _depth_anything(size: str, data: str) -> HeadEntry:
    letter, title = (
        size[0],
        {"hypersim": "Hypersim (indoors, rendered)", "vkitti": "Virtual KITTI 2 (streets, rendered)"},
    )
    file = f"depth_anything_v2_metric_{data}_vit{letter}.pth"
    repository = f"{DEPTH_ANYTHING}-{'Hypersim' if data == 'hypersim' else 'VKITTI'}-{size.title()}"
    return HeadEntry(
        f"depth-anything-v2-{size}-{data}", data, "depth", "dpt", title[data], file, f"{repository}/resolve/main/{file}",
        "Apache-2.0" if size == "small" else "CC-BY-NC-4.0", depth_range=(0.001, 20.0 if data == "hypersim" else 80.0),
        note="one file with its backbone",
    )  # fmt: skip


_SQUARE = (
    "trained on pictures squashed to 640x640: set input_height and input_width to 640 for what its author measured"
)
_ENTRIES = (
    *(entry for size in "sblg" for entry in _dinov2(size)),
    *(_depth_anything(size, data) for size in ("small", "base", "large") for data in ("hypersim", "vkitti")),
    HeadEntry(
        "dinov3-vits16plus", "dinov3-ros-coco", "segmentation", "branches", "COCO panoptic",
        "dinov3_ros_segmentation_head.pth", f"{DINOV3_ROS}/head_segmentation/weights/model.pth",
        label_set="coco-panoptic", note=_SQUARE,
    ),
    HeadEntry(
        "dinov3-vits16plus", "dinov3-ros-depth", "depth", "pyramid", "not stated", "dinov3_ros_depth_head.pth",
        f"{DINOV3_ROS}/head_depth/weights/model.pth", depth_range=(0.001, 100.0), note=_SQUARE,
        sha256="fd1a1357dccc129273e195dff119ad05ae003b047bf26d0310e5604e2f2bde88",
    ),
    HeadEntry(
        "dinov3-vits16plus", "dinov3-ros-objects", "detection", "fcos", "COCO", "dinov3_ros_detection_head.pth",
        f"{DINOV3_ROS}/head_detection/weights/model.pth", label_set="coco", note=_SQUARE,
    ),
    HeadEntry(
        "dinov3-vitl16-chmv2", "chmv2", "depth", "dpt", "canopy height from above", "dinov3_vitl16_chmv2_dpt_head-3703d643.pth",
        "", "DINOv3 License", depth_range=(0.008, 96.0), sha256="3703d643",
        note="metres of height over the ground, of pixels of 0.6 m: dino-perception canopy",
    ),
)  # fmt: skip
