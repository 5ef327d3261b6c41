"""Classes shown by example: the answer is that of the nearest centre, and the centres are those of k-means."""

import numpy as np
import pytest
import torch

from dino_perception.models.heads.prototypes import UNUSED, Prototypes, alike, best_scale, centres_of, slots_for


def blobs(count, seed=0, channels=6, each=40, spread=0.15):
    """Unit vectors around `count` far-off directions, and the directions."""
    random = torch.Generator().manual_seed(seed)
    axes = torch.linalg.qr(torch.randn(channels, channels, generator=random))[0][:count]
    vectors = axes.repeat_interleave(each, 0) + spread * torch.randn(count * each, channels, generator=random)
    return torch.nn.functional.normalize(vectors, dim=1), axes


def test_the_class_is_that_of_the_largest_cosine():
    net = Prototypes([6], 2, each=3, slots=8, scale=10.0)
    random = np.random.default_rng(0)
    centres = random.normal(size=(2, 3, 6))
    centres /= np.linalg.norm(centres, axis=2, keepdims=True)
    net.centres[:2] = torch.from_numpy(10 * centres).float()
    features = random.normal(size=(1, 6, 4, 5)).astype(np.float32)
    x = features[0].reshape(6, -1) / np.linalg.norm(features[0].reshape(6, -1), axis=0)
    wanted = 10 * np.einsum("kmc,cn->kmn", centres, x).max(axis=1).reshape(2, 4, 5)
    got = net(torch.from_numpy(features))[0].numpy()
    assert np.allclose(got[:2], wanted, atol=1e-5) and (got[2:] == UNUSED).all()
    assert torch.equal(net(torch.from_numpy(features), *net.state), net(torch.from_numpy(features)))


def test_centres_are_found_where_the_patches_gather():
    vectors, axes = blobs(4)
    centres = centres_of(vectors, 4)
    assert torch.allclose(centres.norm(dim=1), torch.ones(4), atol=1e-5)
    assert float((centres @ axes.T).amax(dim=0).min()) > 0.98
    assert torch.equal(centres_of(vectors, 4), centres), "the draw is fixed"
    means = [torch.nn.functional.normalize(vectors[i * 40 : (i + 1) * 40].sum(0), dim=0) for i in range(4)]
    assert float((centres @ torch.stack(means).T).amax(dim=0).min()) > 0.9999, "each is the mean direction of its own"


def test_few_patches_repeat_and_weights_pull():
    vectors, _ = blobs(1, each=3)
    assert torch.allclose(centres_of(vectors, 7), vectors[torch.arange(7) % 3])
    two = torch.eye(6)[:2]
    heavy = centres_of(two, 1, torch.tensor([9.0, 1.0]))
    assert float(heavy[0, 0] / heavy[0, 1]) == pytest.approx(9, rel=1e-4)


def test_the_scale_is_as_sure_as_held_out_patches_allow():
    easy, axes = blobs(2, spread=0.05)
    mixed = [torch.cat([easy[:30], easy[40:50]]), torch.cat([easy[40:70], easy[:10]])]  # a quarter is shown wrongly
    centres = [axes[:1], axes[1:2]]
    assert best_scale(centres, [easy[:40], easy[40:]]) > best_scale(centres, mixed)


def test_what_looks_like_the_points_is_found():
    grid = torch.zeros(8, 10, dtype=torch.long)
    grid[3:6, 2:7] = 1
    _, axes = blobs(2)
    noise = 0.1 * torch.randn(6, 8, 10, generator=torch.Generator().manual_seed(1))
    shown = torch.zeros(8, 10, dtype=torch.bool)
    shown[4, 4] = True
    assert torch.equal(alike(axes[grid].permute(2, 0, 1) + noise, shown), grid == 1)


def test_there_is_room_for_classes_to_come():
    assert [slots_for(n) for n in (1, 5, 6, 250)] == [8, 8, 16, 255]
