"""Sub-pixel alignment, against known warps and OpenCV."""

import cv2
import numpy as np
import pytest
from scenes import moved, texture

from dino_perception.perception.refine import Refiner, pyramid

IMAGE = texture(480, 640)
CENTRE = np.array([320.0, 240.0])


def about_centre(scale: float, angle: float, shift) -> np.ndarray:
    c, s = scale * np.cos(angle), scale * np.sin(angle)
    linear = np.array([[c, -s], [s, c]])
    return np.hstack([linear, (CENTRE + shift - linear @ CENTRE)[:, None]])


def align(affine, seed_error=3.0, shape=None, n=300, reach=16.0, **exposure):
    rng = np.random.default_rng(0)
    xy = rng.uniform([150, 110], [490, 370], (n, 2))
    truth = xy @ affine[:, :2].T + affine[:, 2]
    shape = np.broadcast_to(np.eye(2) if shape is None else shape, (n, 2, 2))
    levels = pyramid(IMAGE), pyramid(moved(IMAGE, affine, **exposure))
    seed = truth + rng.normal(0, seed_error, truth.shape)
    found, score, doubt = Refiner().refine(*levels, xy, seed, shape, reach=reach)
    return np.linalg.norm(found - truth, axis=1), score, doubt, (xy, seed, truth)


def test_pyramid_levels_halve_coordinates():
    ramp = np.tile(np.arange(256, dtype=np.uint8), (128, 1))
    for level, image in enumerate(pyramid(ramp)):
        assert image.dtype == np.float32
        inner = slice(4, -4)
        assert np.abs(image[10, inner] - np.arange(image.shape[1])[inner] * 2**level).max() < 0.51


def test_a_shift_is_found_to_a_twentieth_of_a_pixel():
    error, score, *_ = align(about_centre(1, 0, (5.3, -3.7)))
    assert np.median(error) < 0.05 and np.quantile(error, 0.95) < 0.12
    assert score.min() > 0.95


def test_a_change_of_exposure_does_not_move_points_as_it_moves_opencvs_tracker():
    affine = about_centre(1.01, 0.004, (5.3, -3.7))
    exposure = dict(gain=0.8, offset=12.0, noise=2.0)
    error, *_, (xy, seed, truth) = align(affine, **exposure)
    theirs, _, _ = cv2.calcOpticalFlowPyrLK(
        IMAGE,
        moved(IMAGE, affine, **exposure),
        xy.astype(np.float32),
        seed.astype(np.float32),
        winSize=(13, 13),
        maxLevel=2,
        flags=cv2.OPTFLOW_USE_INITIAL_FLOW,
    )
    assert np.median(error) < 0.06 and (error < 1).mean() > 0.99
    assert np.median(error) < 0.5 * np.median(np.linalg.norm(theirs - truth, axis=1))


def test_known_growth_and_turn_are_taken_into_account():
    affine = about_centre(1.3, 0.15, (2, 1))
    with_shape, *_ = align(affine, shape=affine[:, :2])
    without, *_ = align(affine)
    assert np.median(with_shape) < 0.06
    assert np.median(without) > 5 * np.median(with_shape)


def test_a_quarter_turn_is_no_harder_when_it_is_known():
    affine = about_centre(1.0, 1.5, (0, 0))
    error, *_ = align(affine, shape=affine[:, :2])
    assert np.median(error) < 0.06 and (error < 0.5).mean() > 0.97


def test_seeds_tens_of_pixels_off_need_a_wider_reach():
    affine = about_centre(1, 0, (0, 0))
    near, *_ = align(affine, seed_error=9.0)
    wide, *_ = align(affine, seed_error=9.0, reach=48)
    assert (wide < 0.5).mean() > 0.9 > (near < 0.5).mean()


def test_the_score_is_opencvs_normalised_correlation():
    affine = about_centre(1, 0, (4, 2))
    other = moved(IMAGE, affine, noise=12.0)
    xy = np.random.default_rng(1).integers([100, 100], [500, 350], (50, 2)).astype(float)
    shape = np.broadcast_to(np.eye(2), (50, 2, 2))
    found, score, _ = Refiner().refine(pyramid(IMAGE), pyramid(other), xy, xy + [4, 2], shape)
    assert score.min() < 0.9 < score.max()
    for a, b, ours in zip(xy.astype(np.float32), found.astype(np.float32), score):
        windows = [
            cv2.getRectSubPix(image.astype(np.float32), (13, 13), at.tolist()) for image, at in ((other, b), (IMAGE, a))
        ]
        assert ours == pytest.approx(cv2.matchTemplate(*windows, cv2.TM_CCOEFF_NORMED)[0, 0], abs=0.03)


def test_windows_that_straddle_two_motions_are_in_doubt():
    """The left half stays, the right half moves by three pixels."""
    other = IMAGE.copy()
    other[:, 323:] = IMAGE[:, 320:-3]
    y = np.linspace(40, 440, 60)
    clear = np.concatenate([np.stack([np.full(60, 250.0), y], 1), np.stack([np.full(60, 400.0), y], 1)])
    astride = np.stack([np.full(60, 317.0), y], 1)
    xy = np.concatenate([clear, astride])
    seed = xy + np.where(xy[:, :1] >= 320, [3.0, 0.0], [0.0, 0.0])
    shape = np.broadcast_to(np.eye(2), (len(xy), 2, 2))
    _, _, doubt = Refiner().refine(pyramid(IMAGE), pyramid(other), xy, seed, shape)
    assert (doubt[:120] < 0.05).all()
    assert np.median(doubt[120:]) > 0.2


def test_points_that_leave_the_image_have_no_score():
    affine = about_centre(1, 0, (-60, 0))
    levels = pyramid(IMAGE), pyramid(moved(IMAGE, affine))
    xy = np.array([[30.0, 200.0], [200.0, 200.0]])
    found, score, _ = Refiner().refine(*levels, xy, xy + [-60, 0], np.broadcast_to(np.eye(2), (2, 2, 2)))
    assert score[0] == -1 and score[1] > 0.95


def test_no_points_is_no_error():
    found, score, doubt = Refiner().refine(
        pyramid(IMAGE), pyramid(IMAGE), np.zeros((0, 2)), np.zeros((0, 2)), np.zeros((0, 2, 2))
    )
    assert found.shape == (0, 2) and len(score) == len(doubt) == 0


def test_flat_image_parts_stay_where_they_are():
    flat = pyramid(np.full((480, 640), 90, np.uint8))
    xy = np.array([[300.0, 200.0]])
    found, score, _ = Refiner().refine(flat, flat, xy, xy + 0.4, np.eye(2)[None])
    assert np.abs(found - xy - 0.4).max() < 1e-3 and score[0] < 0.5


def test_memory_is_reused_without_mixing_calls_up():
    refiner = Refiner()
    affine = about_centre(1.02, 0, (2, 2))
    levels = pyramid(IMAGE), pyramid(moved(IMAGE, affine))
    many = np.random.default_rng(2).uniform(100, 380, (400, 2))
    eye = np.broadcast_to(np.eye(2), (400, 2, 2))
    first = [a.copy() for a in refiner.refine(*levels, many, many + 2, eye)]
    few = [a.copy() for a in refiner.refine(*levels, many[:7], many[:7] + 2, eye[:7])]
    again = refiner.refine(*levels, many, many + 2, eye)
    for a, b, c in zip(first, again, few):
        assert np.array_equal(a, b) and np.array_equal(a[:7], c)
