"""An evaluation as plain data and as a table."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from rich.table import Table

from dino_perception.training.evaluation.baselines import MATCHERS
from dino_perception.training.evaluation.metrics import (
    DEPTH_EDGES,
    PCK_PIXELS,
    SURE_EDGES,
    DepthScore,
    SegmentationScore,
)
from dino_perception.training.evaluation.odometry import STRETCH, summary

if TYPE_CHECKING:
    from dino_perception.training.evaluation.evaluate import Evaluation


def as_data(evaluation: Evaluation) -> dict[str, Any]:
    """The numbers, ready for JSON; what is not known is None. `detection` is as `ObjectJudge.numbers` gives it. `segmentation.full_size` is there when the truth is finer
    than what is published.

    `segmentation` {miou, iou, pixel_accuracy, ece, baseline_miou, ...}, `depth` {abs_rel, rmse, delta1 .. delta3,
    aligned, baseline_abs_rel, ...}, `correspondences` {gap: {pck1 .. pck16, median_px, matches, pairs, baseline_orb,
    baseline_lk}}. A head without truth in the data is left out and named in `notes`.
    """
    data: dict[str, Any] = {"data": evaluation.source, "frames": evaluation.frames, "notes": evaluation.notes}
    if evaluation.segmentation:
        data["segmentation"] = _segmentation(evaluation)
    if evaluation.depth:
        data["depth"] = _depth(evaluation)
    if evaluation.objects:
        data["detection"] = evaluation.objects.numbers()
    if evaluation.matches:
        data["correspondences"] = {
            str(gap): {
                **scores["dino"].numbers(),
                "pairs": len(scores["dino"].errors),
                **{f"baseline_{name}": scores[name].numbers() for name in MATCHERS},
            }
            for gap, scores in evaluation.matches.items()
        }
    if evaluation.odometry:
        drives = [{k: v for k, v in vars(score).items() if k != "path"} for score in evaluation.odometry]
        data["odometry"] = {"rows": summary(evaluation.odometry), "drives": drives, "stretch_m": STRETCH}
    return plain(data)


def _segmentation(evaluation: Evaluation) -> dict[str, Any]:
    names = [label.name for label in evaluation.labels]
    own, base = evaluation.segmentation, evaluation.segmentation_baseline

    def numbers(score: SegmentationScore) -> dict[str, Any]:
        return {"miou": score.miou, "iou": dict(zip(names, score.iou)), "pixel_accuracy": score.accuracy}

    full = evaluation.segmentation_full
    return {
        **numbers(own),
        "ece": own.ece(),
        **({"full_size": numbers(full)} if full else {}),
        **{f"baseline_{k}": v for k, v in numbers(base).items()},
        "pixels": own.pixels,
        "confusion": own.confusion.tolist(),
        "reliability": own.reliability().tolist(),
    }


def _depth(evaluation: Evaluation) -> dict[str, Any]:
    own, base = evaluation.depth, evaluation.depth_baseline

    def by_range(score: DepthScore) -> list[dict[str, float]]:
        return [
            {"from_m": low, "to_m": high, "abs_rel": total / count, "pixels": int(count)}
            for low, high, (count, total) in zip(DEPTH_EDGES, DEPTH_EDGES[1:], score.by_range)
            if count
        ]

    return {
        **own.numbers(),
        "aligned": own.aligned(),
        "by_range": by_range(own),
        "by_confidence": [
            {
                "from": low,
                "below": high,
                "abs_rel": total / count,
                "abs_rel_scaled": scaled / count,
                "delta1": hits / count,
                "pixels": int(count),
            }
            for low, high, (count, total, hits, scaled) in zip(SURE_EDGES, SURE_EDGES[1:], own.by_confidence)
            if count
        ],
        "coverage": own.coverage,
        "up_to_m": own.farthest,
        "frames": len(own.rows),
        **{f"baseline_{k}": v for k, v in base.numbers().items()},
        "baseline_aligned": base.aligned(),
        "baseline_by_range": by_range(base),
    }


def tables(data: dict[str, Any]) -> list[Table]:
    """What `as_data` gave, to be printed."""
    found = []
    if s := data.get("segmentation"):
        table = _table(f"Segmentation, {data['frames']} frames", "", "this", "colour k-NN")
        for key, name in (("miou", "mIoU"), ("pixel_accuracy", "pixel accuracy")):
            table.add_row(name, number(s[key]), number(s[f"baseline_{key}"]))
        table.add_row("calibration error (ECE)", number(s["ece"]), "", end_section="full_size" not in s)
        if "full_size" in s:
            table.add_row("mIoU at the size of the truth", number(s["full_size"]["miou"]), "", end_section=True)
        for name, value in s["iou"].items():
            table.add_row(f"IoU {name}", number(value), number(s["baseline_iou"][name]))
        found.append(table)
    if d := data.get("depth"):
        table = _table(
            f"Depth up to {d['up_to_m']:g} m, {d['frames']} frames", "", "this", "flat ground", "this, aligned"
        )
        for key, name in (
            ("abs_rel", "AbsRel"),
            ("rmse", "RMSE (m)"),
            ("delta1", "delta < 1.25"),
            ("delta2", "delta < 1.25²"),
            ("delta3", "delta < 1.25³"),
        ):
            table.add_row(name, number(d[key]), number(d[f"baseline_{key}"]), number(d["aligned"][key]))
        found.append(table)
        if d.get("by_confidence"):
            found.append(_by_confidence(d["by_confidence"]))
    if data.get("detection"):
        found.append(_objects(data))
    if data.get("correspondences"):
        table = _table(
            "Matches: share within so many pixels",
            "frames apart",
            "matcher",
            *(f"{p} px" for p in PCK_PIXELS),
            "median px",
            "matches",
        )
        for gap, numbers in data["correspondences"].items():
            for i, (name, row) in enumerate(
                (("this", numbers), ("ORB + ratio", numbers["baseline_orb"]), ("Lucas-Kanade", numbers["baseline_lk"]))
            ):
                table.add_row(
                    "" if i else gap,
                    name,
                    *(number(row[f"pck{p}"]) for p in PCK_PIXELS),
                    number(row["median_px"], 2),
                    number(row["matches"], 0),
                    end_section=i == 2,
                )
        found.append(table)
    if data.get("odometry"):
        found.append(_odometry(data["odometry"]))
    return found


def _odometry(data: dict[str, Any]) -> Table:
    rows = data["rows"]
    table = _table(
        f"Odometry, {rows[0]['drives']} drives of {rows[0]['metres']:.1f} m in all; drift over {data['stretch_m']:g} m",
        "matches", "depth", "drift", "drift, scaled to fit", "ATE (m)", "end", "degrees/m", "good", "NEES (3)", "ms",
    )  # fmt: skip
    names = {"dino": "this", "orb": "ORB", "sift": "SIFT"}
    for row in rows:
        shares = [f"{100 * row[k]:.2f} %" if row[k] is not None else "-" for k in ("drift", "scaled_drift", "end")]
        table.add_row(
            names.get(row["front_end"], row["front_end"]), row["depth"], *shares[:2], number(row["ate"]), shares[2],
            number(row["degrees"], 2), f"{100 * row['good']:.0f} %", number(row["nees"], 1), number(row["ms"], 1),
        )  # fmt: skip
    return table


def _objects(data: dict[str, Any]) -> Table:
    d = data["detection"]
    table = _table(f"Objects, {d['objects']} in {data['frames']} frames", "", "this", "parts of the mask")
    rows = [
        ("ap50", "AP50"),
        ("ap", "AP, mean of 0.5 to 0.95"),
        ("ap75", "AP75"),
        ("recall", "found, of all"),
        ("precision", "right, of those told"),
        ("range_error", "range error, median"),
        ("range_error_m", "range error, median (m)"),
        ("range_known", "with a range, of those found"),
    ]
    for key, name in rows:
        if key in d:
            table.add_row(name, number(d[key]), number(d.get(f"baseline_{key}")))
    if len(d["ap50_of"]) > 1:
        table.add_section()
        for name, value in d["ap50_of"].items():
            table.add_row(f"AP50 {name}", number(value), number(d.get("baseline_ap50_of", {}).get(name)))
    return table


def _by_confidence(rows: list[dict[str, Any]]) -> Table:
    table = _table(
        "Depth by its confidence", "confidence", "pixels", "AbsRel", "AbsRel, scaled by the frame", "delta < 1.25"
    )
    everything = sum(row["pixels"] for row in rows)
    for row in rows:
        share = f"{100 * row['pixels'] / everything:.1f} %"
        span = f"{row['from']} to {row['below'] - 1}"
        table.add_row(span, share, number(row["abs_rel"]), number(row["abs_rel_scaled"]), number(row["delta1"]))
    return table


def number(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 or column == "matcher" else "right")
    return table


def plain(value: Any) -> Any:
    """Numbers as JSON has them: float instead of NumPy's, None instead of NaN and infinity."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value
