"""The baselines do what they say, so that beating them means something."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from small_data import striped

from dino_perception.perception.frame import IGNORE, CameraModel
from dino_perception.training.evaluation.baselines import (
    ColourNeighbours,
    FlatGround,
    descent,
    lucas_kanade_matches,
    orb_matches,
    weighted_median,
)


def test_colour_tells_stripes_of_two_colours_apart():
    baseline = ColourNeighbours(2)
    for seed in range(3):
        baseline.add(*striped(seed), pixels=500)
    image, mask = striped(9)
    assert (baseline.predict(image) == mask).mean() > 0.99


def test_the_table_holds_the_majority_of_the_nearest_colours():
    random = np.random.default_rng(0)
    image, truth = (
        random.integers(0, 256, (20, 30, 3), dtype=np.uint8),
        random.integers(0, 4, (20, 30)).astype(np.uint8),
    )
    truth[0] = IGNORE
    baseline = ColourNeighbours(4, neighbours=1)
    baseline.add(image, truth, pixels=10_000)
    centres = random.integers(0, 32, (50, 3)).astype(np.uint8) * 8 + 4
    lab = cv2.cvtColor(np.concatenate([centres[None].astype(np.float32) / 255], 1), cv2.COLOR_RGB2LAB)[0]
    known = cv2.cvtColor(image[1:].reshape(1, -1, 3).astype(np.float32) / 255, cv2.COLOR_RGB2LAB)[0]
    nearest = ((lab[:, None] - known[None]) ** 2).sum(-1).argmin(1)
    np.testing.assert_array_equal(baseline.predict(centres[None])[0], truth[1:].ravel()[nearest])


def test_colour_that_knows_nothing_says_nothing():
    baseline = ColourNeighbours(2)
    baseline.add(striped(0)[0], np.full((48, 64), IGNORE, np.uint8), 100)
    assert (baseline.predict(striped(0)[0]) == IGNORE).all()


CAMERA = CameraModel(64, 48, np.array([[50.0, 0, 31.5], [0, 50.0, 23.5], [0, 0, 1]]))


def looking_down(pitch: float, height: float = 1.3) -> np.ndarray:
    """A pose in a world with z up: looking along x, tilted down by `pitch` radians."""
    level = np.array([[0, 0, 1], [-1, 0, 0], [0, -1, 0]], float)
    pose = np.eye(4)
    pose[:3, :3] = level @ cv2.Rodrigues(np.array([-pitch, 0.0, 0.0]))[0]
    pose[2, 3] = height
    return pose


def level_ground(pitch: float, height: float, farthest: float = 30.0) -> np.ndarray:
    """Depth of level ground: row v of a camera tilted by p sees it at h / (sin p + y cos p), y = (v - cy) / f."""
    y = (np.arange(48) - 23.5) / 50
    fall = np.sin(pitch) + y * np.cos(pitch)
    depth = np.where(fall > height / farthest, height / np.maximum(fall, 1e-9), np.nan)
    return depth[:, None].repeat(64, axis=1)


def test_descent_is_how_far_a_ray_falls_for_a_metre_of_depth():
    depth = level_ground(0.2, 1.3)
    found = descent(CAMERA, looking_down(0.2), (48, 64)) * depth
    np.testing.assert_allclose(found[np.isfinite(depth)], 1.3, rtol=1e-5)
    assert descent(None, np.eye(4), (4, 4)) is None


def test_level_ground_is_exact_whatever_the_tilt_when_the_attitude_is_known():
    ground = FlatGround(30.0)
    for pitch in (0.1, 0.3):
        ground.add(level_ground(pitch, 1.3), descent(CAMERA, looking_down(pitch), (48, 64)))
    truth = level_ground(0.2, 1.3)
    found = ground.predict((48, 64), descent(CAMERA, looking_down(0.2), (48, 64)))
    np.testing.assert_allclose(found[np.isfinite(truth)], truth[np.isfinite(truth)], rtol=1e-4)
    assert (found[np.isnan(truth)] >= 29.9).all()


def test_without_attitude_one_plane_fits_a_camera_that_never_tilts_and_rocks_do_not_pull_it():
    ground, truth = FlatGround(30.0), level_ground(0.2, 1.3)
    for place in range(4):
        rocky = truth.copy()
        rocky[30:40, 10 * place : 10 * place + 8] *= 0.6
        ground.add(rocky)
    known = np.isfinite(truth) & (truth < 25)
    np.testing.assert_allclose(ground.predict((48, 64))[known], truth[known], rtol=0.02)
    assert np.isnan(FlatGround().predict((4, 4))).all()


def test_weighted_median_minimises_the_weighted_sum_of_distances():
    random = np.random.default_rng(0)
    values, weights = random.normal(size=101), random.uniform(0.1, 3, 101)
    costs = [(weights * np.abs(values - v)).sum() for v in values]
    assert weighted_median(values, weights) == pytest.approx(values[int(np.argmin(costs))])


@pytest.fixture(scope="module")
def moved_pictures():
    """Two views of one texture, the second moved by (7, 3) pixels."""
    random = np.random.default_rng(5)
    texture = cv2.GaussianBlur(random.integers(0, 256, (300, 400, 3), dtype=np.uint8), (0, 0), 1.5)
    texture = cv2.normalize(texture, None, 0, 255, cv2.NORM_MINMAX)
    return texture[20:260, 20:340].copy(), texture[17:257, 13:333].copy()


@pytest.mark.parametrize("matches, tolerance", [(orb_matches, 1.0), (lucas_kanade_matches, 0.1)])
def test_classical_matchers_find_a_shift(moved_pictures, matches, tolerance):
    start, end = matches(*moved_pictures)
    assert len(start) > 100
    np.testing.assert_allclose(np.median(end - start, axis=0), [7, 3], atol=tolerance)


@pytest.mark.parametrize("matches", [orb_matches, lucas_kanade_matches])
def test_pictures_without_texture_give_no_matches(matches):
    grey = np.full((60, 80, 3), 128, np.uint8)
    start, end = matches(grey, grey)
    assert start.shape == end.shape == (0, 2)
