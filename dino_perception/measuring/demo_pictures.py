"""The demo's picture: for a few moments of the drive the camera image, the classes, the depth and the matches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dino_perception.measuring.demo_run import Run
from dino_perception.measuring.demo_score import image_array
from dino_perception.messages.types import RosbagsTypes
from dino_perception.models import palette
from dino_perception.models.heads.base import Label
from dino_perception.models.palette import as_hex
from dino_perception.perception.drawing import NEAREST
from dino_perception.perception.frame import IGNORE
from dino_perception.training.datasets.base import Sample

MOMENTS = 4
NAMED = 6
"""Classes in the legend, those of the most pixels: a head may know 150."""
FAR = 30.0
"""Metres at the ends of the depth colours."""
RIGHT, WRONG, UNKNOWN = map(as_hex, (palette.GOOD, palette.BAD, palette.UNKNOWN))
"""Matches within 4 px of the truth, farther off, and where the truth is not known; told apart by every kind of eye."""
INK = "#333333"


def draw(
    path: Path,
    run: Run,
    samples: Mapping[int, Sample],
    labels: Sequence[Label],
    errors: Mapping[int, np.ndarray],
    types: RosbagsTypes,
    title: str,
) -> None:
    """Writes the picture (PNG or JPEG by its name). `errors` are the matches' distances from the truth by stamp."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    stamps = moments(run, samples)
    figure, axes = pyplot.subplots(
        max(len(stamps), 1), 4, figsize=(16.4, 3.05 * max(len(stamps), 1) + 1.0), squeeze=False, dpi=110
    )
    for axis in axes.flat:
        axis.set_axis_off()
    first = min(samples)
    depth, seen = None, np.zeros(256, np.int64)
    for row, stamp in zip(axes, stamps):
        image = samples[stamp].read_image()
        row[0].imshow(image)
        _write(row[0], f"{(stamp - first) / 1e9:.1f} s")
        if run.of("segmentation/mask"):
            mask = _array(run, "segmentation/mask", stamp, np.uint8, types)
            _classes(row[1], image, mask, labels)
            seen += np.bincount(mask.ravel(), minlength=256)
        if run.of("depth/image"):
            depth = _depth(row[2], _array(run, "depth/image", stamp, np.float32, types))
        if run.of("correspondences"):
            _matches(row[3], image, _message(run, "correspondences", stamp, types), errors.get(stamp))
    for axis, name in zip(axes[0], ("camera", "classes", "depth", "matches with the frame before")):
        axis.set_title(name, loc="left", fontsize=13, color=INK)
    figure.subplots_adjust(
        left=0.008,
        right=0.992,
        top=1 - 0.72 / figure.get_figheight(),
        bottom=0.62 / figure.get_figheight(),
        wspace=0.02,
        hspace=0.03,
    )
    figure.text(0.008, 1 - 0.12 / figure.get_figheight(), title, fontsize=12, color=INK, va="top")
    most = sorted((label for label in labels if seen[label.id]), key=lambda label: -seen[label.id])[:NAMED]
    _legends(figure, axes[-1], depth, [label for label in labels if label in most])
    figure.savefig(path)
    pyplot.close(figure)


def moments(run: Run, samples: Mapping[int, Sample]) -> list[int]:
    """Stamps of frames that have everything there is, spread evenly over the drive."""
    there = [run.of(name) for name in ("segmentation/mask", "depth/image", "correspondences")]
    stamps = sorted(set(samples).intersection(*({heard.stamp_ns for heard in one} for one in there if one)))
    chosen = np.linspace(0, len(stamps) - 1, 2 * MOMENTS + 1)[1::2] if stamps else []
    return sorted({stamps[round(i)] for i in chosen})


def _classes(axis: Any, image: np.ndarray, mask: np.ndarray, labels: Sequence[Label]) -> None:
    height, width = image.shape[:2]
    colours = np.zeros((256, 4))
    for label in labels:
        colours[label.id] = (*(channel / 255 for channel in label.colour), 0.55)
    colours[IGNORE] = 0
    axis.imshow(image.mean(axis=2), cmap="gray", vmin=0, vmax=255)  # grey below, so that colours mean classes only
    axis.imshow(colours[mask], extent=(-0.5, width - 0.5, height - 0.5, -0.5), interpolation="nearest")


def _depth(axis: Any, metres: np.ndarray) -> Any:
    from matplotlib import colormaps, colors

    # The colours of `drawing.depth_colours`, as matplotlib wants them for a scale beside the pictures.
    colormap = colormaps["viridis_r"].with_extremes(bad="#dddddd")
    return axis.imshow(metres, cmap=colormap, norm=colors.LogNorm(NEAREST, FAR, clip=True))


def _matches(axis: Any, image: np.ndarray, message: Any, errors: np.ndarray | None) -> None:
    from matplotlib.collections import LineCollection

    axis.imshow(image.mean(axis=2) * 0.6, cmap="gray", vmin=0, vmax=255)
    ends = np.stack([np.stack([message.reference_x, message.reference_y], 1), np.stack([message.x, message.y], 1)], 1)
    errors = np.full(len(ends), np.nan) if errors is None else errors
    colours = np.where(np.isnan(errors), UNKNOWN, np.where(errors <= 4, RIGHT, WRONG))
    axis.add_collection(LineCollection(ends, colors=colours, linewidths=1.1))
    axis.scatter(message.x, message.y, s=5, c=colours, linewidths=0)
    known = errors[~np.isnan(errors)]
    _write(axis, f"{len(ends)} matches" + (f", {np.mean(known <= 4):.0%} within 4 px" if len(known) else ""))
    axis.set_xlim(-0.5, image.shape[1] - 0.5)
    axis.set_ylim(image.shape[0] - 0.5, -0.5)


def _legends(figure: Any, axes: Sequence[Any], depth: Any, labels: Sequence[Label]) -> None:
    """Below the last row: what the colours of each column mean."""
    from matplotlib.patches import Patch

    style = dict(
        loc="upper left",
        bbox_to_anchor=(-0.01, -0.01),
        frameon=False,
        fontsize=10,
        labelcolor=INK,
        handlelength=1.0,
        handletextpad=0.4,
        columnspacing=1.0,
        borderaxespad=0.2,
    )
    if labels:
        axes[1].legend(
            handles=[
                Patch(color=tuple(c / 255 for c in label.colour), label=label.name.replace("_", " "))
                for label in labels
            ],
            ncols=len(labels) if sum(len(label.name) for label in labels) <= 28 else (len(labels) + 1) // 2,
            **style,
        )
    axes[3].legend(
        handles=[
            Patch(color=RIGHT, label="at most 4 px off"),
            Patch(color=WRONG, label="farther off"),
            Patch(color=UNKNOWN, label="truth unknown"),
        ],
        ncols=3,
        **style,
    )
    if depth is not None:
        place = axes[2].get_position()
        bar = figure.add_axes(
            (
                place.x0 + 0.004,
                place.y0 - 0.22 / figure.get_figheight(),
                place.width - 0.03,
                0.12 / figure.get_figheight(),
            )
        )
        scale = figure.colorbar(depth, cax=bar, orientation="horizontal")
        ticks = [t for t in (0.5, 1, 2, 5, 10, 20, 30)]
        scale.set_ticks(ticks, labels=[f"{t:g}" for t in ticks])
        scale.ax.minorticks_off()
        scale.outline.set_visible(False)
        scale.ax.tick_params(labelsize=10, labelcolor=INK, length=2)
        figure.text(
            place.x1 - 0.022, place.y0 - 0.17 / figure.get_figheight(), "m", fontsize=10, color=INK, va="center"
        )


def _write(axis: Any, text: str) -> None:
    axis.text(
        0.015,
        0.03,
        text,
        transform=axis.transAxes,
        fontsize=10,
        color="white",
        bbox=dict(facecolor="black", alpha=0.45, pad=2.5, lw=0),
    )


def _message(run: Run, name: str, stamp: int, types: RosbagsTypes) -> Any:
    heard = next(heard for heard in run.of(name) if heard.stamp_ns == stamp)
    return types.deserialize(heard.data, heard.type)


def _array(run: Run, name: str, stamp: int, dtype: type, types: RosbagsTypes) -> np.ndarray:
    return image_array(_message(run, name, stamp, types), dtype)
