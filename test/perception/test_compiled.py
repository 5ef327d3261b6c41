"""The compiled part of matching, against the arrays that it replaces."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from scenes import EXACT_OPENCV, moved, texture
from test_matching import IMAGE, colour, view

from dino_perception.perception import compiled, matching
from dino_perception.perception.descriptors import codes
from dino_perception.perception.refine import Refiner, pyramid

made = compiled.library()
pytestmark = pytest.mark.skipif(made is None, reason="the compiled part of matching is not built here")

TURN = np.array([[1.12, 0.06, -30.0], [-0.06, 1.12, 20.0]])


@pytest.fixture
def both(monkeypatch):
    """What a function gives by the compiled part, and what by arrays."""

    def run(function):
        found = function()
        monkeypatch.setattr(compiled, "library", lambda: None)
        expected = function()
        monkeypatch.setattr(compiled, "library", lambda: made)
        return found, expected

    return run


@pytest.fixture(scope="module")
def views():
    return view(IMAGE), view(colour(moved(IMAGE[..., 0], TURN)))


@pytest.mark.parametrize("shape", [np.eye(2), np.array([[1.1, -0.08], [0.06, 0.93]])])
@pytest.mark.parametrize("reach", [16.0, 48.0])
def test_windows_are_aligned_alike(both, shape, reach):
    """Everywhere, also where windows leave the image; cv2.remap knows a place to 1/32 of a pixel."""
    first, second = (
        pyramid(texture(480, 640)),
        pyramid(moved(texture(480, 640), np.array([[1.02, 0, 4.3], [0, 1, -2.6]]), noise=3)),
    )
    rng = np.random.default_rng(0)
    xy = rng.uniform([0, 0], [640, 480], (500, 2))
    seed = xy * [1.02, 1] + [4.3, -2.6] + rng.normal(0, 2, xy.shape)
    shapes = np.broadcast_to(shape, (500, 2, 2))
    found, expected = both(lambda: Refiner().refine(first, second, xy, seed, shapes, reach))
    inside = (expected[1] > 0.5) & (found[1] > 0.5)
    assert inside.sum() > 300
    off = np.abs(found[0] - expected[0]).max(axis=1)[inside]
    assert np.median(off) < (1e-3 if EXACT_OPENCV else 1 / 32) and np.quantile(off, 0.98) < 0.05
    assert np.quantile(np.abs(found[1] - expected[1])[inside], 0.98) < 2e-3
    assert np.quantile(np.abs(found[2] - expected[2])[inside], 0.98) < 0.05
    assert ((found[1] == -1) == (expected[1] == -1)).mean() > 0.99


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e300])
def test_a_point_that_is_nowhere_has_no_score_and_harms_none(bad):
    levels = pyramid(texture(480, 640))
    xy = np.array([[200.0, 200.0], [300.0, 200.0], [250.0, 100.0]])
    seed, shape = xy.copy(), np.broadcast_to(np.eye(2), (3, 2, 2)).copy()
    seed[1, 0], shape[2, 0, 1] = bad, bad
    _, score, doubt = Refiner().refine(levels, levels, xy, seed, shape)
    assert score[0] > 0.99 and list(score[1:]) == [-1, -1] and np.isfinite(doubt).all()
    assert Refiner().refine(levels, levels, seed, xy, shape)[1][0] > 0.99


@pytest.mark.parametrize("size", [256, 100])
def test_codes_are_the_same_to_a_step(both, size):
    generator = torch.Generator().manual_seed(0)
    features, gradients = torch.randn(300, size, generator=generator), torch.rand(300, 64, generator=generator)
    found, expected = both(lambda: codes(features, gradients))
    if found.dtype == torch.int8:
        assert (found.int() - expected.int()).abs().max() <= 1 and (found != expected).float().mean() < 1e-3
    else:
        assert torch.equal(found, expected)


def test_histograms_similarity_and_nearest_neighbours_are_the_same(both, views):
    first, second = views
    rng = np.random.default_rng(0)
    at, to = rng.uniform([-20, -20], [660, 500], (2, 400, 2))
    found, expected = both(lambda: matching.similarity(first, at, second, to))
    assert found == pytest.approx(expected, abs=1e-5)
    found, expected = both(lambda: matching._mutual(first, second))
    assert len(found[0]) > 100
    for a, b in zip(found, expected):
        np.testing.assert_allclose(a, b, atol=1e-9)
    found, expected = both(lambda: view(IMAGE).codes.float())
    assert (found - expected).abs().max() <= 1


def test_float_similarities_have_the_same_nearest_neighbours(both, views, monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    plain = view(IMAGE), view(colour(moved(IMAGE[..., 0], TURN)))
    assert plain[0].codes.dtype == torch.float32
    found, expected = both(lambda: matching._mutual(*plain))
    assert len(found[0]) > 100
    for a, b in zip(found, expected):
        np.testing.assert_allclose(a, b, atol=1e-3)


def test_votes_agree_on_the_same_field(both, views):
    found, expected = both(lambda: matching.motion(*views))
    np.testing.assert_allclose(found.displacement, expected.displacement, atol=0.01)
    np.testing.assert_allclose(found.jacobian, expected.jacobian, atol=1e-4)
    rng = np.random.default_rng(0)
    nonsense = rng.uniform(0, 480, (2, 100, 2))
    assert both(lambda: matching.field(views[0], *nonsense)) == (None, None)


def test_a_library_of_another_version_is_not_used(tmp_path, monkeypatch):
    monkeypatch.setattr(compiled, "VERSION", compiled.VERSION + 1)
    assert compiled.library.__wrapped__() is None


def test_an_image_narrower_than_a_window_is_no_harm():
    tiny = pyramid(cv2.resize(texture(480, 640), (20, 12)))
    xy = np.array([[9.0, 6.0], [0.0, 0.0]])
    position, *_ = Refiner().refine(tiny, tiny, xy, xy, np.broadcast_to(np.array([[1.3, 0.2], [0, 1.2]]), (2, 2, 2)))
    assert np.isfinite(position).all()
