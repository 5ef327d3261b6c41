"""How far two messages of one topic are apart, in the terms of what the topic shows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from dino_perception.messages.percepts import cloud_array
from dino_perception.messages.topics import known

Measure = Callable[[Any, Any], dict[str, float]]
"""Figures of two messages that differ; all must stay within the tolerance. Raises ValueError when they cannot be
compared."""


def measure_of(name: str, kind: str) -> tuple[str, Measure | None]:
    """The tolerance of a topic and how its messages are compared: by what the topic is known to show, else by type."""
    topic = known(name)
    shows = topic.shows if topic and topic.type == kind else _FOREIGN.get(kind, "")
    return MEASURES.get(shows, ("", None))


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
    p, q = cloud_array(x), cloud_array(y)
    _same_shape(p, q)
    xyz, uvw = (np.stack([c[axis] for axis in "xyz"], axis=-1).astype(np.float64) for c in (p, q))
    known, also = np.isfinite(xyz).all(-1), np.isfinite(uvw).all(-1)
    both = known & also
    far = np.linalg.norm(xyz[both] - uvw[both], axis=-1)
    figures = {"metres": float(far.mean()) if both.any() else 0.0, "missing": float((known != also).mean())}
    for name in set(p.dtype.names) - {"x", "y", "z"}:
        figures[name] = float((p[name].view(np.uint32) != q[name].view(np.uint32)).mean())
    return {**figures, **_header(x, y)}


def _scattered(x: Any, y: Any) -> dict[str, float]:
    """Points of one cloud that have no partner within 5 cm in the other, as a share of all."""
    p, q = (np.stack([cloud[axis] for axis in "xyz"], -1).reshape(-1, 3) for cloud in (cloud_array(x), cloud_array(y)))
    total = len(p) + len(q)
    if not total:
        return _header(x, y)
    places = [np.unique(np.round(points / 0.05).astype(np.int64), axis=0) for points in (p, q)]
    alone = sum(_far_from(a, b) for a, b in (places, places[::-1]))
    return {"alone": alone / max(1, sum(map(len, places))), **_header(x, y)}


def _far_from(left: np.ndarray, right: np.ndarray) -> int:
    """How many of the cells (N, 3) have none of the other cells in them or beside them."""
    steps = np.stack(np.meshgrid(*[(-1, 0, 1)] * 3, indexing="ij"), -1).reshape(-1, 3)
    near = {tuple(cell) for cell in (right[:, None] + steps).reshape(-1, 3).tolist()}
    return sum(tuple(cell) not in near for cell in left.tolist())


def _grid(x: Any, y: Any) -> dict[str, float]:
    p, q = (np.asarray(m.data, np.int8).reshape(m.info.height, m.info.width) for m in (x, y))
    _same_shape(p, q)
    a, b = ((m.info.resolution, m.info.origin.position.x, m.info.origin.position.y) for m in (x, y))
    if a != b:
        return {"cells": float("inf")}
    return {"cells": float((p != q).mean()), **_header(x, y)}


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


def _vector(x: Any, y: Any) -> dict[str, float]:
    p, q = (np.asarray(m.vector, np.float64) for m in (x, y))
    _same_shape(p, q)
    return {
        "angle": float(np.clip(1 - p @ q / max(np.linalg.norm(p) * np.linalg.norm(q), 1e-12), 0, 2)),
        **_header(x, y),
    }


def _odometry(x: Any, y: Any) -> dict[str, float]:
    """Metres and radians between two poses."""
    p, q = (m.pose.pose for m in (x, y))
    far = np.linalg.norm([getattr(p.position, a) - getattr(q.position, a) for a in "xyz"])
    same = abs(sum(getattr(p.orientation, a) * getattr(q.orientation, a) for a in "xyzw"))
    if x.child_frame_id != y.child_frame_id:
        return {"header": float("inf")}
    return {"pose": float(max(far, 2 * np.arccos(min(1.0, same)))), **_header(x, y)}


def _boxes(x: Any, y: Any) -> dict[str, float]:
    """Detections without a partner of their class whose box overlaps theirs by 0.9 (IoU), as a share of all."""
    p, q = (_detections(m, lambda b: (b.center.position.x, b.center.position.y, b.size_x, b.size_y)) for m in (x, y))

    def alike(a: list[float], b: list[float]) -> bool:
        common = 1.0
        for i in (0, 1):
            low, high = max(a[i] - a[i + 2] / 2, b[i] - b[i + 2] / 2), min(a[i] + a[i + 2] / 2, b[i] + b[i + 2] / 2)
            common *= max(0.0, high - low)
        return common >= 0.9 * (a[2] * a[3] + b[2] * b[3] - common)

    return {"unmatched": _alone(p, q, alike), **_header(x, y)}


def _boxes_in_space(x: Any, y: Any) -> dict[str, float]:
    """Detections without a partner of their class within a tenth of its distance, as a share of all."""
    p, q = (_detections(m, lambda b: [getattr(b.center.position, axis) for axis in "xyz"]) for m in (x, y))
    alike = lambda a, b: np.linalg.norm(np.subtract(a, b)) <= 0.1 * np.linalg.norm(a)
    return {"unmatched": _alone(p, q, alike), **_header(x, y)}


def _detections(message: Any, place: Callable[[Any], Any]) -> list[tuple[str, Any]]:
    """(class, place) of each."""
    return [(d.results[0].hypothesis.class_id if d.results else "", place(d.bbox)) for d in message.detections]


def _alone(first: list, second: list, alike: Callable[[Any, Any], bool]) -> float:
    alone = 0
    for own, others in ((first, second), (second, first)):
        alone += sum(not any(name == other and alike(a, b) for other, b in others) for name, a in own)
    return alone / max(1, len(first) + len(second))


MEASURES: Mapping[str, tuple[str, Measure]] = {
    "labels": ("mask", _mask),
    "levels": ("confidence", _confidence),
    "metres": ("depth", _depth),
    "picture": ("overlay", _overlay),
    "camera": ("camera", _camera),
    "points": ("points", _points),
    "scattered": ("scattered", _scattered),
    "grid": ("grid", _grid),
    "matches": ("matches", _matches),
    "classes": ("", _labels),
    "vector": ("vector", _vector),
    "odometry": ("pose", _odometry),
    "boxes": ("boxes", _boxes),
    "boxes in space": ("boxes", _boxes_in_space),
}
"""What a topic shows -> (tolerance, figures of two messages)."""
_FOREIGN = {"sensor_msgs/msg/CameraInfo": "camera", "sensor_msgs/msg/PointCloud2": "points"}
"""What topics of other packages show, by their type; all others must have the same bytes or the same content."""
