"""Two bags of percepts side by side: what differs, topic by topic, and whether it is more than a tolerance."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rosbags.serde import SerdeError

from dino_perception.bags.storage.problems import USAGE, BagError
from dino_perception.bags.storage.reader import BagReader
from dino_perception.bags.storage.topic import Record

TOLERANCES = {
    "mask": (0.0, "largest share of a mask's pixels whose class differs"),
    "confidence": (0.0, "largest mean difference of a confidence image, in 0..1"),
    "depth": (0.0, "largest mean relative depth difference of a frame, and share of pixels known in only one"),
    "camera": (0.0, "largest difference of a value of CameraInfo, in pixels"),
    "points": (0.0, "largest mean distance of a frame's points in metres, and share of points that exist in only one"),
    "matches": (0.0, "largest share of a frame's matches without one within 1 pixel at both ends in the other bag"),
    "overlay": (0.0, "largest mean difference of a picture, in grey levels"),
}
"""Name -> (default tolerance: equal, what it bounds)."""


@dataclass
class TopicDifference:
    """One topic: how many messages each bag has, how many pairs were compared, the figures' worst values and means, the
    number of pairs over the tolerance, and whether the topic passes. `kind` is the tolerance that applies ("" :
    bytes)."""

    topic: str
    kind: str
    messages: tuple[int, int]
    pairs: int = 0
    identical: int = 0
    over: int = 0
    unpaired: int = 0
    worst: dict[str, float] = field(default_factory=dict)
    mean: dict[str, float] = field(default_factory=dict)
    note: str = ""

    @property
    def passes(self) -> bool:
        return not self.over and not self.unpaired and not self.note


def parse_tolerances(texts: list[str]) -> dict[str, float]:
    """Tolerances from "NAME=VALUE" texts (comma or space separated). Raises BagError."""
    tolerances = {name: value for name, (value, _) in TOLERANCES.items()}
    for item in (item for text in texts for item in re.split(r"[,\s]+", text) if item and item != "exact"):
        name, _, value = item.partition("=")
        if name not in TOLERANCES:
            raise BagError(f"there is no tolerance '{name}'; they are {', '.join(TOLERANCES)}, or 'exact'", USAGE)
        try:
            tolerances[name] = float(value)
        except ValueError:
            tolerances[name] = -1.0
        if not 0 <= tolerances[name] < float("inf"):
            raise BagError(f"the tolerance {name} is '{value}'; a number from 0 up is accepted", USAGE)
    return tolerances


def compare(
    first: str | Path,
    second: str | Path,
    tolerances: Mapping[str, float],
    progress: Callable[[int, int], None] | None = None,
) -> list[TopicDifference]:
    """The differences of every topic of two bags, messages paired by their stamps. Raises BagError."""
    with BagReader(first) as a, BagReader(second) as b:
        results = []
        names = list(a.topics) + [name for name in b.topics if name not in a.topics]
        total, done = sum(t.count for t in a.topics.values()), 0
        for name in names:
            results.append(_compare_topic(a, b, name, tolerances))
            done += a.topics[name].count if name in a.topics else 0
            if progress:
                progress(done, total)
        return results


def _compare_topic(a: BagReader, b: BagReader, name: str, tolerances: Mapping[str, float]) -> TopicDifference:
    mine, other = a.topics.get(name), b.topics.get(name)
    counts = (mine.count if mine else 0, other.count if other else 0)
    if mine is None or other is None:
        return TopicDifference(
            name, "", counts, unpaired=sum(counts), note=f"only in the {'first' if mine else 'second'} bag"
        )
    if mine.type != other.type:
        return TopicDifference(name, "", counts, note=f"{mine.type} in the first bag, {other.type} in the second")
    kind, measure = _measure(name, mine.type)
    result = TopicDifference(name, kind, counts)
    sums: dict[str, float] = {}
    for left, right in _pairs(a, b, name, result):
        result.pairs += 1
        if bytes(left.data) == bytes(right.data):
            result.identical += 1
            figures: dict[str, float] = {}
        else:
            try:
                figures = (
                    _same_content(a, b, left, right) if measure is None else measure(a.decode(left), b.decode(right))
                )
            except (SerdeError, KeyError, ValueError) as error:
                result.note = f"a message cannot be compared: {error}"
                return result
        limit = tolerances.get(kind, 0.0)
        result.over += any(value > limit for value in figures.values())
        for key, value in figures.items():
            result.worst[key] = max(result.worst.get(key, 0.0), value)
            sums[key] = sums.get(key, 0.0) + value
    result.mean = {key: value / result.pairs for key, value in sums.items()}
    return result


def _same_content(a: BagReader, b: BagReader, left: Record, right: Record) -> dict[str, float]:
    """Whether two messages say the same although their bytes differ: rclpy leaves padding between fields as it was."""
    x, y = (bag.types.serialize(bag.decode(record)) for bag, record in ((a, left), (b, right)))
    return {} if x == y else {"bytes": 1.0}


def _pairs(a: BagReader, b: BagReader, name: str, result: TopicDifference) -> Iterator[tuple[Record, Record]]:
    """Messages of one record time, in order; what has no partner is counted."""
    left, right = a.messages([name]), b.messages([name])
    x, y = next(left, None), next(right, None)
    while x is not None or y is not None:
        if x is not None and y is not None and x.time_ns == y.time_ns:
            yield x, y
            x, y = next(left, None), next(right, None)
            continue
        result.unpaired += 1
        if y is None or (x is not None and x.time_ns < y.time_ns):
            x = next(left, None)
        else:
            y = next(right, None)


def _measure(name: str, kind: str) -> tuple[str, Callable[[Any, Any], dict[str, float]] | None]:
    leaf = name.rpartition("/")[2]
    if kind == "sensor_msgs/msg/Image" and leaf in ("mask", "confidence", "overlay"):
        return leaf, {"mask": _mask, "confidence": _confidence, "overlay": _overlay}[leaf]
    if kind == "sensor_msgs/msg/Image" and "depth" in name:
        return "depth", _depth
    if kind == "sensor_msgs/msg/CameraInfo":
        return "camera", _camera
    if kind == "sensor_msgs/msg/PointCloud2":
        return "points", _points
    if kind == "dino_perception/msg/Correspondences":
        return "matches", _matches
    if kind == "vision_msgs/msg/LabelInfo":
        return "", _labels
    return "", None


def _pixels(message: Any) -> np.ndarray:
    kind = {
        "mono8": np.uint8,
        "rgb8": np.uint8,
        "bgr8": np.uint8,
        "32FC1": np.float32,
        "16UC1": np.uint16,
        "mono16": np.uint16,
    }
    if message.encoding not in kind:
        raise ValueError(f"encoding {message.encoding}")
    rows = np.frombuffer(message.data, np.uint8).reshape(message.height, message.step)
    channels = 3 if message.encoding in ("rgb8", "bgr8") else 1
    size = np.dtype(kind[message.encoding]).itemsize
    return np.ascontiguousarray(rows[:, : message.width * channels * size]).view(kind[message.encoding])


def _same_shape(x: np.ndarray, y: np.ndarray) -> None:
    if x.shape != y.shape:
        raise ValueError(f"sizes {x.shape} and {y.shape}")


def _header(x: Any, y: Any) -> dict[str, float]:
    """A stamp or frame that differs is a difference that no tolerance covers."""
    # By value: two bags may have classes of their own for one type.
    a, b = ((m.header.stamp.sec, m.header.stamp.nanosec, m.header.frame_id) for m in (x, y))
    return {"header": float("inf")} if a != b else {}


def _mask(x: Any, y: Any) -> dict[str, float]:
    p, q = _pixels(x), _pixels(y)
    _same_shape(p, q)
    return {"pixels": float((p != q).mean()), **_header(x, y)}


def _confidence(x: Any, y: Any) -> dict[str, float]:
    p, q = _pixels(x), _pixels(y)
    _same_shape(p, q)
    return {"mean": float(np.abs(p.astype(np.float32) - q).mean() / 255), **_header(x, y)}


def _overlay(x: Any, y: Any) -> dict[str, float]:
    p, q = _pixels(x), _pixels(y)
    _same_shape(p, q)
    return {"mean": float(np.abs(p.astype(np.float32) - q).mean()), **_header(x, y)}


def _depth(x: Any, y: Any) -> dict[str, float]:
    p, q = _pixels(x).astype(np.float64), _pixels(y).astype(np.float64)
    _same_shape(p, q)
    known, also = np.isfinite(p), np.isfinite(q)
    both = known & also
    relative = np.abs(p[both] - q[both]) / np.maximum(np.abs(p[both]), 1e-6)
    return {
        "relative": float(relative.mean()) if both.any() else 0.0,
        "unknown": float((known != also).mean()),
        **_header(x, y),
    }


def _camera(x: Any, y: Any) -> dict[str, float]:
    if (x.width, x.height, x.distortion_model, len(x.d)) != (y.width, y.height, y.distortion_model, len(y.d)):
        return {"value": float("inf")}
    return {
        "value": max(
            [
                float(np.abs(np.asarray(getattr(x, n)) - np.asarray(getattr(y, n))).max())
                for n in "dkrp"
                if len(getattr(x, n))
            ],
            default=0.0,
        ),
        **_header(x, y),
    }


def _points(x: Any, y: Any) -> dict[str, float]:
    p, q = _cloud(x), _cloud(y)
    _same_shape(p, q)
    xyz, uvw = (np.stack([c[axis] for axis in "xyz"], axis=-1).astype(np.float64) for c in (p, q))
    known, also = np.isfinite(xyz).all(-1), np.isfinite(uvw).all(-1)
    both = known & also
    far = np.linalg.norm(xyz[both] - uvw[both], axis=-1)
    figures = {"metres": float(far.mean()) if both.any() else 0.0, "missing": float((known != also).mean())}
    for name in set(p.dtype.names) - {"x", "y", "z"}:
        figures[name] = float((p[name].view(np.uint32) != q[name].view(np.uint32)).mean())
    return {**figures, **_header(x, y)}


def _cloud(message: Any) -> np.ndarray:
    kinds = {7: "<f4", 6: "<u4", 2: "u1"}
    layout = np.dtype(
        {
            "names": [f.name for f in message.fields],
            "formats": [kinds[f.datatype] for f in message.fields],
            "offsets": [f.offset for f in message.fields],
            "itemsize": message.point_step,
        }
    )
    return np.frombuffer(message.data, layout).reshape(message.height, message.width)


def _labels(x: Any, y: Any) -> dict[str, float]:
    """Classes and threshold; the stamp only says since when they hold."""
    a, b = (([(c.class_id, c.class_name) for c in m.class_map], m.threshold) for m in (x, y))
    return {} if a == b else {"classes": 1.0}


def _matches(x: Any, y: Any) -> dict[str, float]:
    """Matches of one bag that have no partner within a pixel at both ends in the other, as a share of all."""
    p, q = (
        np.stack([np.asarray(m.x), np.asarray(m.y), np.asarray(m.reference_x), np.asarray(m.reference_y)], axis=-1)
        for m in (x, y)
    )
    total = len(p) + len(q)
    if not total:
        return _header(x, y)
    alone = sum(_without_partner(left, right) for left, right in ((p, q), (q, p)))
    return {"unmatched": alone / total, **_header(x, y)}


def _without_partner(left: np.ndarray, right: np.ndarray) -> int:
    if not len(left) or not len(right):
        return len(left)
    alone = 0
    for start in range(0, len(left), 512):
        gap = np.abs(left[start : start + 512, None] - right[None]).max(-1).min(-1)
        alone += int((gap > 1.0).sum())
    return alone
