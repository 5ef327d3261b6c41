"""Scores the shipped costmaps on the sample drive and puts the table into docs/nav2.md: `python tools/costmap_table.py`."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from dino_perception.measuring.costmaps.score import CostmapScore, score  # noqa: E402
from dino_perception.measuring.costmaps.views import by_own_odometry, views  # noqa: E402
from dino_perception.measuring.markdown_tables import fill  # noqa: E402
from dino_perception.perception.perceiver import Perceiver  # noqa: E402
from dino_perception.perception.settings import Settings  # noqa: E402
from dino_perception.training.datasets import open_dataset  # noqa: E402

COSTMAPS = (
    "local_costmap_semantic",
    "local_costmap_traversability",
    "local_costmap_obstacles",
    "local_costmap_points",
    "global_costmap_semantic",
)
MAP = "local_costmap_traversability"
MAST = 1.1
"""Metres of the sample drive's camera over the ground."""
STEP = 5
"""Every fifth frame: two a second."""


def results(step: int = STEP, odometry: bool = False, **settings) -> dict[tuple[str, str], CostmapScore]:
    """(costmap, "truth" or "model") -> what it finds on the sample drive, with eager float32 torch; with `odometry` also
    what the map finds at the poses of the node's own."""
    perceiver = Perceiver(Settings.from_flat({"engine": "torch", **settings}), report=lambda line: None)
    with tempfile.TemporaryDirectory() as cache:
        samples = open_dataset(ROOT / "data" / "sample_drive", cache=Path(cache)).samples
        truth, seen = views(samples[::step], perceiver)
        own = {
            what: by_own_odometry(samples, perceiver, step, height)
            for what, height in (("model, own odometry", 0.0), ("the same, camera_height told", MAST))
            if odometry
        }
    names = {label.id: label.name for label in perceiver.labels}
    perceiver.close()
    found = {
        (name, what): score(parameters(name), truth, given, names)
        for name in COSTMAPS
        for what, given in (("truth", truth), ("model", seen))
    }
    for what, given in own.items():
        stamps = {view.seconds for view in given}
        alike = [view for view in truth if view.seconds in stamps]
        found[MAP, what] = score(parameters(MAP), alike, given, names)
    return found


def parameters(name: str) -> dict:
    """The `ros__parameters` of a shipped costmap."""
    node = name.rpartition("_")[0]
    return yaml.safe_load((ROOT / "config" / "nav2" / f"{name}.yaml").read_text())[node][node]["ros__parameters"]


def table(found: dict[tuple[str, str], CostmapScore]) -> list[str]:
    lines = [
        "| costmap | outputs | tall rocks closed | ground closed | mean cost of ground |",
        "|---|---|---|---|---|",
    ]
    for (name, what), result in found.items():
        lines.append(
            f"| {name} | {what} | {result.rocks_found:.0%} of {result.rocks} | "
            f"{result.ground_closed:.1%} of {result.ground} | {result.ground_cost:.0f} |"
        )
    return lines


if __name__ == "__main__":
    lines = table(results(odometry=True))
    fill(ROOT / "docs" / "nav2.md", "costmaps", lines)
    print("\n".join(lines))
