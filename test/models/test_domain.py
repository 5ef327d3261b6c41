"""What a head's file knows of its training frames: a distance that is usual for them and not for others."""

from __future__ import annotations

import pytest
import torch

from dino_perception.models import catalog, domain, files
from dino_perception.models.checkpoints import untrained
from dino_perception.models.domain import Domain, DomainError, fit, summary
from dino_perception.models.heads import HeadError, create_head, load_head, save_head


def frames(count: int, seed: int, shift: float = 0.0) -> torch.Tensor:
    """Frames of 16 channels that vary along three directions, and hardly otherwise."""
    generator = torch.Generator().manual_seed(seed)
    axes = torch.randn(3, 16, generator=torch.Generator().manual_seed(9))
    place = torch.randn(count, 3, generator=generator) @ axes + shift
    maps = place[:, :, None, None] + 0.3 * torch.randn(count, 16, 6, 8, generator=generator)
    return torch.stack([summary(m) for m in maps])


def test_a_summary_is_mean_and_standard_deviation_of_each_channel() -> None:
    features = torch.randn(5, 4, 6, generator=torch.Generator().manual_seed(0))
    wanted = torch.cat([features.mean(dim=(1, 2)), features.std(dim=(1, 2), unbiased=False)])
    assert torch.allclose(summary(features), wanted, atol=1e-6)


def test_distance_is_that_of_a_gaussian_where_the_frames_vary() -> None:
    """Against the inverse covariance: along the three directions, distances rank frames as Mahalanobis' do."""
    train = frames(400, 1)
    found = fit(train, frames(100, 2))
    axis = train - train.mean(0)
    top = torch.linalg.svd(axis, full_matrices=False)[2][:3]
    covariance = (axis @ top.t()).t() @ (axis @ top.t()) / len(train)
    off = (frames(50, 3) - train.mean(0)) @ top.t()
    mahalanobis = torch.einsum("ni,ij,nj->n", off, torch.linalg.inv(covariance), off)
    along = ((frames(50, 3) - found.mean) @ found.basis[:, :3]).square().sum(1)
    assert torch.allclose(along, mahalanobis, rtol=1e-3)


def test_held_out_frames_are_usual_and_others_are_not() -> None:
    found = fit(frames(200, 1), frames(100, 2), data="three directions")
    assert found.about == {"frames": 200, "held_out": 100, "data": "three directions"}
    usual, other = found.distances(frames(500, 4)), found.distances(frames(100, 5, shift=6.0))
    assert (usual > found.threshold).float().mean() < 0.02 and (other > found.threshold).all()


def test_the_fewer_frames_are_held_out_the_wider_is_the_margin() -> None:
    margins = [domain.margin(count) for count in (4, 20, 100, 1000)]
    assert margins[0] == margins[1] == pytest.approx(1.15) and margins[1] > margins[2] > margins[3] > 1
    found, held_out = fit(frames(200, 1), frames(100, 2)), frames(100, 2)
    farthest = torch.quantile(found.distances(held_out), domain.QUANTILE)
    assert found.threshold == pytest.approx(1.03 * float(farthest), rel=1e-5)


def test_too_few_frames_are_refused() -> None:
    with pytest.raises(DomainError, match="5 frames and 100 held-out ones are too few"):
        fit(frames(5, 1), frames(100, 2))


def test_statistics_travel_in_the_head_file_and_change_nothing_else(tmp_path) -> None:
    backbone = untrained(catalog.get("rover-tiny"))
    head, path = create_head("segmentation", backbone, "linear"), tmp_path / "head.safetensors"
    save_head(head, path)
    assert load_head("segmentation", backbone, path).domain is None
    generator = torch.Generator().manual_seed(0)
    head.domain = fit(torch.randn(20, 512, generator=generator), torch.randn(9, 512, generator=generator))
    save_head(head, path)
    loaded = load_head("segmentation", backbone, path)
    assert loaded.spec == head.spec and loaded.domain.threshold == head.domain.threshold
    features = torch.randn(256, 3, 4, generator=generator)
    assert torch.equal(loaded.domain.distance(features), head.domain.distance(features))
    assert all(torch.equal(a, b) for a, b in zip(loaded.state_dict().values(), head.state_dict().values()))

    tensors, metadata = files.read(path)
    files.write(path, {**tensors, "domain.mean": torch.zeros(7)}, metadata)
    with pytest.raises(HeadError, match="statistics of training frames do not fit its last tap"):
        load_head("segmentation", backbone, path)
    metadata["domain"].pop("threshold")
    files.write(path, tensors, metadata)
    with pytest.raises(HeadError, match="statistics of training frames are incomplete"):
        load_head("segmentation", backbone, path)
    assert isinstance(head.domain, Domain) and domain.FEWEST == 8
