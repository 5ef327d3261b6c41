"""What drives come to: one row for each way of driving."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dino_perception.measuring.driving.drive import LATE, NO_WAY, REACHED, Record

if TYPE_CHECKING:
    from rich.table import Table


def of_drive(record: Record) -> dict[str, Any]:
    """The figures of one drive. An intervention is a rock touched, a slope entered or a drive that ended before the
    goal: each would have called a person."""
    rocks = sum(what > 0 for _, what in record.touched)
    slopes = len(record.touched) - rocks
    return {
        "end": record.end,
        "clean": record.clean,
        "rocks_touched": rocks,
        "slopes_entered": slopes,
        "interventions": rocks + slopes + (record.end != REACHED),
        "metres": record.metres,
        "seconds": record.seconds,
        "frames": record.frames,
    }


def of_drives(drives: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The figures of several drives together; path and time are means over those that reached the goal, None without."""
    arrived = [one for one in drives if one["end"] == REACHED]
    mean = {key: float(np.mean([one[key] for one in arrived])) if arrived else None for key in ("metres", "seconds")}
    return {
        "drives": len(drives),
        "clean": sum(one["clean"] for one in drives),
        "reached": len(arrived),
        "no_way": sum(one["end"] == NO_WAY for one in drives),
        "too_late": sum(one["end"] == LATE for one in drives),
        "rocks_touched": sum(one["rocks_touched"] for one in drives),
        "slopes_entered": sum(one["slopes_entered"] for one in drives),
        "interventions": sum(one["interventions"] for one in drives),
        **mean,
    }


def table(rows: Mapping[str, Mapping[str, Any]], title: str) -> Table:
    """`rows` are what `of_drives` gives, by how was driven."""
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    table.add_column("driven by")
    for name in (
        "goal reached, nothing touched",
        "goal reached",
        "rocks touched",
        "slopes entered",
        "no way found",
        "interventions a drive",
        "path (m)",
        "time (s)",
    ):
        table.add_column(name, justify="right")
    for name, row in rows.items():
        drives = row["drives"]
        table.add_row(
            name,
            f"{row['clean']} of {drives}",
            f"{row['reached']} of {drives}",
            str(row["rocks_touched"]),
            str(row["slopes_entered"]),
            str(row["no_way"] + row["too_late"]),
            f"{row['interventions'] / max(drives, 1):.2f}",
            *("" if row[key] is None else f"{row[key]:.1f}" for key in ("metres", "seconds")),
        )
    return table
