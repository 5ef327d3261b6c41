"""Odometry is judged as evo judges it, and classical features are matched in the form that it takes."""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("evo", reason="evo is not installed")
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "perception"))
from seen_drives import curve, percepts  # noqa: E402

from dino_perception.perception.frame import Frame  # noqa: E402
from dino_perception.perception.settings import Settings  # noqa: E402
from dino_perception.training.evaluation.feature_tracks import FEATURES  # noqa: E402
from dino_perception.training.evaluation.odometry import score, summary  # noqa: E402


def test_a_drive_whose_metres_are_a_tenth_too_long_drifts_by_a_tenth_and_not_once_it_is_scaled():
    poses = curve(40)
    exact = score("dino", "true", "a", list(percepts(poses)), np.stack(poses), Settings())
    assert exact.metres == pytest.approx(39 * 0.08) and exact.drift < 1e-3 and exact.ate < 1e-3 and exact.good == 1
    long = np.stack(poses)
    long[:, :3, 3] /= 1.1  # so that what is found is a tenth too long
    judged = score("dino", "head", "b", list(percepts(poses)), long, Settings())
    assert judged.drift == pytest.approx(0.1, abs=0.01) and judged.scaled_drift < 2e-3
    assert judged.end == pytest.approx(0.1, abs=0.01)
    rows = summary([exact, judged])
    assert [(row["depth"], row["drives"]) for row in rows] == [("true", 1), ("head", 1)]


def test_a_drive_shorter_than_a_stretch_has_no_drift_but_an_ate():
    poses = curve(12)
    short = score("dino", "true", "a", list(percepts(poses)), np.stack(poses), Settings())
    assert np.isnan(short.drift) and short.ate < 1e-3
    assert np.isnan(summary([short])[0]["drift"])


@pytest.mark.parametrize("name", ["orb", "sift"])
def test_features_are_matched_with_a_key_frame_and_keep_their_ids(name):
    random = np.random.default_rng(1)
    texture = cv2.resize(random.integers(0, 256, (60, 120, 3), np.uint8), (960, 480), interpolation=cv2.INTER_CUBIC)
    tracks, before = FEATURES[name](), None
    for number, shift in enumerate((0, 6, 12)):
        image = np.ascontiguousarray(texture[:240, shift : shift + 320])
        found = tracks.match(Frame("camera", number, "optical", image))
        assert found.reference_stamp_ns == 0
        if number:
            assert len(found.x) > 50
            assert np.median(found.reference_x - found.x) == pytest.approx(shift, abs=0.3)
            assert len(np.unique(found.track_id)) == len(found.track_id)
        if before is not None:
            shared = np.isin(found.track_id, before.track_id)
            assert shared.mean() > 0.5
        before = found if number else None
