"""An evaluation as pictures: what goes wrong, where, and how far the confidence can be believed."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402  (the backend comes first)

from dino_perception import results  # noqa: E402
from dino_perception.models.label_sets import Label  # noqa: E402
from dino_perception.perception.drawing import depth_colours  # noqa: E402
from dino_perception.perception.frame import IGNORE  # noqa: E402
from dino_perception.training.evaluation.evaluate import Evaluation, Gallery  # noqa: E402
from dino_perception.training.evaluation.metrics import (
    DEPTH_EDGES,
    PCK_PIXELS,
    DepthScore,
    MatchScore,
    SegmentationScore,
)

OWN, ORB, LK, GREY = "#0072b2", "#d55e00", "#009e73", "#999999"  # from Okabe and Ito's set
_NAMES = {"dino": ("this", OWN, "o"), "orb": ("ORB + ratio test", ORB, "s"), "lk": ("Lucas-Kanade", LK, "^")}


def write(evaluation: Evaluation, folder: Path) -> list[Path]:
    """Every picture that the evaluation has numbers for, as PNG. Returns their paths."""
    figures = {}
    if evaluation.segmentation and evaluation.segmentation.pixels:
        figures["confusion"] = confusion(evaluation.segmentation, evaluation.labels)
        figures["reliability"] = reliability(evaluation.segmentation)
    if evaluation.depth and evaluation.depth.rows:
        figures["depth_by_range"] = depth_by_range(evaluation.depth, evaluation.depth_baseline)
    if evaluation.matches:
        figures["pck"] = pck(evaluation.matches)
    if (gallery := evaluation.galleries.get("segmentation")) and gallery.best:
        figures["gallery_segmentation"] = segmentation_gallery(gallery, evaluation.labels)
    if (gallery := evaluation.galleries.get("depth")) and gallery.best:
        figures["gallery_depth"] = depth_gallery(gallery, evaluation.depth.farthest)
    return [save(figure, folder / f"{name}.png", folder) for name, figure in figures.items()]


def save(figure, path: Path, within: Path | None = None) -> Path:
    """Keeps a figure as `results.keep` does. Returns where it is, or was to be."""
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=130, format=path.suffix[1:])
    plt.close(figure)
    return results.keep(path, drawn.getvalue(), within=within) or path


def confusion(score: SegmentationScore, labels: Sequence[Label]):
    """Share of the pixels of each true class (row) that were given each class (column)."""
    names = [label.name for label in labels]
    counts = score.confusion.astype(float)
    columns = names + ["none"] * bool(counts[:, -1].any())
    counts = counts[:, : len(columns)]
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = max(4.0, 1.0 + 0.55 * len(names))
    figure, axes = plt.subplots(figsize=(side + 0.8, side), layout="constrained")
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(columns)), columns, rotation=45, ha="right")
    axes.set_yticks(
        range(len(names)), [f"{n}\n{c / max(counts.sum(), 1):.1%}" for n, c in zip(names, counts.sum(axis=1))]
    )
    for row, column in np.ndindex(share.shape):
        if share[row, column] >= 0.005:
            axes.text(
                column,
                row,
                f"{share[row, column]:.2f}",
                ha="center",
                va="center",
                fontsize=8,
                color="white" if share[row, column] > 0.6 else "black",
            )
    axes.set(xlabel="given", ylabel="true class, share of the pixels", title=f"mIoU {score.miou:.3f}")
    return figure


def reliability(score: SegmentationScore):
    """Accuracy against confidence; below the diagonal the head is surer than it should be."""
    share, confidence, accuracy = score.reliability().T
    figure, (axes, below) = plt.subplots(
        2, 1, figsize=(4.6, 5.4), height_ratios=(4, 1), sharex=True, layout="constrained"
    )
    axes.plot([0, 1], [0, 1], color=GREY, lw=1, ls="--", label="perfect")
    axes.plot(confidence, accuracy, color=OWN, marker="o", ms=4, label="this")
    axes.set(ylabel="accuracy", ylim=(0, 1.02), xlim=(0, 1), title=f"ECE {score.ece():.3f}")
    axes.legend(frameon=False)
    below.bar((np.arange(len(share)) + 0.5) / len(share), share, width=0.9 / len(share), color=OWN)
    below.set(xlabel="confidence", ylabel="pixels")
    return figure


def depth_by_range(score: DepthScore, baseline: DepthScore):
    """AbsRel between the edges of range, with the baseline's."""
    figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
    highest = []
    for one, colour, name, offset in ((score, OWN, "this", -0.2), (baseline, GREY, "flat ground", 0.2)):
        count, total = one.by_range.T
        used = np.nonzero(count)[0]
        axes.bar(used + offset, total[used] / count[used], width=0.4, color=colour, label=name)
        highest.append(max(total[used] / count[used], default=0.0))
    used = [i for i in range(len(score.by_range)) if score.by_range[i, 0] or baseline.by_range[i, 0]]
    axes.set_xticks(used, [f"{DEPTH_EDGES[i]:g}-{DEPTH_EDGES[i + 1]:g}" for i in used])
    axes.set(
        xlabel="true depth (m)",
        ylabel="AbsRel",
        title=f"AbsRel {score.numbers()['abs_rel']:.3f}, a frame's mean",
        ylim=(0, max(0.1, min(1.1 * max(highest), 4 * highest[0]))),  # a baseline that is far off may leave the picture
    )
    axes.legend(frameon=False)
    return figure


def pck(matches: Mapping[int, Mapping[str, MatchScore]]):
    """Share of correct matches against the distance that counts as correct, one panel a gap."""
    thresholds = np.geomspace(0.25, 32, 60)
    figure, panels = plt.subplots(
        1, len(matches), figsize=(1.2 + 3 * len(matches), 3.4), sharey=True, layout="constrained", squeeze=False
    )
    for axes, (gap, scores) in zip(panels[0], matches.items()):
        for key, (name, colour, mark) in _NAMES.items():
            if scores[key].errors:
                label = f"{name} ({scores[key].numbers()['matches']:.0f} a pair)"
                axes.plot(thresholds, scores[key].pck(thresholds), color=colour, label=label)
                axes.plot(PCK_PIXELS, scores[key].pck(), color=colour, marker=mark, ms=4, ls="")
        axes.set_xscale("log", base=2)
        axes.set_xticks(PCK_PIXELS, [str(p) for p in PCK_PIXELS])
        axes.set(title=f"{gap} frame{'s' if gap > 1 else ''} apart", xlabel="pixels", ylim=(0, 1.02))
        axes.legend(frameon=False, fontsize=7, loc="lower right")
    panels[0][0].set_ylabel("share of matches within")
    return figure


def segmentation_gallery(gallery: Gallery, labels: Sequence[Label]):
    """Picture, truth and mask of the best and worst frames."""
    palette = np.full((256, 3), 40, np.uint8)
    for label in labels:
        palette[label.id] = label.colour
    rows = [
        (
            shown,
            f"mIoU {shown.goodness:.2f}",
            palette[shown.truth],
            palette[np.where(shown.truth == IGNORE, IGNORE, shown.given)],
        )
        for shown in [*gallery.best, *reversed(gallery.worst)]
    ]
    figure = _grid(rows, ("frame", "truth", "mask"), len(gallery.best))
    handles = [matplotlib.patches.Patch(color=np.array(label.colour) / 255, label=label.name) for label in labels]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(8, len(handles)), frameon=False)
    return figure


def depth_gallery(gallery: Gallery, farthest: float):
    """Picture, true and given depth of the best and worst frames, near bright and far dark."""

    def coloured(metres: np.ndarray) -> np.ndarray:
        colours, _ = depth_colours(np.minimum(metres, farthest), farthest)
        return np.where(np.isfinite(metres)[..., None], colours, 40).astype(np.uint8)

    rows = [
        (
            shown,
            f"AbsRel {-shown.goodness:.3f}",
            coloured(shown.truth),
            coloured(np.where(np.isfinite(shown.truth), shown.given, np.nan)),
        )
        for shown in [*gallery.best, *reversed(gallery.worst)]
    ]
    return _grid(rows, ("frame", "true depth", "depth"), len(gallery.best))


def _grid(rows, titles: Sequence[str], best: int):
    figure, panels = plt.subplots(len(rows), 3, figsize=(9, 2.35 * len(rows)), layout="constrained", squeeze=False)
    for place, (panel, (shown, value, truth, given)) in enumerate(zip(panels, rows)):
        for axes, picture, title in zip(panel, (shown.image, truth, given), titles):
            axes.imshow(picture)
            axes.set_xticks([])
            axes.set_yticks([])
            if place == 0:
                axes.set_title(title)
        panel[0].set_ylabel(f"{'best' if place < best else 'worst'}\n{value}")
    return figure


def label_efficiency(rows: Sequence[Mapping[str, float]]):
    """mIoU against the number of labelled frames; rows as `curve.table` has them."""
    figure, axes = plt.subplots(figsize=(5.4, 3.8), layout="constrained")
    frames = [row["frames"] for row in rows]
    axes.errorbar(
        frames,
        [row["miou"] for row in rows],
        [row["spread"] for row in rows],
        color=OWN,
        marker="o",
        capsize=3,
        label="head on the frozen backbone",
    )
    axes.plot(frames, [row["baseline_miou"] for row in rows], color=GREY, marker="s", label="colour k-NN, same frames")
    axes.set_xscale("log")
    axes.set_xticks(frames, [str(n) for n in frames], minor=False)
    axes.minorticks_off()
    axes.set(xlabel="labelled frames", ylabel="mIoU on frames never seen", ylim=(0, 1))
    axes.legend(frameon=False, loc="lower right")
    return figure
