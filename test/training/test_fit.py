"""Heads learn what can be learnt, keep what did best, and come out the same for the same seed."""

from __future__ import annotations

import copy
import dataclasses
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_data import SIZE

from dino_perception.models.checkpoints import load_backbone
from dino_perception.models.heads import create_head
from dino_perception.perception.frame import IGNORE
from dino_perception.training.datasets import DataError, open_dataset
from dino_perception.training.features import FeatureCache
from dino_perception.training.fit import Recipe, fit, measure, score
from dino_perception.training.looks import Look
from dino_perception.training.losses import class_weights, depth_loss, overlap_loss, segmentation_loss, standing
from dino_perception.training.splitting import limited, split, with_truth


@pytest.fixture(scope="module")
def backbone():
    return load_backbone("rover-tiny")


@pytest.fixture
def material(labelled, tmp_path, backbone):
    """(items by kind, dataset): eight frames to learn from and two to judge by."""
    data = open_dataset(labelled, cache=tmp_path)
    cache = FeatureCache(tmp_path / "cache", backbone, backbone.spec.taps, *SIZE, engine="torch")
    yield {kind: cache.items(data, kind, [Look()]) for kind in ("segmentation", "depth")}, data
    cache.close()


QUICK = Recipe(epochs=1, least_steps=40, batch=4)


def heads_of(backbone, data):
    return create_head("segmentation", backbone, labels=data.labels), create_head(
        "depth", backbone, depth_range=(0.2, 20.0)
    )


def test_a_segmentation_head_learns_two_stripes_from_eight_frames(material, backbone):
    items, data = material
    head = heads_of(backbone, data)[0]
    before = score(head, items["segmentation"][8:])
    outcome = fit(head, items["segmentation"][:8], items["segmentation"][8:], QUICK)
    assert before < 0.6 and score(head, items["segmentation"][8:]) > 0.9
    assert head.trained and not head.training and not any(p.requires_grad for p in head.parameters())
    assert outcome.steps <= 40 and outcome.history[-1][0] == outcome.steps


def test_a_begun_head_gives_all_but_its_last_layer(material, backbone):
    items, data = material
    begun, other = heads_of(backbone, data)[1], create_head("depth", backbone, depth_range=(0.1, 40.0), bins=32)
    fit(begun, items["depth"][:8], items["depth"][8:], QUICK)
    fit(other, items["depth"][:8], [], Recipe(epochs=1, least_steps=1, rate=1e-9), begun=begun)
    before, after = begun.state_dict(), other.state_dict()
    taken = [
        name for name in before if not name.startswith("net.out.") and "running" not in name and "num_" not in name
    ]
    assert taken and all(torch.allclose(before[name], after[name], atol=1e-6) for name in taken)
    assert after["net.out.weight"].abs().max() < 1e-6
    with pytest.raises(DataError, match="other layers"):
        fit(create_head("depth", backbone, "linear"), items["depth"][:8], [], QUICK, begun=begun)


def test_a_depth_head_learns_a_slope(material, backbone):
    items, data = material
    head = heads_of(backbone, data)[1]
    fit(head, items["depth"][:8], items["depth"][8:], Recipe(epochs=1, least_steps=150, batch=4))
    assert measure(head, items["depth"][8:])["abs_rel"] < 0.25  # the best constant reaches 0.47


@pytest.mark.parametrize(
    "weighting, arch, off",
    [("softmax", "light", 0.5), ("sigmoid", "light", 0.5), ("softmax", "fine", 0.5), ("relu", "linear", 2)],
)  # a tenth on every bin
def test_depth_training_begins_at_the_depths_there_are(material, backbone, weighting, arch, off):
    """From all bins alike, 15 m here, the first steps drove the softmax into a corner that it never left: AbsRel 0.45 instead of
    0.05 on the sample drive."""
    items = material[0]["depth"][:8]
    true = np.stack([item.load()[1] for item in items])
    wanted = true[(true > 0.2) & (true < 60)].mean()
    head = create_head("depth", backbone, arch, depth_range=(0.2, 60.0), weighting=weighting, taps=backbone.spec.taps)
    fit(head, items, [], Recipe(epochs=1, least_steps=1, batch=4, rate=1e-9))
    features = [torch.from_numpy(m.copy())[None].float() for m in items[0].load()[0]]
    with torch.inference_mode():
        assert head(*features).median().item() == pytest.approx(wanted, rel=off)


def test_the_weights_that_did_best_are_kept(material, backbone, tmp_path):
    """Frames whose masks are upside down judge: the more is learnt, the worse it gets."""
    items, data = material
    judged = []
    for i, item in enumerate(items["segmentation"][8:]):
        np.save(tmp_path / f"{i}.npy", 1 - item.load()[1])
        judged.append(dataclasses.replace(item, truth=tmp_path / f"{i}.npy"))
    head = heads_of(backbone, data)[0]
    outcome = fit(head, items["segmentation"][:8], judged, dataclasses.replace(QUICK, patience=99))
    scores = {step: value for step, _, value in outcome.history}
    assert scores[outcome.best_step] == max(scores.values()) > scores[outcome.steps]
    assert score(head, judged) == scores[outcome.best_step]


def test_training_ends_when_nothing_gets_better(material, backbone):
    items, data = material
    head = heads_of(backbone, data)[0]
    outcome = fit(
        head,
        items["segmentation"][:8],
        items["segmentation"][8:],
        Recipe(epochs=1, least_steps=500, batch=4, rate=1e-9, patience=2),
    )
    assert outcome.stopped_early and outcome.steps < 100


def test_the_seed_decides(material, backbone):
    items, data = material
    weights = []
    for seed in (0, 0, 1):
        head = create_head(
            "segmentation", backbone, "linear", labels=data.labels, taps=backbone.spec.taps
        )  # it has dropout
        fit(head, items["segmentation"][:8], [], Recipe(epochs=1, least_steps=6, batch=8, seed=seed))
        weights.append(torch.cat([p.flatten() for p in head.parameters()]))
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_the_overlap_loss_counts_with_its_weight(material, backbone):
    items, data = material
    head = heads_of(backbone, data)[0]
    told = []
    for overlap in (0.0, 1.0, 2.0):
        recipe = Recipe(epochs=1, least_steps=1, batch=8, overlap=overlap)
        told.append(fit(copy.deepcopy(head), items["segmentation"][:8], [], recipe).history[0][1])
    assert 0 < told[1] - told[0] <= 1
    assert told[2] - told[0] == pytest.approx(2 * (told[1] - told[0]), rel=1e-4)


def test_the_relief_part_is_the_error_where_something_stands_out_and_nowhere_else():
    rows = torch.linspace(8, 2, 24)[:, None].expand(24, 64)
    truth = rows.clone()[None]
    truth[:, 10:14, 30:34] *= 0.75  # on each ray a quarter nearer than the ground behind: h / H = 1 / 4
    known = truth > 0
    out = standing(truth, known)
    block = torch.zeros_like(known)
    block[:, 10:14, 30:34] = True
    assert ((out > 0) == block).all()
    assert out[block].mean() == pytest.approx(-math.log(0.75) * (1 - 4 / 17), abs=1e-5)  # of a mean over 17 pixels
    reach = (0.3, 100.0)

    def part(metres):
        return (depth_loss(metres, truth, reach, relief=2.0) - depth_loss(metres, truth, reach)).item()

    sunk = rows[None, None].clone()  # the block is not there
    assert part(sunk) == pytest.approx(2 * -math.log(0.75), abs=1e-5)
    assert part(torch.where(block[:, None], truth[:, None], 1.3 * truth[:, None])) == pytest.approx(0, abs=1e-6)
    level = rows[None].clone()
    assert depth_loss(1.1 * level[:, None], level, reach, relief=2.0) == depth_loss(1.1 * level[:, None], level, reach)


def test_without_frames_to_judge_by_all_steps_are_made(material, backbone):
    items, data = material
    outcome = fit(heads_of(backbone, data)[0], items["segmentation"], [], Recipe(epochs=1, least_steps=7, batch=4))
    assert outcome.steps == outcome.best_step == 7 and math.isnan(outcome.history[-1][2])


def test_overlap_loss_is_one_minus_the_mean_iou_of_the_classes_that_occur():
    truth = torch.tensor([[[0, 0, 0, 1, IGNORE]]], dtype=torch.uint8)
    sure = torch.full((1, 3, 1, 5), -50.0)
    for column, told in enumerate(
        (0, 0, 1, 1, 2)
    ):  # one pixel of class 0 is taken for class 1; what is ignored is ignored
        sure[0, told, 0, column] = 50.0
    assert overlap_loss(sure, truth).item() == pytest.approx(1 - (2 / 3 + 1 / 2) / 2, abs=1e-6)
    even = torch.zeros(1, 3, 1, 5)  # a third each: class 0 has 1 of 3 + 4/3 - 1, class 1 has 1/3 of 1 + 4/3 - 1/3
    assert overlap_loss(even, truth).item() == pytest.approx(1 - (1 / (3 + 4 / 3 - 1) + (1 / 3) / 2) / 2, abs=1e-6)
    nothing = torch.zeros(1, 3, 1, 5, requires_grad=True)
    overlap_loss(nothing, torch.full_like(truth, IGNORE)).backward()
    assert nothing.grad.abs().sum() == 0


def test_segmentation_loss_is_the_cross_entropy_of_labelled_pixels():
    torch.manual_seed(0)
    logits, truth = torch.randn(2, 3, 4, 4), torch.randint(0, 3, (2, 4, 4)).to(torch.uint8)
    truth[0, :2] = IGNORE
    known = truth != IGNORE
    wanted = F.cross_entropy(logits.permute(0, 2, 3, 1)[known], truth[known].long())
    assert torch.allclose(segmentation_loss(logits, truth), wanted)
    assert segmentation_loss(logits, torch.full_like(truth, IGNORE)) == 0


def test_depth_loss_by_hand():
    truth = torch.tensor([[[1.0, 2.0], [4.0, math.nan]]])
    metres = torch.tensor([[[[2.0, 2.0], [4.0, 7.0]]]])
    level = math.log(2) / 3  # one of three known pixels is off by a factor of two
    assert float(depth_loss(metres, truth, (0.1, 10), gradient=0)) == pytest.approx(level)
    # of one known step down and one to the right, both change by log 2
    assert float(depth_loss(metres, truth, (0.1, 10), gradient=1)) == pytest.approx(level + 2 * math.log(2))
    assert float(depth_loss(metres, truth, (0.1, 3), gradient=0)) == pytest.approx(math.log(2) / 2)
    metres.requires_grad_(True)
    depth_loss(metres, truth, (0.1, 10)).backward()
    assert torch.isfinite(metres.grad).all() and metres.grad[0, 0, 1, 1] == 0


def test_what_is_infinitely_far_shall_not_be_near_and_no_more_is_asked():
    truth = torch.tensor([[[1.0, math.inf]]])
    for given, reach, loss in ((15.0, 80, math.log(2) / 2), (30.0, 80, 0), (80.0, 80, 0), (10.0, 20, math.log(2) / 2)):
        assert float(depth_loss(torch.tensor([[[[1.0, given]]]]), truth, (0.1, reach))) == pytest.approx(loss)


def test_rare_classes_weigh_more_and_the_mean_pixel_weighs_one():
    counts = torch.tensor([900.0, 100.0, 0.0])
    weights = class_weights(counts, "sqrt")
    assert float(weights[1] / weights[0]) == pytest.approx(3) and weights[2] == 0
    assert float((weights * counts).sum() / counts.sum()) == pytest.approx(1)
    assert class_weights(counts, "none") is None


def test_a_smaller_limit_is_part_of_a_larger_one(labelled, tmp_path):
    data = open_dataset(labelled, cache=tmp_path)
    small, large = ({s.name for s in limited(data, n, seed=4).samples} for n in (3, 6))
    assert len(small) == 3 and len(large) == 6 and small < large
    assert {s.name for s in limited(data, 3, seed=5).samples} != small


def numbered(count: int, scenes: int, continuous: bool):
    from dino_perception.training.datasets import Dataset, Sample

    samples = [
        Sample(str(i), str(i * scenes // count), str(i), lambda: None, lambda: None, number=i) for i in range(count)
    ]
    return Dataset("made up", tuple(samples), continuous=continuous)


@pytest.mark.parametrize(
    "scenes, continuous, held",
    [
        (1, True, list(range(16, 20))),  # the end of the drive
        (2, True, [8, 9, 18, 19]),  # of each
        (1, False, [2, 7, 12, 17]),  # every fifth
    ],
)
def test_frames_to_judge_by_are_apart_from_those_to_learn_from(scenes, continuous, held):
    train, validation = split(numbered(20, scenes, continuous), 0.2, seed=0)
    assert [int(s.name) for s in validation.samples] == held
    assert sorted(int(s.name) for s in (*train.samples, *validation.samples)) == list(range(20))


def test_of_many_drives_whole_ones_are_held_out():
    train, validation = split(numbered(20, 10, True), 0.2, seed=0)
    assert len({s.scene for s in validation.samples}) == 2
    assert not {s.scene for s in train.samples} & {s.scene for s in validation.samples}


def test_the_datas_own_parts_are_kept_and_the_test_part_is_not_touched():
    data = dataclasses.replace(
        numbered(20, 1, True), splits={"train": tuple(range(10)), "val": (10, 11), "test": tuple(range(12, 20))}
    )
    assert [len(part.samples) for part in split(data, 0.2, 0)] == [10, 2]
    del data.splits["val"]
    train, validation = split(data, 0.2, 0)
    assert sorted(int(s.name) for s in (*train.samples, *validation.samples)) == list(range(10))


def test_truth_can_be_missing_in_some_frames_but_not_in_all():
    data = numbered(6, 1, True)
    bare = [dataclasses.replace(s, read_classes=None) if int(s.name) < 2 else s for s in data.samples]
    data = dataclasses.replace(data, samples=tuple(bare), splits={"train": (0, 1, 2), "val": (3, 4)})
    found = with_truth(data, "segmentation")
    assert [s.name for s in found.samples] == ["2", "3", "4", "5"] and found.splits == {"train": (0,), "val": (1, 2)}
    with pytest.raises(ValueError, match="made up has no depth, so no depth head"):
        with_truth(data, "depth")


def test_numbers_of_a_head_are_those_of_its_arrays(material, backbone):
    items, data = material
    head = heads_of(backbone, data)[0]
    numbers = measure(head, items["segmentation"])
    hits = total = 0
    for item in items["segmentation"]:
        features, truth = item.load()
        mask = head.at(*truth.shape)(*(torch.from_numpy(np.array(f))[None].float() for f in features))[0][0].numpy()
        hits, total = hits + (mask == truth).sum(), total + truth.size
    assert numbers["pixel_accuracy"] == pytest.approx(hits / total, abs=1e-4)


@pytest.mark.parametrize(
    "kind, truth, sentence",
    [
        ("segmentation", np.full((8, 8), 255, np.uint8), "unlabelled"),
        ("depth", np.full((8, 8), np.nan, np.float32), "nothing from 0.3 to 100 m"),
        ("depth", np.full((8, 8), 5000.0, np.float32), "millimetres"),
    ],
)
@pytest.mark.parametrize("role", ["train", "validation"])
def test_frames_in_which_nothing_is_known_are_refused(kind, truth, sentence, role, tmp_path):
    from dino_perception.models.checkpoints import load_backbone
    from dino_perception.models.heads import create_head
    from dino_perception.training.datasets import DataError
    from dino_perception.training.features import Item

    head = create_head(kind, load_backbone("rover-tiny"), "light", taps=[7])
    good = np.zeros((8, 8), np.uint8) if kind == "segmentation" else np.full((8, 8), 4.0, np.float32)
    items = {}
    for name, array in (("bad", truth), ("good", good)):
        np.save(tmp_path / f"{name}.npy", array)
        np.save(tmp_path / "features.npy", np.zeros((256, 4, 4), np.float16))
        items[name] = [Item((tmp_path / "features.npy",), tmp_path / f"{name}.npy")] * 2
    parts = (items["bad"], items["good"]) if role == "train" else (items["good"], items["bad"])
    with pytest.raises(DataError, match=sentence):
        fit(head, *parts, Recipe(epochs=1, least_steps=1))
