"""Matches and tracks over frames: against known motions, rendered ground truth, and OpenCV's own ways."""

import dataclasses

import cv2
import numpy as np
import pytest
import torch
from scenes import Drive, moved, sift, texture

from dino_perception.perception.frame import Correspondences, Frame
from dino_perception.perception.geometry import letterbox
from dino_perception.perception.settings import CorrespondenceSettings
from dino_perception.perception.tracks import Tracker

SETTINGS = CorrespondenceSettings()
WORLD = cv2.cvtColor(texture(900, 1400, 3), cv2.COLOR_GRAY2RGB)


def window(x: int, y: int, height=480, width=640, index=0) -> Frame:
    """A camera that slides over a large picture."""
    return Frame("camera", index * 100_000_000, "optical", np.ascontiguousarray(WORLD[y : y + height, x : x + width]))


def update(tracker: Tracker, frame: Frame, settings=SETTINGS) -> Correspondences:
    box = letterbox(*frame.image.shape[:2], 480, 640, 240, 320)
    return tracker.update(frame, box, sift(frame.image, box), 16, settings)


def pair(matches: Correspondences) -> tuple[np.ndarray, np.ndarray]:
    return (np.stack([matches.reference_x, matches.reference_y], axis=1).astype(float),
            np.stack([matches.x, matches.y], axis=1).astype(float))  # fmt: skip


def exact(moved: np.ndarray, wanted) -> bool:
    error = np.abs(moved - wanted).max(axis=1)
    return np.median(error) < 0.02 and np.quantile(error, 0.95) < 0.08 and error.max() < 0.25


def test_the_first_frame_has_no_matches_and_names_itself():
    found = update(Tracker(), window(100, 100, index=7))
    assert len(found.track_id) == len(found.x) == 0
    assert found.reference_stamp_ns == 700_000_000 and (found.width, found.height) == (640, 480)


def test_matches_of_a_sliding_camera_are_exact():
    tracker = Tracker()
    update(tracker, window(300, 200))
    found = update(tracker, window(318, 207, index=1))
    assert 350 <= len(found.x) <= SETTINGS.max_matches
    for name, kind in (("track_id", np.uint64), ("x", np.float32), ("reference_y", np.float32), ("score", np.float32)):
        assert getattr(found, name).dtype == kind
    reference, now = pair(found)
    assert exact(reference - now, [18, 7])
    assert found.score.min() >= SETTINGS.min_score and found.score.max() <= 1
    assert found.reference_stamp_ns == 0 and found.reference_frame_id == "optical"


def test_coordinates_are_pixels_of_the_input_image_whatever_its_size():
    tracker = Tracker()
    update(tracker, window(100, 100, 720, 1280))
    found = update(tracker, window(116, 106, 720, 1280, index=1))
    assert (found.width, found.height) == (1280, 720) and len(found.x) > 300
    assert found.x.max() > 1200 and found.y.max() > 680
    reference, now = pair(found)
    assert exact(reference - now, [16, 6])


def test_ids_stay_with_their_points_and_are_never_given_twice():
    tracker = Tracker()
    truth: dict[int, np.ndarray] = {}
    ages: dict[int, int] = {}
    for index in range(8):
        x, y = 200 + 15 * index, 150 + 6 * index
        found = update(tracker, window(x, y, index=index))
        for track, place in zip(found.track_id.tolist(), pair(found)[1] + [x, y]):
            assert np.abs(truth.setdefault(track, place) - place).max() < 0.5, "an id is one place in the world"
            ages[track] = ages.get(track, 0) + 1
        assert len(set(found.track_id.tolist())) == len(found.track_id)
    assert sum(age == 7 for age in ages.values()) > 200, "most points are followed all the way"
    tracker.reset()
    last = max(truth)
    update(tracker, window(200, 150, index=8))
    assert update(tracker, window(205, 150, index=9)).track_id.min() > last


def test_matches_cover_the_image_evenly():
    tracker = Tracker()
    update(tracker, window(300, 200))
    found = update(tracker, window(306, 203, index=1))
    part = (found.y / 120).astype(int) * 4 + (found.x / 160).astype(int)
    counts = np.bincount(part, minlength=16)
    assert counts.min() > 0.5 * counts.mean() and counts.max() < 1.6 * counts.mean()
    few = dataclasses.replace(SETTINGS, max_matches=48)
    tracker = Tracker()
    update(tracker, window(300, 200), SETTINGS)
    found = update(tracker, window(306, 203, index=1), few)
    assert len(found.x) == 48
    part = (found.y / 160).astype(int) * 4 + (found.x / 160).astype(int)
    assert np.bincount(part, minlength=12).min() >= 2


def test_points_are_looked_for_in_turns_until_there_are_enough(monkeypatch):
    """A quarter of the first picture is left: four turns of points find as many matches as one does in the next frame."""
    counts = []
    for step in ((12, 5), (300, 220)):
        tracker = Tracker()
        update(tracker, window(100, 100))
        refine, asked = tracker._refiner.refine, []
        monkeypatch.setattr(tracker._refiner, "refine", lambda *a, **k: asked.append(len(a[2])) or refine(*a, **k))
        found = update(tracker, window(100 + step[0], 100 + step[1], index=1))
        reference, now = pair(found)
        assert exact(reference - now, step)
        counts.append((len(found.x), sum(asked)))
    (near, little), (far, much) = counts
    assert near > 350 and little < 1.2 * SETTINGS.max_matches
    assert far > 300 and much > little


def test_a_key_frame_stays_until_too_few_of_its_points_are_left():
    settings = CorrespondenceSettings(reference="keyframe", keyframe_overlap=0.5)
    tracker = Tracker()
    references = []
    for index in range(14):
        found = update(tracker, window(100 + 40 * index, 200, index=index), settings)
        if len(found.x):
            key = found.reference_stamp_ns // 100_000_000
            references.append(key)
            reference, now = pair(found)
            wanted = np.array([40.0 * (index - key), 0])
            assert exact(reference - now, wanted), "matched with the key frame itself: no drift"
    assert references == sorted(references)
    lengths = np.unique(references, return_counts=True)[1]
    # 40 of 640 columns leave each frame: half are gone after eight; the last is matched once more before it changes.
    assert 5 <= lengths[0] <= 9 and len(lengths) >= 2


def test_what_comes_nearer_is_matched_with_its_key_frame_by_the_growth_so_far():
    """A camera that drives towards a wall: each frame a tenth larger, matched with a key frame up to seven frames old."""
    settings = CorrespondenceSettings(reference="keyframe", keyframe_overlap=0.15)
    grey = WORLD[200:680, 300:940, 0]
    centre = np.array([320.0, 240.0])
    tracker, last = Tracker(), None
    for index in range(8):
        scale = 1.08**index
        affine = np.hstack([scale * np.eye(2), ((1 - scale) * centre)[:, None]])
        image = cv2.cvtColor(moved(grey, affine), cv2.COLOR_GRAY2RGB)
        last = update(tracker, Frame("camera", index, "optical", image), settings)
    assert last.reference_stamp_ns == 0
    reference, now = pair(last)
    error = np.linalg.norm(centre + scale * (reference - centre) - now, axis=1)
    assert len(error) > 100 and np.median(error) < 0.12 and (error < 1).mean() > 0.97


def test_a_lost_camera_starts_again():
    tracker = Tracker()
    update(tracker, window(100, 100))
    dark = Frame("camera", 1, "optical", np.zeros((480, 640, 3), np.uint8))
    assert len(update(tracker, dark).x) == 0
    update(tracker, window(500, 300, index=2))
    assert len(update(tracker, window(508, 303, index=3)).x) > 300


@pytest.mark.parametrize("change", ["size", "time"])
def test_a_frame_that_cannot_follow_starts_anew(change):
    tracker = Tracker()
    update(tracker, window(100, 100, index=5))
    other = window(100, 100, 360, 640, index=6) if change == "size" else window(104, 100, index=2)
    found = update(tracker, other)
    assert len(found.x) == 0 and found.reference_stamp_ns == other.stamp_ns


def test_a_jump_beyond_the_windows_reach_is_bridged_by_features():
    tracker = Tracker()
    update(tracker, window(100, 100))
    found = update(tracker, window(250, 190, index=1))
    reference, now = pair(found)
    assert len(found.x) > 200
    assert exact(reference - now, [150, 90])


def test_exposure_turn_and_growth_between_frames():
    grey = WORLD[200:680, 300:940, 0]
    affine = np.array([[1.15, -0.05, -30.0], [0.05, 1.15, -45.0]])
    image = cv2.cvtColor(moved(grey, affine, gain=0.8, offset=10, noise=1.5), cv2.COLOR_GRAY2RGB)
    tracker = Tracker()
    update(tracker, window(300, 200))
    found = update(tracker, Frame("camera", 1, "optical", image))
    reference, now = pair(found)
    error = np.linalg.norm(reference @ affine[:, :2].T + affine[:, 2] - now, axis=1)
    assert len(error) > 150 and np.median(error) < 0.1 and (error < 1).mean() > 0.97


def test_the_same_frames_give_the_same_bits():
    def run():
        tracker = Tracker()
        return [update(tracker, window(200 + 13 * i, 150 + 5 * i, index=i)) for i in range(4)]

    for a, b in zip(run(), run()):
        for field in dataclasses.fields(a):
            x, y = getattr(a, field.name), getattr(b, field.name)
            assert x.tobytes() == y.tobytes() if isinstance(x, np.ndarray) else x == y


# On the rendered terrain, beside what OpenCV offers.


def two_views(drive: Drive, a: int, b: int) -> tuple[np.ndarray, np.ndarray]:
    tracker = Tracker()
    update(tracker, drive.frame(a))
    return pair(update(tracker, drive.frame(b)))


def lucas_kanade(drive: Drive, a: int, b: int) -> tuple[np.ndarray, np.ndarray]:
    first, second = (cv2.cvtColor(drive.images[i], cv2.COLOR_RGB2GRAY) for i in (a, b))
    start = cv2.goodFeaturesToTrack(first, 600, 0.01, 8)
    end, good, _ = cv2.calcOpticalFlowPyrLK(first, second, start, None, winSize=(21, 21), maxLevel=3)
    back, good_back, _ = cv2.calcOpticalFlowPyrLK(second, first, end, None, winSize=(21, 21), maxLevel=3)
    keep = (good[:, 0] & good_back[:, 0]).astype(bool) & (np.linalg.norm((back - start)[:, 0], axis=1) < 1)
    return start[keep, 0].astype(float), end[keep, 0].astype(float)


def orb(drive: Drive, a: int, b: int) -> tuple[np.ndarray, np.ndarray]:
    detector = cv2.ORB_create(2000)
    (points, first), (others, second) = (
        detector.detectAndCompute(cv2.cvtColor(drive.images[i], cv2.COLOR_RGB2GRAY), None) for i in (a, b)
    )
    pairs = cv2.BFMatcher(cv2.NORM_HAMMING).knnMatch(first, second, k=2)
    kept = [m for m, n in (p for p in pairs if len(p) == 2) if m.distance < 0.75 * n.distance]
    return np.array([points[m.queryIdx].pt for m in kept]), np.array([others[m.trainIdx].pt for m in kept])


def errors(drive: Drive, a: int, b: int, matches) -> np.ndarray:
    error = np.linalg.norm(matches[1] - drive.truth(a, b, matches[0]), axis=1)
    return error[np.isfinite(error)]


def test_neighbouring_frames_are_matched_more_precisely_than_by_lucas_kanade(drive):
    ours, theirs = (
        [errors(drive, a, a + 1, method(drive, a, a + 1)) for a in (0, 4, 8)] for method in (two_views, lucas_kanade)
    )
    assert min(map(len, ours)) >= 300
    ours, theirs = np.concatenate(ours), np.concatenate(theirs)
    assert np.median(ours) <= 1.05 * np.median(theirs)
    assert (ours < 1).mean() >= (theirs < 1).mean() - 0.003 and (ours < 1).mean() > 0.97


def test_frames_a_second_apart_are_matched_better_than_by_orb(drive):
    ours, theirs = (
        np.concatenate([errors(drive, a, a + 10, method(drive, a, a + 10)) for a in (0, 1)])
        for method in (two_views, orb)
    )
    assert len(ours) > 400
    for limit in (1, 2, 4):
        assert (ours < limit).mean() > (theirs < limit).mean()
    assert (ours < 4).mean() > 0.97


def test_a_drive_is_tracked_with_long_tracks(drive):
    tracker = Tracker()
    ages: dict[int, int] = {}
    for index in range(len(drive.images)):
        found = update(tracker, drive.frame(index))
        for track in found.track_id.tolist():
            ages[track] = ages.get(track, 0) + 1
        assert index == 0 or len(found.x) >= 300
    assert sum(age >= 6 for age in ages.values()) > 150


def test_on_the_gpus_device_the_descriptors_may_live_elsewhere():
    """The tracker takes descriptors wherever the engine leaves them; here only that inference tensors are taken."""
    with torch.inference_mode():
        frame = window(100, 100)
        box = letterbox(480, 640, 480, 640, 240, 320)
        descriptors = sift(frame.image, box) * 1.0
    assert descriptors.is_inference()
    Tracker().update(frame, box, descriptors, 16, SETTINGS)


def test_a_camera_whose_descriptors_say_nothing_is_not_lost(monkeypatch):
    """The image as a whole says where to look."""
    monkeypatch.setattr("dino_perception.perception.matching.motion", lambda a, b: None)
    tracker = Tracker()
    update(tracker, window(300, 200))
    found = update(tracker, window(345, 180, index=1))
    reference, now = pair(found)
    assert len(found.x) > 250 and exact(reference - now, [45, -20])


def test_two_pictures_of_different_places_have_no_matches():
    tracker = Tracker()
    update(tracker, window(0, 0))
    found = update(tracker, window(760, 420, index=1))
    assert len(found.x) <= 3
