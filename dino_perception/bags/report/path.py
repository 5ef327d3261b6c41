"""The way of a camera from above, as a picture."""

from __future__ import annotations

import io

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402  (the backend comes first)
from matplotlib.patches import Ellipse  # noqa: E402

from dino_perception.bags.trajectory import Trajectory  # noqa: E402

COLOURS = {"good": "#0072b2", "weak": "#e69f00", "lost": "#d55e00"}
ELLIPSES = 12
"""So many places show how sure the position is (two standard deviations)."""


def picture(ways: dict[str, Trajectory], title: str, truth: np.ndarray | None = None) -> bytes:
    """A PNG: x ahead is up, y to the left is left, as the robot sees it at its start; metres. `truth` (N, 2) is the way as
    something else has it, in the same frame."""
    figure, axes = plt.subplots(figsize=(7, 7))
    if truth is not None and len(truth):
        axes.plot(truth[:, 1], truth[:, 0], color="#999999", linewidth=3, label="as recorded (odometry or tf)")
    for name, way in ways.items():
        xy = np.array([pose.position[:2] for pose in way.poses]).reshape(-1, 2)
        axes.plot(xy[:, 1], xy[:, 0], color="#555555", linewidth=0.8)
        for health, colour in COLOURS.items():
            mine = np.array([pose.health == health for pose in way.poses], bool)
            if mine.any():
                label = f"{name}: {health}" if len(ways) > 1 else health
                axes.scatter(xy[mine, 1], xy[mine, 0], s=8, color=colour, label=label, zorder=3)
        for number in np.unique(np.linspace(0, len(xy) - 1, ELLIPSES).astype(int)) if len(xy) else ():
            axes.add_patch(_ellipse(xy[number], way.poses[number].covariance))
    axes.set_aspect("equal", adjustable="datalim")
    axes.invert_xaxis()
    axes.set(xlabel="y, to the left (m)", ylabel="x, ahead (m)", title=title)
    axes.grid(alpha=0.3)
    axes.legend()
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=130, format="png")
    plt.close(figure)
    return drawn.getvalue()


def _ellipse(xy: np.ndarray, covariance: np.ndarray) -> Ellipse:
    values, vectors = np.linalg.eigh(covariance[:2, :2][::-1, ::-1])  # drawn with y across and x up
    width, height = 4 * np.sqrt(np.maximum(values, 0))
    angle = np.degrees(np.arctan2(vectors[1, 0], vectors[0, 0]))
    return Ellipse((xy[1], xy[0]), width, height, angle=angle, alpha=0.15, color="#0072b2")
