"""What the demo measures: what arrived and when, whether it fits together, and how near it is to the ground truth."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dino_perception.measuring.demo_run import NODE, Run
from dino_perception.messages.topics import known
from dino_perception.messages.types import RosbagsTypes
from dino_perception.models.label_sets import Label, named
from dino_perception.ros.rig.watcher import Heard
from dino_perception.training.datasets.base import DataError, Dataset, Sample
from dino_perception.training.evaluation.evaluate import label_table
from dino_perception.training.evaluation.metrics import DepthScore, MatchScore, SegmentationScore
from dino_perception.training.evaluation.reprojection import end_point_errors

FRAMEWISE = ("segmentation/mask", "segmentation/confidence", "depth/image", "depth/camera_info", "points")
"""The topics that carry one stamp, one frame_id and one size for each frame."""
FARTHEST = 30.0
"""Metres up to which depth is scored."""


@dataclass(frozen=True)
class Scored:
    """`report` is what goes to report.json; `problems` are sentences, empty when all is as it should be; `match_errors`
    holds (N,) pixels off, NaN where the truth is unknown, for each correspondences message by stamp; `labels` are the
    classes of the masks."""

    report: dict[str, Any]
    problems: list[str]
    match_errors: dict[int, np.ndarray]
    labels: tuple[Label, ...]


def score(
    run: Run,
    image_topic: str,
    images: Mapping[int, str],
    data: Dataset,
    types: RosbagsTypes,
) -> Scored:
    """Everything the demo says about a run. `images` holds the frame_id of every image of the bag, by its stamp, and
    `data` what is known about it. `image_topic` is the images' name in the bag."""
    samples = {sample.stamp_ns: sample for sample in data.samples}
    labels, notes = mask_labels(run, types) or data.labels, []
    stamps, sizes = stamp_mismatches(run, images), size_mismatches(run, types)
    matches, errors = match_score(run.of("correspondences"), samples, types)
    _, values = run.status.get("dino_perception: perception", ("", {}))
    report = {
        "topics": {topic: {"count": len(heard), "rate_hz": rate(heard)} for topic, heard in run.heard.items()},
        "frames_in": run.played.get(image_topic, 0),
        "frames_out": len({heard.stamp_ns for name in FRAMEWISE for heard in run.of(name)}),
        "stamp_mismatches": stamps,
        "size_mismatches": sizes,
        "latency_ms": percentiles(latencies(run)),
        "miou": rounded(mean_iou(run.of("segmentation/mask"), data, labels, types, notes)),
        "abs_rel": rounded(depth_error(run.of("depth/image"), samples, types)),
        "pck4": rounded(matches.pck((4,))[0]),
        "engine": values.get("engine"),
        "weights_trained": {"yes": True, "no": False}.get(values.get("trained", "")),
        "notes": notes,
    }
    silent = [topic for topic, heard in run.heard.items() if not heard]
    unseen = any(values.get("ground") == "not seen" for _, values in run.status.values())
    groundless = [topic for topic in silent if unseen and (about := known(topic)) and about.followed]
    notes += [f"nothing came on {topic}: no ground was found in the depth of any frame" for topic in groundless]
    problems = [f"nothing came on {topic}" for topic in silent if topic not in groundless]
    if stamps:
        problems.append(
            f"{stamps} messages do not carry the stamp and frame_id of an image, or lack companions of their stamp"
        )
    if sizes:
        problems.append(f"{sizes} frames have messages of different sizes")
    return Scored(report, problems, errors, labels)


def rate(heard: Sequence[Heard]) -> float:
    """Messages a second between the first and the last, 0 for fewer than two."""
    span = (heard[-1].sent_ns - heard[0].sent_ns) / 1e9 if len(heard) > 1 else 0.0
    return round((len(heard) - 1) / span, 3) if span > 0 else 0.0


def latencies(run: Run) -> np.ndarray:
    """(N,) milliseconds, for each frame, from when its image was published until the last of its data was."""
    last: dict[int, int] = {}
    for name in (*FRAMEWISE, "correspondences"):
        for heard in run.of(name):
            last[heard.stamp_ns] = max(last.get(heard.stamp_ns, 0), heard.sent_ns)
    return np.array([(sent - run.sent_ns[stamp]) / 1e6 for stamp, sent in last.items() if stamp in run.sent_ns])


def percentiles(values: np.ndarray) -> dict[str, float | None]:
    """p50, p95 and p99, None when there are no values."""
    return {f"p{p}": round(float(np.percentile(values, p)), 3) if len(values) else None for p in (50, 95, 99)}


def stamp_mismatches(run: Run, images: Mapping[int, str]) -> int:
    """Messages that carry a stamp or frame_id which no image has, and messages whose stamp is not on all that are
    offered of the five topics that belong together, or more than once."""
    wrong = 0
    for topic, heard in run.heard.items():
        if (about := known(topic)) and not about.latched:  # the others belong to no image
            wrong += sum(images.get(message.stamp_ns) != message.frame_id for message in heard)
    offered = [name for name in FRAMEWISE if f"{NODE}/{name}" in run.heard]
    stamps = [[message.stamp_ns for message in run.of(name)] for name in offered]
    complete = set.intersection(*map(set, stamps)) if stamps else set()
    return wrong + sum(len(group) - len(complete) for group in stamps)


def size_mismatches(run: Run, types: RosbagsTypes) -> int:
    """Frames whose mask, confidence, depth, camera_info and points are not all of one size, without row padding."""
    sizes: dict[int, set] = {}
    for name in FRAMEWISE:
        for heard in run.of(name):
            message = types.deserialize(heard.data, heard.type)
            size = (message.height, message.width)
            pixel = {"depth/image": 4, "points": getattr(message, "point_step", 0)}.get(name, 1)
            if hasattr(message, "data") and len(message.data) != message.height * message.width * pixel:
                size = name  # equals no size
            sizes.setdefault(heard.stamp_ns, set()).add(size)
    return sum(len(found) > 1 for found in sizes.values())


def mask_labels(run: Run, types: RosbagsTypes) -> tuple[Label, ...]:
    """The classes of the masks, as the node named them; () where it did not."""
    for heard in run.of("segmentation/label_info")[-1:]:
        return named({c.class_id: c.class_name for c in types.deserialize(heard.data, heard.type).class_map})
    return ()


def mean_iou(
    masks: Sequence[Heard], data: Dataset, labels: Sequence[Label], types: RosbagsTypes, notes: list[str]
) -> float:
    """Mean intersection over union of the classes that occur, over all pixels of all frames at the mask's size; NaN, and
    a note that says why, where the masks' `labels` and the data's have no name in common."""
    if not data.labels:
        return math.nan
    try:
        table, judged = label_table(data, labels, notes)
    except DataError as error:
        notes.append(f"the masks are not judged: {error}")
        return math.nan
    total, samples = (
        SegmentationScore(1 + max(label.id for label in labels), judged),
        {s.stamp_ns: s for s in data.samples},
    )
    for heard in masks:
        sample = samples.get(heard.stamp_ns)
        if sample is not None and sample.read_classes is not None:
            mask = image_array(types.deserialize(heard.data, heard.type), np.uint8)
            total.add(table[resampled(sample.read_classes(), mask.shape)], mask)
    return total.miou


def depth_error(images: Sequence[Heard], samples: Mapping[int, Sample], types: RosbagsTypes) -> float:
    """AbsRel: mean of |d - t| / t where the truth t is at most 30 m, averaged over frames."""
    total = DepthScore(farthest=FARTHEST)
    for heard in images:
        sample = samples.get(heard.stamp_ns)
        if sample is not None and sample.read_depth is not None:
            truth, metres = sample.read_depth(), image_array(types.deserialize(heard.data, heard.type), np.float32)
            shape = min(truth.shape, metres.shape)  # the coarser one: no pixel is made up
            total.add(resampled(truth, shape), resampled(metres, shape))
    return total.numbers()["abs_rel"]


def match_score(
    correspondences: Sequence[Heard], samples: Mapping[int, Sample], types: RosbagsTypes
) -> tuple[MatchScore, dict[int, np.ndarray]]:
    """How far each match is from where its reference pixel really went, by the reference's true depth and both poses:
    all together, and for each message by its stamp."""
    total, by_stamp = MatchScore(), {}
    for heard in correspondences:
        message = types.deserialize(heard.data, heard.type)
        sample, reference = samples.get(heard.stamp_ns), samples.get(stamp_ns(message.reference_header))
        if (
            any(s is None or s.pose is None or s.camera is None for s in (sample, reference))
            or reference.read_depth is None
        ):
            continue
        errors = end_point_errors(
            np.stack([message.reference_x, message.reference_y], axis=1),
            np.stack([message.x, message.y], axis=1),
            reference.read_depth(),
            reference.camera,
            reference.pose,
            sample.camera,
            sample.pose,
        )
        total.add(errors[~np.isnan(errors)], len(errors))
        by_stamp[heard.stamp_ns] = errors
    return total, by_stamp


def resampled(truth: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """(H, W) truth at another size that shows the same: the pixel in which each new pixel's centre lies."""
    rows, columns = (
        np.minimum((np.arange(new) + 0.5) * old / new, old - 1).astype(int) for new, old in zip(shape, truth.shape)
    )
    return truth[rows[:, None], columns]


def image_array(message: Any, dtype: type) -> np.ndarray:
    """(H, W) or (H, W, C) pixels of an unpadded sensor_msgs/Image."""
    values = np.frombuffer(message.data, dtype)
    channels = values.size // (message.height * message.width)
    return values.reshape(message.height, message.width, *([channels] if channels > 1 else []))


def stamp_ns(header: Any) -> int:
    return header.stamp.sec * 1_000_000_000 + header.stamp.nanosec


def rounded(value: float) -> float | None:
    """For JSON, which has no NaN."""
    return round(value, 4) if math.isfinite(value) else None
