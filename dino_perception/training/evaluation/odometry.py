"""How far odometry drifts on drives whose poses are known, beside the same back end fed with classical features.

Each front end gives matches, the back end (`perception/odometry`) is the same for all. Once it has the depth of the
head, which is what the node has, and once the true depth: what is then left is the fault of the matches and of the back end.
`evo` judges: ATE is the root mean square of what is left of the positions once the whole way is aligned (rotation and
translation, no scale); drift is the mean of RPE over stretches of `STRETCH` metres, as a share of them.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from dino_perception.perception.frame import Depth, Percept
from dino_perception.perception.odometry.cameras import Odometry
from dino_perception.perception.perceiver import Perceiver
from dino_perception.perception.settings import Settings
from dino_perception.training.datasets import DataError, Dataset, Sample
from dino_perception.training.evaluation.feature_tracks import FEATURES
from dino_perception.training.evaluation.sampling import nearest

STRETCH = 2.0
"""Metres over which drift is measured; a drive that is shorter has none."""
LEAST = 10
"""Frames of a drive, at least."""


@dataclass
class OdometryScore:
    """One drive by one front end: `drift` and `end` as shares of the way, `ate` in metres, `degrees` of rotation a metre,
    `nees` the chi-square of the last position (3 degrees of freedom), `ms` of the back end a frame, median. NaN where
    there is none."""

    front_end: str
    depth: str
    scene: str
    frames: int
    metres: float
    ate: float
    drift: float
    end: float
    degrees: float
    nees: float
    ms: float
    good: float
    """Share of the frames whose health is good."""
    scaled_drift: float = float("nan")
    """The drift that is left where the whole way is scaled as fits best."""
    path: np.ndarray = field(default_factory=lambda: np.zeros((0, 3)), repr=False)
    """(N, 3) positions, aligned at the first pose."""


def judge_odometry(perceiver: Perceiver, data: Dataset, tell: Callable[[str, int, int], None]) -> list[OdometryScore]:
    """A score for each drive, front end and depth; points are matched with key frames from then on. Raises DataError where no drive has poses, depth and a camera model."""
    need_evo()
    found = []
    drives = _drives(data)
    if not drives:
        raise DataError(f"{data.source} has no drive of {LEAST} frames with poses, depth and camera model")
    for scene, samples in drives.items():
        perceiver.update(perceiver.settings.changed({"correspondences.reference": "keyframe"}))
        fronts: dict[str, list[Percept]] = {"dino": [], **{name: [] for name in FEATURES}}
        tracks = {name: make() for name, make in FEATURES.items()}
        perceiver.reset_tracks()
        truth = []
        for number, sample in enumerate(samples):
            tell(f"driving {scene}", number, len(samples))
            frame = sample.frame()
            percept = perceiver.perceive([frame], [{"depth", "segmentation", "correspondences"}])[0]
            perceiver.prepare()
            small = dataclasses.replace(frame, image=frame.image[:, :, :0])
            for name in FEATURES:
                matches = tracks[name].match(frame)
                fronts[name].append(dataclasses.replace(percept, frame=small, correspondences=matches))
            fronts["dino"].append(dataclasses.replace(percept, frame=small))
            truth.append(nearest(sample.read_depth(), percept.output_height, percept.output_width))
        poses = np.stack([sample.pose for sample in samples])
        for name, percepts in fronts.items():
            known = [dataclasses.replace(p, depth=Depth(t.astype(np.float32))) for p, t in zip(percepts, truth)]
            found.append(score(name, "head", scene, percepts, poses, perceiver.settings))
            found.append(score(name, "true", scene, known, poses, perceiver.settings))
    return found


def score(
    front_end: str, depth: str, scene: str, percepts: Sequence[Percept], poses: np.ndarray, settings: Settings
) -> OdometryScore:
    """Follow a drive and judge it by its true `poses` (N, 4, 4), optical frame to world."""
    odometry, placed, took = Odometry(), [], []
    for percept in percepts:
        begun = time.perf_counter()
        placed.append(odometry.placed(percept, settings).pose)
        took.append((time.perf_counter() - begun) * 1e3)
    stamps = np.array([p.frame.stamp_ns for p in percepts]) / 1e9
    together = poses[0] @ np.linalg.inv(placed[0].matrix)
    found = np.stack([together @ p.matrix for p in placed])
    length = float(np.linalg.norm(np.diff(poses[:, :3, 3], axis=0), axis=1).sum())
    error = found[-1, :3, 3] - poses[-1, :3, 3]
    covariance = together[:3, :3] @ placed[-1].covariance[:3, :3] @ together[:3, :3].T
    ate, drift, degrees, scaled = _by_evo(stamps - stamps[0], found, poses)
    return OdometryScore(
        front_end, depth, scene, len(percepts), length, ate, drift, float(np.linalg.norm(error)) / max(length, 1e-9),
        degrees, float(error @ np.linalg.solve(covariance + 1e-12 * np.eye(3), error)), float(np.median(took[1:])),
        float(np.mean([p.health == "good" for p in placed])), scaled, found[:, :3, 3],
    )  # fmt: skip


def _by_evo(stamps: np.ndarray, found: np.ndarray, truth: np.ndarray) -> tuple[float, float, float, float]:
    """ATE in metres, drift as a share, degrees a metre, and the drift once the scale is aligned too."""
    from evo import EvoException
    from evo.core import metrics, trajectory

    def path(poses: np.ndarray) -> trajectory.PoseTrajectory3D:
        return trajectory.PoseTrajectory3D(poses_se3=[pose.copy() for pose in poses], timestamps=stamps)

    reference = path(truth)
    rigid, scaled, own = path(found), path(found), path(found)
    rigid.align(reference)
    scaled.align(reference, correct_scale=True)
    ape = metrics.APE(metrics.PoseRelation.translation_part)
    ape.process_data((reference, rigid))
    figures = [ape.get_statistic(metrics.StatisticsType.rmse)]
    for estimate, relation in (
        (own, metrics.PoseRelation.translation_part),
        (own, metrics.PoseRelation.rotation_angle_deg),
        (scaled, metrics.PoseRelation.translation_part),
    ):
        rpe = metrics.RPE(relation, STRETCH, metrics.Unit.meters, rel_delta_tol=0.1, all_pairs=True)
        try:
            rpe.process_data((reference, estimate))
            figures.append(rpe.get_statistic(metrics.StatisticsType.mean) / STRETCH)
        except EvoException:
            figures.append(float("nan"))  # the drive is shorter
    return tuple(float(figure) for figure in figures)


def need_evo() -> None:
    """Raises DataError, in one sentence, where evo is not installed."""
    try:
        import evo  # noqa: F401
    except ModuleNotFoundError:
        raise DataError(
            "odometry is judged by the Python package evo, which is not installed here; install it with: "
            "python3 -m pip install evo"
        ) from None


def _drives(data: Dataset) -> dict[str, list[Sample]]:
    drives: dict[str, list[Sample]] = {}
    for sample in data.samples:
        if sample.pose is not None and sample.camera is not None and sample.read_depth:
            drives.setdefault(sample.scene, []).append(sample)
    return {scene: samples for scene, samples in drives.items() if len(samples) >= LEAST}


def summary(scores: Sequence[OdometryScore]) -> list[dict]:
    """A row for each front end and depth, over all drives: means by metres driven."""
    rows = []
    for front_end, depth in dict.fromkeys((s.front_end, s.depth) for s in scores):
        own = [s for s in scores if (s.front_end, s.depth) == (front_end, depth)]
        way = np.array([s.metres for s in own])

        def mean(values: Sequence[float], way: np.ndarray = way) -> float:
            values = np.array(values)
            known = np.isfinite(values)
            return float((values * way)[known].sum() / way[known].sum()) if known.any() else float("nan")

        figures = {
            name: mean([getattr(s, name) for s in own])
            for name in ("drift", "scaled_drift", "ate", "end", "degrees", "good")
        }
        nees = float(np.mean([s.nees for s in own]))
        rows.append(
            {"front_end": front_end, "depth": depth, "drives": len(own), "metres": float(way.sum()), **figures,
             "nees": nees, "ms": float(np.median([s.ms for s in own]))}
        )  # fmt: skip
    return rows
