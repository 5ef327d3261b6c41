"""The detector's parts against torchvision's FCOS and OpenCV's suppression, on random values."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from dino_perception.models import catalog, cost, reference
from dino_perception.models.checkpoints import untrained
from dino_perception.models.heads import HeadError, create_head
from dino_perception.models.heads.boxes import iou, kept, points, strongest
from dino_perception.models.label_sets import numbered
from dino_perception.training.detection_loss import detection_losses

WHEEL = Path(sys.prefix, "opt", "torchvision")
"""Where tools/torchvision_apart.py puts it."""
SIZES, STRIDES = ((12, 16), (6, 8), (3, 4)), (16, 32, 64)
CLASSES = 3


def crowd(count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Boxes (N, 4) in heaps, with falling scores and classes."""
    rng = np.random.default_rng(seed)
    middle = rng.uniform(50, 400, (count // 10, 2))[rng.integers(0, count // 10, count)] + rng.normal(0, 12, (count, 2))
    half = rng.uniform(15, 40, (count, 2))
    boxes = torch.from_numpy(np.concatenate([middle - half, middle + half], axis=1).astype(np.float32))
    scores = torch.from_numpy(np.sort(rng.random(count).astype(np.float32))[::-1].copy())
    return boxes, scores, torch.from_numpy(rng.integers(0, CLASSES, count).astype(np.float32))


@pytest.mark.parametrize("limit", [0.1, 0.3, 0.6])
def test_the_same_boxes_are_kept_as_by_opencv(limit: float) -> None:
    for seed in range(6):
        boxes, scores, classes = crowd(200, seed)
        sides = torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], dim=1).double()
        wanted = np.zeros(200)
        for number in range(CLASSES):
            own = torch.nonzero(classes == number)[:, 0]
            found = cv2.dnn.NMSBoxes(sides[own].tolist(), scores[own].tolist(), 0.0, limit)
            wanted[own[np.array(found).reshape(-1)]] = 1
        assert 10 < wanted.sum() < 190
        assert (kept(boxes[None], classes[None], limit)[0].numpy() == wanted).all()


def test_a_chain_of_boxes_is_followed_to_its_end() -> None:
    """Each overlaps the next by more than half: every other one is kept, which is known only from one end."""
    x = torch.arange(16.0) * 3
    chain = torch.stack([x, torch.zeros(16), x + 10, torch.full((16,), 10.0)], dim=1)
    assert kept(chain[None], torch.zeros(1, 16), 0.5)[0].tolist() == [1, 0] * 8


def test_the_strongest_are_those_of_a_sorted_list_of_all() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(2, 300, CLASSES, generator=generator)
    boxes = torch.rand(2, 300, 4, generator=generator)
    best, where, number = strongest(scores, boxes, 50)
    for i in range(2):
        order = scores[i].flatten().argsort(descending=True)[:50]
        assert torch.equal(best[i], scores[i].flatten()[order])
        assert torch.equal(where[i], boxes[i][order // CLASSES]) and torch.equal(number[i].long(), order % CLASSES)


@pytest.fixture(scope="module")
def random_values() -> dict[str, np.ndarray]:
    """What a detector may say of two pictures of 192 x 256, the objects that are there, and the points."""
    rng = np.random.default_rng(3)
    cells = np.concatenate([points(*size, stride) for size, stride in zip(SIZES, STRIDES)])
    count = len(cells)
    logits = rng.normal(-1, 1.5, (2, count, CLASSES)).astype(np.float32)
    distances = (rng.uniform(0.1, 2.5, (2, count, 4)) * cells[:, 2:]).astype(np.float32)
    room = np.stack([cells[:, 0], cells[:, 1], 255 - cells[:, 0], 191 - cells[:, 1]], axis=1)
    distances = np.minimum(distances, room[None]).astype(np.float32)  # torchvision cuts boxes to the picture
    centre = rng.normal(0, 1, (2, count, 1)).astype(np.float32)
    truth = []
    for number in (7, 12):
        low = rng.uniform(0, (200, 140), (number, 2))
        boxes = np.concatenate([low, low + rng.uniform(6, 120, (number, 2))], axis=1)
        truth.append(np.concatenate([boxes, rng.integers(0, CLASSES, (number, 1))], axis=1).astype(np.float32))
    whole = np.full((2, 12, 5), -1, np.float32)
    for i, rows in enumerate(truth):
        whole[i, : len(rows)] = rows
    return dict(cells=cells, logits=logits, distances=distances, centre=centre, truth=whole)


@pytest.fixture(scope="module")
def theirs(random_values, tmp_path_factory) -> dict[str, np.ndarray]:
    if not (WHEEL / "torchvision").is_dir():
        pytest.skip(f"torchvision is not in {WHEEL}; `python tools/torchvision_apart.py` puts it there")
    v, folder = random_values, tmp_path_factory.mktemp("torchvision")
    xy, half = v["cells"][:, :2], v["cells"][:, 2:] / 2
    given = dict(
        anchors=np.concatenate([xy - half, xy + half], axis=1),
        sizes=np.array([rows * columns for rows, columns in SIZES]),
        logits=v["logits"],
        strides=v["distances"] / v["cells"][:, 2:],
        centre=v["centre"],
        image=np.array([192, 256]),
        floor=0.3,
        overlap=0.6,
    )
    for i, rows in enumerate(v["truth"]):
        own = rows[rows[:, 4] >= 0]
        given |= {f"boxes{i}": own[:, :4], f"labels{i}": own[:, 4].astype(np.int64)}
    np.savez(folder / "in.npz", **given)
    script = Path(__file__).with_name("torchvision_reference.py")
    subprocess.run([sys.executable, script, WHEEL, folder / "in.npz", folder / "out.npz"], check=True)
    return dict(np.load(folder / "out.npz"))


def raw_of(v: dict[str, np.ndarray]) -> torch.Tensor:
    cells = np.broadcast_to(v["cells"], (2, *v["cells"].shape))
    return torch.from_numpy(np.concatenate([v["logits"], v["distances"], v["centre"], cells], axis=2).copy())


def test_losses_are_those_of_torchvision(random_values, theirs) -> None:
    """With its rule for which cell finds which object."""
    raw = raw_of(random_values).requires_grad_()
    losses = detection_losses(raw, torch.from_numpy(random_values["truth"]))
    for name, ours in zip(("classification", "bbox_regression", "bbox_ctrness"), losses):
        assert ours.item() == pytest.approx(float(theirs[f"loss_{name}"]), rel=2e-5), name
    sum(losses).backward()
    assert raw.grad.isfinite().all()


def test_boxes_are_those_of_torchvision(random_values, theirs) -> None:
    """Decoding, scores, candidates and suppression."""
    head = create_head("detection", untrained(catalog.get("rover-tiny")), labels=numbered(CLASSES), candidates=800)
    (ours,) = head.reduce(raw_of(random_values), 0, 0)
    for i in range(2):
        found = ours[i][ours[i, :, 4] > 0.3].numpy()
        order = np.argsort(-theirs[f"scores{i}"], kind="stable")
        assert len(found) == len(order) > 50
        np.testing.assert_allclose(found[:, 4], theirs[f"scores{i}"][order], rtol=1e-5)
        np.testing.assert_allclose(found[:, :4], theirs[f"boxes{i}"][order], atol=2e-4)
        assert (found[:, 5] == theirs[f"labels{i}"][order]).all()


def test_no_objects_teach_that_there_are_none() -> None:
    head = create_head("detection", untrained(catalog.get("rover-tiny")), labels=numbered(2))
    raw = head(torch.randn(2, 256, 4, 6)).detach().requires_grad_()
    losses = detection_losses(raw, torch.full((2, 3, 6), -1.0))
    assert losses.classes > 0 and losses.boxes == losses.centre == 0
    sum(losses).backward()
    assert raw.grad[..., :2].min() > 0 and not raw.grad[..., 2:].any()


def test_a_box_of_a_cell_is_where_the_cell_is() -> None:
    """The middle of the first 16-pixel cell lies at 7.5 when pixel centres are at integers."""
    cells = points(2, 3, 16)
    assert cells.tolist()[:2] == [[7.5, 7.5, 16], [23.5, 7.5, 16]] and cells[-1].tolist() == [39.5, 23.5, 16]


@pytest.mark.parametrize("classes", [1, 80])
def test_what_is_not_finite_is_no_box(classes: int) -> None:
    head = create_head("detection", untrained(catalog.get("rover-tiny")), labels=numbered(classes))
    (boxes,) = head.at(8, 8)(torch.full((1, 256, 4, 6), float("nan")))
    assert not (boxes[..., 4] > 0).any()


def test_the_head_costs_little_beside_the_backbone() -> None:
    """Of ViT-S, as operations; test_heads.py counts all heads beside the bundled backbone."""
    spec = catalog.get("dinov3-vits16")
    head = create_head("detection", untrained(reference.shortened(spec, 1)), labels=numbered(1))
    with FlopCounterMode(display=False) as counter:
        head.at(240, 320)(torch.zeros(1, spec.dim, 30, 40))
    assert counter.get_total_flops() < 0.05 * cost.flops(spec, 480, 640)


@pytest.mark.parametrize("option", [{"candidates": 0}, {"overlap": 2.0}, {"groups": 5}, {"widht": 48}])
def test_options_that_fit_no_detector_are_refused(option: dict) -> None:
    with pytest.raises(HeadError, match=next(iter(option))):
        create_head("detection", untrained(catalog.get("rover-tiny")), labels=numbered(1), **option)


def test_iou_is_that_of_a_closed_form() -> None:
    one, two = torch.tensor([[0.0, 0, 4, 4]]), torch.tensor([[2.0, 1, 6, 5], [0, 0, 4, 4], [5, 5, 6, 6]])
    assert iou(one, two)[0].tolist() == pytest.approx([6 / 26, 1, 0])
