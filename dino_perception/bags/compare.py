"""Two bags of percepts side by side: what differs, topic by topic, and whether it is more than a tolerance."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from rosbags.serde import SerdeError

from dino_perception.bags.message_difference import measure_of
from dino_perception.bags.storage.problems import USAGE, BagError
from dino_perception.bags.storage.reader import BagReader
from dino_perception.bags.storage.topic import Record

TOLERANCES = {
    "mask": (0.0, "largest share of a mask's pixels whose class differs"),
    "confidence": (0.0, "largest mean difference of a confidence image, in 0..1"),
    "depth": (0.0, "largest mean relative depth difference of a frame, and share of pixels known in only one"),
    "camera": (0.0, "largest difference of a value of CameraInfo, in pixels"),
    "points": (0.0, "largest mean distance of a frame's points in metres, and share of points that exist in only one"),
    "scattered": (0.0, "largest share of a frame's scattered points without one within about 5 cm in the other bag"),
    "grid": (0.0, "largest share of a map's cells that differ"),
    "matches": (0.0, "largest share of a frame's matches without one within 1 pixel at both ends in the other bag"),
    "overlay": (0.0, "largest mean difference of a picture, in grey levels"),
    "pose": (0.0, "largest difference of a frame's pose, in metres or radians"),
    "boxes": (0.0, "largest share of a frame's detections without one of their class that is alike in the other bag"),
    "vector": (0.0, "largest difference of a frame's descriptor, as 1 - cosine"),
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
    kind, measure = measure_of(name, mine.type)
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
    if left.topic.coding != "cdr" or right.topic.coding != "cdr":
        return {"bytes": 1.0}
    x, y = (
        bag.types.serialize(bag.types.deserialize(record.data, record.topic.type))
        for bag, record in ((a, left), (b, right))
    )
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
