"""The metrics against closed forms and against torchmetrics."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from dino_perception.perception.frame import IGNORE
from dino_perception.training.evaluation.metrics import DEPTH_EDGES, DepthScore, MatchScore, SegmentationScore, align


@pytest.fixture
def frames():
    """Ten frames of truth, mask and confidence over six classes, the last of which occurs nowhere."""
    random = np.random.default_rng(3)
    truth = random.choice([0, 1, 2, 3, 4, IGNORE], (10, 24, 32), p=[0.4, 0.3, 0.1, 0.1, 0.05, 0.05]).astype(np.uint8)
    guess = np.where(random.random(truth.shape) < 0.7, truth, random.integers(0, 5, truth.shape)).astype(np.uint8)
    confidence = random.choice([c for c in range(60, 256) if c % 17], truth.shape).astype(
        np.uint8
    )  # none on a bin's edge, all above 1 / 6
    return truth, np.where(guess == IGNORE, 0, guess).astype(np.uint8), confidence


def scored(frames, classes=6) -> SegmentationScore:
    total = SegmentationScore(classes)
    for one in zip(*frames):
        total.add(*one)
    return total


def test_iou_by_hand():
    score = SegmentationScore(3)
    score.add(np.array([[0, 0, 1, 1]], np.uint8), np.array([[0, 1, 1, 1]], np.uint8))
    np.testing.assert_allclose(score.iou, [1 / 2, 2 / 3, np.nan])
    assert score.miou == pytest.approx(7 / 12) and score.accuracy == 0.75


def test_segmentation_agrees_with_torchmetrics(frames):
    reference = pytest.importorskip("torchmetrics.functional.classification")
    total = scored(frames)
    truth, mask, confidence = (torch.from_numpy(a.astype(np.int64)) for a in frames)
    options = dict(num_classes=6, ignore_index=IGNORE)
    wanted = reference.multiclass_jaccard_index(mask, truth, average="none", **options)
    np.testing.assert_allclose(np.nan_to_num(total.iou), wanted, atol=1e-6)
    assert total.miou == pytest.approx(
        float(reference.multiclass_jaccard_index(mask, truth, average="macro", **options)), abs=1e-6
    )
    assert total.accuracy == pytest.approx(
        float(reference.multiclass_accuracy(mask, truth, average="micro", **options)), abs=1e-6
    )
    counts = reference.multiclass_confusion_matrix(mask, truth, **options)
    np.testing.assert_array_equal(total.confusion[:, :6], counts)


def test_calibration_error_agrees_with_torchmetrics(frames):
    reference = pytest.importorskip("torchmetrics.functional.classification")
    truth, mask, confidence = frames
    chance = np.repeat(((1 - confidence / 255) / 5)[:, None], 6, axis=1)  # the rest goes to the other classes
    np.put_along_axis(chance, mask[:, None].astype(np.int64), (confidence / 255)[:, None], axis=1)
    wanted = reference.multiclass_calibration_error(
        torch.from_numpy(chance), torch.from_numpy(truth.astype(np.int64)), 6, n_bins=15, norm="l1", ignore_index=IGNORE
    )
    assert scored(frames).ece() == pytest.approx(float(wanted), abs=1e-6)


def test_a_perfectly_calibrated_head_has_no_error_and_a_boasting_one_its_boast():
    truth, mask = np.zeros((1, 100), np.uint8), np.zeros((1, 100), np.uint8)
    mask[0, :20] = 1
    score = SegmentationScore(2)
    score.add(truth, mask, np.full((1, 100), 204, np.uint8))  # 204 / 255 = 0.8
    assert score.ece() == pytest.approx(0)
    score = SegmentationScore(2)
    score.add(truth, mask, np.full((1, 100), 255, np.uint8))
    assert score.ece() == pytest.approx(0.2)


def test_a_bin_of_confidence_begins_at_its_lower_edge_and_the_last_one_ends_at_one():
    score = SegmentationScore(2)
    score.add(np.zeros((1, 4), np.uint8), np.zeros((1, 4), np.uint8), np.array([[16, 17, 254, 255]], np.uint8))
    assert np.nonzero(score.reliability(15)[:, 0])[0].tolist() == [0, 1, 14] and score.reliability(15)[14, 0] == 0.5


def test_unlabelled_pixels_do_not_count_and_unlabelled_predictions_do():
    score = SegmentationScore(2)
    score.add(np.array([[IGNORE, 0, 1]], np.uint8), np.array([[1, 0, IGNORE]], np.uint8))
    np.testing.assert_allclose(score.iou, [1, 0])
    assert score.pixels == 2 and score.confusion[1, 2] == 1


def test_classes_that_the_truth_cannot_hold_have_no_iou():
    score = SegmentationScore(3, judged=[0, 1])
    score.add(np.array([[0, 1, 1]], np.uint8), np.array([[0, 1, 2]], np.uint8))
    np.testing.assert_allclose(score.iou, [1, 0.5, np.nan])


def test_a_frame_is_scored_apart_and_added_to_the_whole():
    total = SegmentationScore(2)
    right = total.add(np.zeros((1, 4), np.uint8), np.zeros((1, 4), np.uint8))
    wrong = total.add(np.zeros((1, 4), np.uint8), np.ones((1, 4), np.uint8))
    assert (right.miou, wrong.miou) == (1.0, 0.0) and total.accuracy == 0.5


def test_a_class_beyond_the_labels_is_refused():
    with pytest.raises(ValueError, match="class 7; there are 3"):
        SegmentationScore(3).add(np.array([[7]], np.uint8), np.array([[0]], np.uint8))


def test_depth_numbers_by_hand():
    score = DepthScore(farthest=30.0)
    truth = np.array([[2.0, 4.0, 10.0, 40.0, np.nan]])
    score.add(truth, np.array([[2.2, 3.0, 16.0, 1.0, 1.0]]))  # ratios 1.1, 1.33, 1.6
    n = score.numbers()
    assert n["abs_rel"] == pytest.approx((0.1 + 0.25 + 0.6) / 3)
    assert n["rmse"] == pytest.approx(math.sqrt((0.04 + 1 + 36) / 3))
    assert [n[f"delta{k}"] for k in (1, 2, 3)] == pytest.approx([1 / 3, 2 / 3, 1.0])
    at = {DEPTH_EDGES[i]: row for i, row in enumerate(score.by_range.tolist()) if row[0]}
    assert at == {2.0: [1, pytest.approx(0.1)], 3.0: [1, pytest.approx(0.25)], 8.0: [1, pytest.approx(0.6)]}


def test_depth_is_averaged_over_frames_not_over_pixels():
    score = DepthScore()
    score.add(np.full((1, 1), 10.0), np.full((1, 1), 12.0))
    score.add(np.full((10, 10), 10.0), np.full((10, 10), 10.0))
    assert score.numbers()["abs_rel"] == pytest.approx(0.1)


def test_missing_depth_is_a_miss_and_lowers_coverage():
    score = DepthScore()
    score.add(np.full((1, 4), 5.0), np.array([[5.0, 5.0, np.nan, np.nan]]))
    assert score.numbers()["delta1"] == 0.5 and score.numbers()["abs_rel"] == 0 and score.coverage == 0.5


def test_depth_of_another_scale_and_shift_of_its_inverse_is_perfect_once_aligned():
    random = np.random.default_rng(0)
    truth = random.uniform(1, 30, 500)
    metres = 1 / (3 / truth + 0.2)
    np.testing.assert_allclose(align(metres, truth, 30.0), truth, rtol=1e-9)
    score = DepthScore()
    score.add(truth[None], metres[None])
    assert score.aligned()["abs_rel"] < 1e-9 < 0.5 < score.numbers()["abs_rel"]


def test_pck_counts_distances_up_to_the_threshold():
    score = MatchScore()
    score.add(np.array([0.5, 1.0, 3.0, np.inf]), given=6)
    score.add(np.array([20.0]))
    n = score.numbers()
    assert [n[f"pck{p}"] for p in (1, 2, 4, 8, 16)] == pytest.approx([0.4, 0.4, 0.6, 0.6, 0.6])
    assert n["median_px"] == 3.0 and n["matches"] == 3.5


def test_nothing_counted_is_nan():
    assert math.isnan(SegmentationScore(2).miou) and math.isnan(SegmentationScore(2).ece())
    assert math.isnan(DepthScore().numbers()["abs_rel"]) and math.isnan(MatchScore().pck()[0])


def test_depth_errors_are_told_by_confidence():
    truth = np.array([[2.0, 2.0, 4.0, np.nan]])
    score = DepthScore()
    score.add(truth, np.array([[2.2, 2.2, 8.0, 1.0]]), np.array([[250, 255, 10, 255]], np.uint8))
    sure, unsure = score.by_confidence[-1], score.by_confidence[0]
    assert sure[:3] == pytest.approx([2, 0.2, 2]) and unsure[:3] == pytest.approx([1, 1.0, 0])
    assert sure[3] == pytest.approx(0) and unsure[3] == pytest.approx(2 / 1.1 - 1)
    assert not score.by_confidence[1:-1].any()
