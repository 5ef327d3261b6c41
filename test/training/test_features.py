"""Cached features are what the backbone computes, are computed once, and belong to what is in the files."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_data import SIZE, picture, striped

from dino_perception.models.checkpoints import load_backbone
from dino_perception.perception.frame import IGNORE
from dino_perception.training.datasets import DataError, open_dataset
from dino_perception.training.evaluation.sampling import nearest
from dino_perception.training.features import FeatureCache
from dino_perception.training.looks import Look, views

TAPS = (3, 7)


@pytest.fixture(scope="module")
def backbone():
    return load_backbone("rover-tiny")


@pytest.fixture
def cache(tmp_path, backbone):
    cache = FeatureCache(tmp_path / "cache", backbone, TAPS, *SIZE, engine="torch")
    yield cache
    cache.close()


def opened(folder, tmp_path):
    return open_dataset(folder, cache=tmp_path)


def stamps(folder) -> dict:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*.npy")}


@torch.inference_mode()
def test_features_are_those_of_the_backbone_and_the_mirrored_look_those_of_the_mirrored_picture(
    labelled, tmp_path, backbone, cache
):
    items = cache.items(opened(labelled, tmp_path), "segmentation", views(2))
    image, mask = striped(2)
    for item, pixels, truth in ((items[4], image, mask), (items[5], image[:, ::-1], mask[:, ::-1])):
        wanted = backbone.at(*SIZE, TAPS)(torch.from_numpy(pixels.copy())[None])
        features, found = item.load()
        for got, want in zip(features, wanted):
            assert got.dtype == np.float16 and isinstance(got, np.memmap)
            np.testing.assert_allclose(got, want[0], rtol=2e-3, atol=2e-3)
        np.testing.assert_array_equal(found, nearest(truth, 24, 32))


def test_the_sky_of_a_rendered_drive_is_far_for_who_learns_depth_and_unknown_for_who_is_measured(tmp_path, cache):
    classes = np.zeros((1, *SIZE), np.uint8)
    classes[:, :16] = 4
    depth = np.where(classes == 4, np.nan, 5.0).astype(np.float16)
    np.savez(
        tmp_path / "drive.npz",
        rgb=np.zeros((1, *SIZE, 3), np.uint8),
        classes=classes,
        depth=depth,
        pose=np.eye(4)[None],
        intrinsics=np.array([50.0, 50, 31.5, 23.5]),
    )
    data = opened(tmp_path, tmp_path / "open")
    (item,) = cache.items(data, "depth", [Look()])
    truth = item.load()[1]
    assert np.isposinf(truth[:8]).all() and (truth[8:] == 5).all()
    assert np.isnan(data.samples[0].read_depth()[:16]).all()


def test_nothing_is_computed_twice_and_what_is_missing_is(labelled, tmp_path, cache):
    data = opened(labelled, tmp_path)
    items = cache.items(data, "segmentation", views(2))
    before = stamps(cache.root)
    assert len(before) == 10 * 2 * (len(TAPS) + 1)
    told = []
    cache.items(data, "segmentation", views(2), lambda *what: told.append(what))
    assert stamps(cache.root) == before and not told
    items[7].features[1].unlink()
    cache.items(data, "segmentation", views(2))
    after = stamps(cache.root)
    assert after.keys() == before.keys() and {p for p in after if after[p] != before[p]} == set(items[7].features)


def test_another_mask_is_read_without_another_look_at_the_picture(labelled, tmp_path, cache):
    cache.items(opened(labelled, tmp_path), "segmentation", [Look()])
    before = stamps(cache.folder)
    picture(labelled / "masks" / "003.png", np.ones(SIZE, np.uint8))
    items = cache.items(opened(labelled, tmp_path), "segmentation", [Look()])
    assert (items[3].load()[1] == 1).all() and stamps(cache.folder) == before


def test_another_picture_under_the_same_name_is_looked_at_again(labelled, tmp_path, cache):
    first = cache.items(opened(labelled, tmp_path), "segmentation", [Look()])
    picture(labelled / "images" / "003.png", 255 - striped(3)[0])
    second = cache.items(opened(labelled, tmp_path), "segmentation", [Look()])
    assert [a.features != b.features for a, b in zip(first, second)] == [i == 3 for i in range(10)]


def test_features_of_other_weights_or_sizes_are_other_features(tmp_path, backbone, cache):
    other = load_backbone("rover-tiny")
    with torch.no_grad():
        next(other.parameters()).add_(0.1)
    caches = [
        FeatureCache(tmp_path / "cache", b, TAPS, *size, engine="torch")
        for b, size in ((other, SIZE), (backbone, (64, 64)))
    ]
    assert len({cache.folder, *(c.folder for c in caches)}) == 3


def test_padding_has_no_truth(tmp_path, cache):
    tall = striped(0, (64, 48))
    picture(tmp_path / "tall" / "images" / "0.png", tall[0])
    picture(tmp_path / "tall" / "masks" / "0.png", tall[1])
    picture(tmp_path / "tall" / "depth" / "0.png", np.full((64, 48), 2000, np.uint16))
    data = opened(tmp_path / "tall", tmp_path)
    mask = cache.items(data, "segmentation", [Look()])[0].load()[1]
    depth = cache.items(data, "depth", [Look()])[0].load()[1]
    assert mask.shape == depth.shape == (24, 32)  # 64x48 becomes 48x36 of 48x64, and half of that here
    assert (mask[:, 18:] == IGNORE).all() and (mask[:, :18] != IGNORE).all()
    assert np.isnan(depth[:, 18:]).all() and (depth[:, :18] == 2).all()


def test_a_bad_mask_at_the_end_is_found_before_the_first_feature_is_computed(labelled, tmp_path, cache):
    picture(labelled / "masks" / "009.png", np.full(SIZE, 9, np.uint8))
    with pytest.raises(DataError, match="009.png holds 9"):
        cache.items(opened(labelled, tmp_path), "segmentation", views(2))
    assert not stamps(cache.folder)


def test_looks_in_other_light_differ_and_are_the_same_every_time():
    image = striped(0)[0]
    looks = [view.image(image) for view in views(6)]
    np.testing.assert_array_equal(looks[0], image)
    np.testing.assert_array_equal(looks[1], image[:, ::-1])
    assert len({look.tobytes() for look in looks}) == 6
    np.testing.assert_array_equal(Look(4).image(image), looks[4])
    truth = np.arange(6).reshape(2, 3)
    np.testing.assert_array_equal(Look(3).truth(truth), truth[:, ::-1])
    np.testing.assert_array_equal(Look(4).truth(truth), truth)


@pytest.mark.parametrize("height, width", [(6, 8), (3, 4), (24, 32), (5, 7)])
def test_a_grid_is_looked_up_at_the_centres_of_its_pixels(height, width):
    array = np.arange(48).reshape(6, 8)
    wanted = [
        [array[int((r + 0.5) * 6 / height), int((c + 0.5) * 8 / width)] for c in range(width)] for r in range(height)
    ]
    np.testing.assert_array_equal(nearest(array, height, width), wanted)
