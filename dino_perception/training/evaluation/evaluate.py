"""How good the perception is on data with truth, each number beside that of a simple baseline on the same frames.

What is judged is what the node publishes: percepts of `Perceiver`, their depth scaled where the settings ask for it, every published pixel against the truth where its
centre lies (or, where the truth is the coarser one, every pixel of the truth against the published value there). Where
the truth is finer, masks are judged a second time at its size. Baselines are judged alike. They are fitted on the other
half of the same frames (every second one), which favours them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from dino_perception.models.label_sets import GROUP_LABELS, Label, group
from dino_perception.perception.depth_scale import DepthScale
from dino_perception.perception.frame import IGNORE, Percept
from dino_perception.perception.perceiver import Perceiver
from dino_perception.training.datasets import DataError, Dataset, Sample
from dino_perception.training.evaluation import detections
from dino_perception.training.evaluation.baselines import MATCHERS, ColourNeighbours, FlatGround, descent
from dino_perception.training.evaluation.metrics import DepthScore, MatchScore, SegmentationScore
from dino_perception.training.evaluation.odometry import OdometryScore, judge_odometry
from dino_perception.training.evaluation.reprojection import end_point_errors
from dino_perception.training.evaluation.sampling import nearest

GAPS = (1, 3, 10, 30)
Progress = Callable[[str, int, int], None]
KEPT = 3


@dataclass
class Shown:
    """A frame for the gallery: its picture, truth and prediction at the size of the truth, and how well it went."""

    name: str
    goodness: float
    image: np.ndarray
    truth: np.ndarray
    given: np.ndarray


@dataclass
class Gallery:
    """The best and the worst frames of one head."""

    best: list[Shown] = field(default_factory=list)
    worst: list[Shown] = field(default_factory=list)

    def offer(self, shown: Shown) -> None:
        if np.isfinite(shown.goodness):
            self.best = sorted([*self.best, shown], key=lambda s: -s.goodness)[:KEPT]
            self.worst = sorted([*self.worst, shown], key=lambda s: s.goodness)[:KEPT]


@dataclass
class Evaluation:
    """Scores by head; None or empty where the data has no truth for it."""

    source: str
    frames: int
    labels: tuple[Label, ...] = ()
    segmentation: SegmentationScore | None = None
    segmentation_baseline: SegmentationScore | None = None
    segmentation_full: SegmentationScore | None = None
    """At the size of the truth, where that is finer than what is published."""
    depth: DepthScore | None = None
    depth_baseline: DepthScore | None = None
    objects: detections.ObjectJudge | None = None
    matches: dict[int, dict[str, MatchScore]] = field(default_factory=dict)
    """By gap, then by "dino", "orb" and "lk"."""
    odometry: list[OdometryScore] = field(default_factory=list)
    galleries: dict[str, Gallery] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def evaluate(
    perceiver: Perceiver,
    data: Dataset,
    *,
    kinds: Sequence[str] | None = None,
    gaps: Sequence[int] = GAPS,
    pairs: int = 40,
    limit: int = 0,
    farthest: float = 30.0,
    odometry: bool = False,
    progress: Progress | None = None,
) -> Evaluation:
    """Every number that the data has truth for. `kinds` are the heads to judge, by default all that are loaded; `pairs`
    the frame pairs a gap and `limit` the frames at most (0: all), spread evenly; `farthest` the metres up to which
    depth is judged. With `odometry`, all frames of each drive are driven too.

    Leaves the perceiver without tracks. Raises DataError, FrameError.
    """
    tell = progress or (lambda *_: None)
    kinds = [k for k in perceiver.describe()["heads"] if kinds is None or k in kinds]
    frames = data.chosen(spread(range(len(data.samples)), limit or len(data.samples)))
    result = Evaluation(data.source, len(frames.samples), perceiver.labels)
    judge = _FrameJudge(perceiver, frames, kinds, farthest, result)
    if judge.wanted:
        judge.fit(tell)
        for number, sample in enumerate(frames.samples):
            tell("judging frames", number, len(frames.samples))
            judge.judge(number, sample)
    if "correspondences" in kinds:
        _judge_matches(perceiver, data, gaps, pairs, result, tell)
    if odometry:
        result.odometry = judge_odometry(perceiver, data, tell)
    return result


class _FrameJudge:
    """Segmentation and depth of single frames."""

    def __init__(self, perceiver: Perceiver, data: Dataset, kinds: Sequence[str], farthest: float, result: Evaluation):
        self.perceiver, self.data, self.result, self.farthest = perceiver, data, result, farthest
        self.wanted = set()
        if "segmentation" in kinds and any(s.read_classes for s in data.samples):
            self.table, judged = label_table(data, perceiver.labels, result.notes)
            result.segmentation = SegmentationScore(len(perceiver.labels), judged)
            result.segmentation_baseline = SegmentationScore(len(perceiver.labels), judged)
            self.colours = [ColourNeighbours(len(perceiver.labels)) for _ in range(2)]
            self.wanted.add("segmentation")
        if "depth" in kinds and any(s.read_depth for s in data.samples):
            result.depth, result.depth_baseline = DepthScore(farthest=farthest), DepthScore(farthest=farthest)
            self.grounds: dict[tuple[str, int], FlatGround] = {}
            self.wanted.add("depth")
        for kind in self.wanted:
            result.galleries[kind] = Gallery()
        if "detection" in kinds and any(s.read_boxes for s in data.samples):
            result.objects = detections.ObjectJudge(data, perceiver.specs["detection"].labels, perceiver.settings)
            result.notes += [why] if (why := detections.lacking()) else []
            self.wanted.add("detection")
        for kind in sorted({"segmentation", "depth", "detection"} & set(kinds) - self.wanted):
            result.notes.append(f"{data.source} has no truth for {kind}")
        self.scale = DepthScale()
        scaled = "depth" in self.wanted and perceiver.settings.head["depth"].camera_height_scaling
        self.asked = {*self.wanted, "segmentation"} if scaled else self.wanted  # which tells what is ground
        if scaled and not perceiver.settings.camera_height:
            result.notes.append("depth is not scaled by height: camera_height is 0, and TF is not read here")

    def fit(self, tell: Progress) -> None:
        """Show the baselines their half of the frames: fold 0 learns from odd frames and is judged on even ones."""
        samples = self.data.samples
        places = sorted({round(p) for p in np.linspace(0, len(samples) - 1, min(len(samples), 120))})
        for done, place in enumerate(places):
            tell("fitting baselines", done, len(places))
            sample, fold = samples[place], 1 - place % 2
            if "segmentation" in self.wanted and sample.read_classes:
                image = sample.read_image()
                self.colours[fold].add(
                    image,
                    self.table[sample.truth("segmentation", image)],
                    2 * self.colours[fold].samples // len(places) + 1,
                )
            if "depth" in self.wanted and sample.read_depth:
                truth = sample.read_depth()
                down = descent(sample.camera, sample.pose, truth.shape)
                for scene in (sample.scene, ""):
                    ground = self.grounds.setdefault((scene, fold), FlatGround(self.farthest))
                    ground.add(_thinned(truth), down)

    def judge(self, number: int, sample: Sample) -> None:
        frame, fold = sample.frame(), number % 2
        percept = self.scale.scaled(self.perceiver.perceive([frame], [self.asked])[0], self.perceiver.settings)
        if "detection" in self.wanted and sample.read_boxes:
            self.result.objects.judge(sample, percept)
        if "segmentation" in self.wanted and sample.read_classes:
            full = self.table[sample.truth("segmentation", frame.image)]
            truth, mask, confidence = common_grid(
                full, percept, percept.segmentation.mask, percept.segmentation.confidence
            )
            one = self.result.segmentation.add(truth, mask, confidence)
            guess = self.colours[fold].predict(frame.image)
            self.result.segmentation_baseline.add(truth, nearest(guess, *truth.shape))
            if truth is not full:
                self.result.segmentation_full = self.result.segmentation_full or SegmentationScore(
                    self.result.segmentation.classes, self.result.segmentation.judged
                )
                self.result.segmentation_full.add(full, covering(percept.segmentation.mask, percept, full.shape))
            self._show("segmentation", sample, one.miou, frame.image, truth, mask)
        if "depth" in self.wanted and sample.read_depth:
            said = [array for array in (percept.depth.metres, percept.depth.confidence) if array is not None]
            truth, metres, *confidence = common_grid(sample.truth("depth", frame.image), percept, *said)
            row = self.result.depth.add(truth, metres, *confidence)
            ground = self.grounds.get((sample.scene, fold)) or self.grounds.get(("", fold))
            if ground:
                down = descent(sample.camera, sample.pose, truth.shape)
                self.result.depth_baseline.add(truth, ground.predict(truth.shape, down))
            self._show("depth", sample, -row[0] if row is not None else np.nan, frame.image, truth, metres)

    def _show(
        self, kind: str, sample: Sample, goodness: float, image: np.ndarray, truth: np.ndarray, given: np.ndarray
    ) -> None:
        self.result.galleries[kind].offer(
            Shown(sample.name, float(goodness), nearest(image, *truth.shape), truth, given)
        )


def _judge_matches(
    perceiver: Perceiver, data: Dataset, gaps: Sequence[int], limit: int, result: Evaluation, tell: Progress
) -> None:
    usable = [s for s in data.samples if s.pose is not None and s.camera is not None and s.read_depth]
    if not usable:
        result.notes.append(f"{data.source} has no poses with depth and camera model, so matches cannot be judged")
        return
    for gap in gaps:
        chosen = spread(pairs_at(usable, gap), limit)
        if not chosen:
            result.notes.append(f"{data.source} has no two frames {gap} apart")
            continue
        scores = result.matches[gap] = {name: MatchScore() for name in ("dino", *MATCHERS)}
        for done, (first, second) in enumerate(chosen):
            tell(f"judging matches {gap} apart", done, len(chosen))
            frames = first.frame(), second.frame()
            depth = first.truth("depth", frames[0].image)
            for name, (reference_xy, xy) in _all_matches(perceiver, *frames).items():
                errors = end_point_errors(reference_xy, xy, depth, first.camera, first.pose, second.camera, second.pose)
                scores[name].add(errors[~np.isnan(errors)], len(errors))


def _all_matches(perceiver: Perceiver, first, second) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    perceiver.reset_tracks()
    perceiver.perceive([first], [{"correspondences"}])
    found = perceiver.perceive([second], [{"correspondences"}])[0].correspondences
    dino = (np.stack([found.reference_x, found.reference_y], axis=-1), np.stack([found.x, found.y], axis=-1))
    return {"dino": dino, **{name: match(first.image, second.image) for name, match in MATCHERS.items()}}


def _thinned(truth: np.ndarray) -> np.ndarray:
    """Depth of which some 60 rows are left, in their places: a baseline needs no more."""
    step = max(1, min(truth.shape) // 60)
    kept = np.full_like(truth, np.nan)
    kept[::step, ::step] = truth[::step, ::step]
    return kept


def pairs_at(samples: Sequence[Sample], gap: int) -> list[tuple[Sample, Sample]]:
    """Frames of one drive that are `gap` apart in it, the earlier one first."""
    by_place = {(s.scene, s.number): s for s in samples}
    return [(s, by_place[s.scene, s.number + gap]) for s in samples if (s.scene, s.number + gap) in by_place]


def spread(items: Sequence, count: int) -> list:
    """At most `count` of them, evenly spaced."""
    if len(items) <= count:
        return list(items)
    return [items[round(p)] for p in np.linspace(0, len(items) - 1, count)]


def common_grid(truth: np.ndarray, percept: Percept, *arrays: np.ndarray) -> tuple[np.ndarray, ...]:
    """Truth (H, W) of an image and a percept's arrays (h, w) of it, all at the size of the coarser of the two, so that
    no pixel is made up. The truth is the same array when it is the coarser one."""
    height, width = percept.output_height, percept.output_width
    if truth.shape[0] * truth.shape[1] <= height * width:
        return (truth, *(covering(array, percept, truth.shape) for array in arrays))
    image_height, image_width = percept.frame.image.shape[:2]
    x, y = percept.output_scale
    scale = (x * image_width / truth.shape[1], y * image_height / truth.shape[0])
    return (nearest(truth, height, width, scale), *arrays)


def covering(array: np.ndarray, percept: Percept, shape: tuple[int, int]) -> np.ndarray:
    """A percept's array (h, w) at the size of a truth (H, W) of the same image: for each pixel the value published for
    where its centre lies."""
    height, width = percept.frame.image.shape[:2]
    x, y = percept.output_scale
    return nearest(array, *shape, scale=(shape[1] / width / x, shape[0] / height / y))


def label_table(data: Dataset, labels: Sequence[Label], notes: list[str]) -> tuple[np.ndarray, list[int]]:
    """(256,) uint8 from the data's class ids to the head's, by name, and the head's classes that the data knows; where
    the head tells groups (`segmentation.groups`), by the group of each of the data's classes.

    Pixels of other classes are not judged. Raises DataError when no name is shared.
    """
    by_name = {label.name: label.id for label in labels}
    table = np.full(256, IGNORE, np.uint8)
    grouped = tuple(labels) == GROUP_LABELS
    meant = {label: group(label.name) if grouped else label.name for label in data.labels}
    known = {label: by_name[name] for label, name in meant.items() if name in by_name and name != "unknown"}
    for label, target in known.items():
        table[label.id] = target
    shared = sorted(set(known.values()))
    unknown = [label.name for label in data.labels if label not in known]
    if not shared:
        raise DataError(
            f"the classes of {data.source} ({', '.join(l.name for l in data.labels)}) and those of the segmentation "
            f"head ({', '.join(by_name)}) have no name in common"
        )
    if unknown:
        notes.append(f"pixels of {', '.join(unknown)} are not judged: the segmentation head does not know them")
    return table, shared
