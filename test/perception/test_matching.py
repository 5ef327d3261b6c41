"""From descriptors to a motion field, against direct computation and known motions."""

import cv2
import numpy as np
import pytest
import torch
from scenes import moved, sift, texture

from dino_perception.perception import matching
from dino_perception.perception.frame import Frame
from dino_perception.perception.geometry import letterbox
from dino_perception.perception.matching import View


def view(image: np.ndarray, descriptors: torch.Tensor | None = None) -> View:
    box = letterbox(*image.shape[:2], 480, 640, 240, 320)
    return View.of(Frame("c", 0, "f", image), box, sift(image, box) if descriptors is None else descriptors, 16)


def colour(grey: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(grey, cv2.COLOR_GRAY2RGB)


IMAGE = colour(texture(480, 640, 5))


def test_a_letterboxed_view_keeps_only_patches_on_the_image():
    image = colour(texture(720, 1280))
    v = view(image)
    assert (v.rows, v.columns) == (22, 40)  # 360 of 480 rows are image: 22.5 patches
    assert v.patch == pytest.approx((32, 32))
    centres = v.centres().reshape(22, 40, 2)
    assert centres[0, 0] == pytest.approx((15.5, 15.5)) and centres[21, 39] == pytest.approx(
        (39 * 32 + 15.5, 21 * 32 + 15.5)
    )
    assert v.levels[0].shape == (720, 1280)


def test_a_view_owns_its_descriptors():
    box = letterbox(480, 640, 480, 640, 240, 320)
    buffer = sift(IMAGE, box)
    v = View.of(Frame("c", 0, "f", IMAGE), box, buffer, 16)
    before = v.descriptors.clone()
    buffer.zero_()  # engines reuse their output memory
    assert torch.equal(v.descriptors, before)


def test_corners_are_the_strongest_of_their_cell_by_opencvs_measure():
    v = view(IMAGE)
    xy, strength = matching.corners(v, 1200)
    assert 1000 < len(xy) <= 1300
    theirs = cv2.cornerMinEigenVal(v.levels[1], 3, ksize=3)
    x, y = (xy / 2).astype(int).T
    assert theirs[y, x] == pytest.approx(strength)
    for cx, cy, s in zip(x // 8, y // 8, strength):
        cell = theirs[cy * 8 : cy * 8 + 8, cx * 8 : cx * 8 + 8]
        inner = cell[max(0, 4 - cy * 8) :, max(0, 4 - cx * 8) :]
        assert s >= inner[: 236 - cy * 8, : 316 - cx * 8].max() - 1e-3
    assert len({(a, b) for a, b in zip(x // 8, y // 8)}) == len(xy)


def test_corners_of_an_image_of_any_size_are_its_own_pixels():
    spot = np.zeros((1080, 1920), np.uint8)
    cv2.rectangle(spot, (900, 500), (1000, 600), 255, -1)
    xy, strength = matching.corners(view(colour(spot)), 600)
    best = xy[np.argsort(-strength)[:4]]
    for corner in ((900, 500), (1000, 500), (900, 600), (1000, 600)):
        assert np.abs(best - corner).max(axis=1).min() <= 12


@pytest.mark.parametrize("scale, angle, shift", [(1.0, 0.0, (0, 0)), (1.0, 0.0, (41, -23)), (1.12, 0.06, (10, 6))])
def test_the_field_of_a_known_motion(scale, angle, shift):
    c, s = scale * np.cos(angle), scale * np.sin(angle)
    linear = np.array([[c, -s], [s, c]])
    centre = np.array([320, 240])
    affine = np.hstack([linear, (centre + shift - linear @ centre)[:, None]])
    other = colour(moved(IMAGE[..., 0], affine))
    field = matching.motion(view(IMAGE), view(other))
    xy = np.random.default_rng(0).uniform([120, 100], [520, 380], (300, 2))
    to, shape = field.at(xy)
    error = np.linalg.norm(to - (xy @ linear.T + affine[:, 2]), axis=1)
    assert np.median(error) < 3 and np.quantile(error, 0.95) < 7, "well within what refinement catches"
    assert np.abs(np.median(shape, axis=0) - linear).max() < 0.04


def test_votes_outvote_nonsense():
    """Nearly half of the matches go anywhere; the rest follow an affine motion."""
    rng = np.random.default_rng(0)
    v = view(IMAGE)
    start = rng.uniform([0, 0], [640, 480], (160, 2))
    linear = np.array([[1.05, 0.02], [-0.02, 1.05]])
    end = start @ linear.T + [20, -12]
    wrong = rng.random(160) < 0.45
    end[wrong] = rng.uniform([0, 0], [640, 480], (wrong.sum(), 2))
    to, shape = matching.field(v, start, end).at(start)
    error = np.linalg.norm(to - (start @ linear.T + [20, -12]), axis=1)
    assert np.median(error) < 1.5 and np.quantile(error, 0.95) < 8


def test_no_agreement_is_no_field():
    rng = np.random.default_rng(0)
    v = view(IMAGE)
    assert matching.field(v, rng.uniform(0, 480, (100, 2)), rng.uniform(0, 480, (100, 2))) is None
    assert matching.field(v, np.zeros((0, 2)), np.zeros((0, 2))) is None
    assert matching.motion(view(IMAGE), view(colour(texture(480, 640, 77)))) is None


def test_similarity_is_the_cosine_of_the_features_at_the_points():
    v, w = view(IMAGE), view(colour(moved(IMAGE[..., 0], np.array([[1, 0, 3.0], [0, 1, 2.0]]))))
    index = np.random.default_rng(0).permutation(1200)[:200]
    direct = torch.nn.functional.cosine_similarity(v.descriptors[index], w.descriptors[index]).clamp(0, 1)
    at = v.centres()[index]
    assert matching.similarity(v, at, w, at) == pytest.approx(direct.numpy(), abs=1e-5)
    # Half way between two patches, the features are the mean of theirs.
    right = v.centres().reshape(30, 40, 2)[10, 5:7].mean(axis=0)[None]
    mean = v.descriptors.view(30, 40, -1)[10, 5:7].mean(dim=0)
    expected = torch.nn.functional.cosine_similarity(mean, w.descriptors.view(30, 40, -1)[10, 5:7].mean(dim=0), dim=0)
    assert matching.similarity(v, right, w, right)[0] == pytest.approx(float(expected), abs=1e-5)


def test_a_grid_is_sampled_between_cells_and_held_beyond_them():
    grid = np.arange(12, dtype=float).reshape(3, 4, 1)
    xy = np.array([[0, 0], [1.5, 0.5], [-3, 1], [9, 9]])
    assert matching.bilinear(grid, xy)[:, 0] == pytest.approx([0, 3.5, 4, 11])
