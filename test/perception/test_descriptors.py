"""What patches are compared by, against float32 arithmetic and pictures with known gradients."""

import cv2
import numpy as np
import pytest
import torch
from scenes import moved, texture

from dino_perception.perception import descriptors
from dino_perception.perception.descriptors import codes, gradients, similarities
from dino_perception.perception.refine import pyramid

GREY = texture(480, 640, 5)


def unit(seed: int, n: int = 1200, d: int = 96) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(n, d, generator=torch.Generator().manual_seed(seed)), dim=1)


def of(grey: np.ndarray) -> torch.Tensor:
    return gradients(pyramid(grey), 30, 40, (16.0, 16.0))


def nearest_right(a: torch.Tensor, b: torch.Tensor, step: int) -> float:
    """Share of inner patches whose nearest neighbour is `step` columns to the right."""
    found = similarities(a, b).argmax(axis=1).reshape(30, 40)[4:-4, 4 : -4 - step]
    index = np.arange(1200).reshape(30, 40)[4:-4, 4 : -4 - step]
    return float((found == index + step).mean())


def test_gradients_find_a_patch_again_that_moved_by_whole_patches():
    other = moved(GREY, np.array([[1, 0, 48.0], [0, 1, 0]]))
    assert nearest_right(of(GREY), of(other), 3) > 0.97


def test_exposure_does_not_change_gradients():
    assert np.abs(of(GREY).numpy() - of(moved(GREY, np.eye(2, 3), gain=0.6, offset=20)).numpy()).max() < 0.05


def test_gradients_know_their_direction():
    ramp = np.tile(np.linspace(0, 255, 640).astype(np.uint8), (480, 1))
    for image, direction in ((ramp, 0), (ramp[:, ::-1], 1), (np.ascontiguousarray(cv2.resize(ramp, (480, 640)).T), 2)):
        histogram = of(np.ascontiguousarray(image)).view(30, 40, 16, 4)[10:20, 10:30].square().sum(dim=2)
        assert (histogram.argmax(dim=-1) == direction).all()
        assert histogram[..., direction].min() > 0.9, "shares of all gradients, which sum to one"


@pytest.mark.parametrize(
    "size, patch", [((720, 1280), (32.0, 32.0)), ((240, 320), (8.0, 8.0)), ((480, 752), (18.8, 18.8))]
)
def test_gradients_fit_patches_of_any_size(size, patch):
    rows, columns = round(size[0] / patch[1]), round(size[1] / patch[0])
    scaled = cv2.resize(GREY, (round(640 * patch[0] / 16), round(480 * patch[1] / 16)), interpolation=cv2.INTER_CUBIC)
    image = np.full(size, 128, np.uint8)
    h, w = min(size[0], scaled.shape[0]), min(size[1], scaled.shape[1])
    image[:h, :w] = scaled[:h, :w]
    here = gradients(pyramid(image), rows, columns, patch).view(rows, columns, 64)
    there = of(GREY).view(30, 40, 64)
    r, c = min(rows, 30) - 8, min(columns, 40) - 8
    cosine = torch.nn.functional.cosine_similarity(here[4:r, 4:c], there[4:r, 4:c], dim=-1)
    assert cosine.min() > 0.85 and cosine.mean() > 0.95


def test_both_parts_weigh_what_they_should():
    a, b = codes(unit(1), unit(2, d=64)), codes(unit(3), unit(2, d=64))
    same_gradients = np.diag(similarities(a, b)).astype(float)
    itself = np.diag(similarities(a, a)).astype(float)
    assert np.mean(same_gradients / itself) == pytest.approx(1 - descriptors.FEATURE_SHARE, abs=0.02)


def test_what_all_patches_share_does_not_count():
    features, edges = unit(1), unit(2, d=64)
    plain = similarities(codes(features, edges), codes(features, edges))
    shared = similarities(codes(features + 3.0, edges + 1.0), codes(features + 3.0, edges + 1.0))
    assert np.corrcoef(plain.ravel(), shared.ravel())[0, 1] > 0.999


def test_nearest_neighbours_in_eight_bits_are_those_of_float32(monkeypatch):
    pair = [
        (unit(seed) + 0.7 * unit(9), of(image))
        for seed, image in ((1, GREY), (2, moved(GREY, np.array([[1, 0, 9.0], [0, 1, 5.0]]))))
    ]
    quick = similarities(*(codes(*p) for p in pair))
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    exact = similarities(*(codes(*p) for p in pair))
    assert exact.dtype == np.float32
    assert (quick.argmax(axis=1) == exact.argmax(axis=1)).mean() > 0.98
