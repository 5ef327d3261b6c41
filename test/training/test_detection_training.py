"""Boxes from where people have them, a detector that learns from them, and how it is judged."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from small_data import picture

from dino_perception.cli.__main__ import main
from dino_perception.models.checkpoints import load_backbone
from dino_perception.models.heads import Label, load_head
from dino_perception.models.outputs import Output
from dino_perception.perception.frame import Answer, CameraModel, Depth, Frame, Percept, Segmentation
from dino_perception.perception.geometry import letterbox
from dino_perception.perception.settings import Settings
from dino_perception.training.datasets import DataError, Dataset, joined, open_dataset
from dino_perception.training.datasets.base import Sample
from dino_perception.training.evaluation import detections
from dino_perception.training.evaluation.detection_score import DetectionScore
from dino_perception.training.features import FeatureCache
from dino_perception.training.looks import Look
from dino_perception.training.tasks import task_of

HEIGHT, WIDTH = 64, 96
ROCK = (Label(0, "rock", (204, 121, 167)),)


def block(seed: int) -> tuple[np.ndarray, tuple[int, int, int, int]]:
    """A picture of a red block (x, y, width, height) on grey noise."""
    rng = np.random.default_rng(seed)
    image = rng.integers(100, 130, (HEIGHT, WIDTH, 3)).astype(np.uint8)
    w, h = (int(v) for v in rng.integers(12, 28, 2))
    x, y = int(rng.integers(0, WIDTH - w)), int(rng.integers(0, HEIGHT - h))
    image[y : y + h, x : x + w] = (220, 30, 20)
    return image, (x, y, w, h)


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "data"
    boxes = []
    for i in range(12):
        image, box = block(i)
        picture(folder / "images" / f"{i:03}.png", image)
        boxes.append(box)
    return folder, boxes


def coco(folder, boxes, **more):
    content = {
        "images": [{"id": 7 + i, "file_name": f"{i:03}.png"} for i in range(len(boxes))],
        "categories": [{"id": 3, "name": "nothing"}, {"id": 9, "name": "block"}],
        "annotations": [{"image_id": 7 + i, "category_id": 9, "bbox": box} for i, box in enumerate(boxes)],
        **more,
    }
    (folder / "boxes.json").write_text(json.dumps(content))
    return folder / "boxes.json"


def yolo(folder, boxes):
    (folder / "labels").mkdir()
    for i, (x, y, w, h) in enumerate(boxes):
        row = (0, (x + w / 2) / WIDTH, (y + h / 2) / HEIGHT, w / WIDTH, h / HEIGHT)
        (folder / "labels" / f"{i:03}.txt").write_text(" ".join(map(str, row)) + "\n")
    (folder / "data.yaml").write_text("names: {0: block}\n")
    return folder


def masks(folder, boxes):
    for i, (x, y, w, h) in enumerate(boxes):
        mask = np.zeros((HEIGHT, WIDTH), np.uint8)
        mask[y : y + h, x : x + w] = 1
        mask[0, 0] = 1  # too small to be an object
        picture(folder / "masks" / f"{i:03}.png", mask)
    (folder / "labels.yaml").write_text("labels: [{name: ground}, {name: block}]\n")
    return folder


@pytest.mark.parametrize("how", [coco, yolo, masks])
def test_the_same_boxes_come_from_each_kind_of_data(pictures, tmp_path, how):
    """Pixel centres are at integers: a block from x to x + w covers x - 0.5 to x + w - 0.5."""
    folder, boxes = pictures
    data = open_dataset(how(folder, boxes), cache=tmp_path, objects=["block"] if how is masks else [])
    assert [label.name for label in data.box_labels] == ["block"] and len(data.samples) == 12
    for sample, (x, y, w, h) in zip(data.samples, boxes):
        (row,) = sample.read_boxes()
        np.testing.assert_allclose(row[:5], [x - 0.5, y - 0.5, x + w - 0.5, y + h - 0.5, 0], atol=1e-4)
        inside = sample.read_image()[int(row[1] + 1) : int(row[3]), int(row[0] + 1) : int(row[2])]
        assert (inside == (220, 30, 20)).all() and np.isnan(row[5])


def test_bad_boxes_are_one_sentence(pictures, tmp_path):
    folder, boxes = pictures
    path = coco(folder, boxes, annotations=[{"image_id": 7, "category_id": 9}])
    with pytest.raises(DataError, match="is no COCO file of boxes .*'bbox'"):
        open_dataset(path, cache=tmp_path)
    yolo(folder, boxes)
    (folder / "labels" / "000.txt").write_text("0 0.5 0.5 2 0.1\n")
    with pytest.raises(DataError, match=r"000.txt line 1 is '0 0.5 0.5 2 0.1'; accepted are classes 0 to 0"):
        open_dataset(folder, cache=tmp_path).samples[0].read_boxes()
    (folder / "labels" / "000.txt").unlink()
    (folder / "labels").rename(folder / "of yolo")
    with pytest.raises(DataError, match="have no class 'tree'"):
        open_dataset(masks(folder, boxes), cache=tmp_path, objects=["tree"])


def test_data_of_other_objects_is_not_joined(pictures, tmp_path):
    folder, boxes = pictures
    one = open_dataset(coco(folder, boxes), cache=tmp_path)
    other = open_dataset(coco(folder, boxes, categories=[{"id": 9, "name": "ball"}]), cache=tmp_path)
    with pytest.raises(DataError, match="have different classes"):
        joined([one, other])
    assert joined([one, one]).box_labels == one.box_labels


def test_boxes_are_mirrored_and_put_where_the_picture_is_put():
    """A 64x32 picture in an input of 96x128 is twice as large, and nothing of it lies right of it."""
    task = task_of("detection")
    boxes = np.array([[-0.5, 3.5, 9.5, 15.5, 2, 7.0], [3, 3, 4, 4, 0, np.nan]], np.float32)
    cache = FeatureCache.__new__(FeatureCache)
    cache.height, cache.width = 96, 128
    box = cache.box(np.zeros((32, 64, 3), np.uint8), 2)
    plain, mirrored = (task.placed(boxes, Look(number), box) for number in (0, 1))
    np.testing.assert_allclose(plain[0], [-0.5, 7.5, 19.5, 31.5, 2, 7])
    np.testing.assert_allclose(mirrored[0], [107.5, 7.5, 127.5, 31.5, 2, 7])
    assert plain.shape == (task.MOST, 6) and (plain[2:, 4] == -1).all()


def test_a_detector_learns_to_find_blocks(pictures, tmp_path, capsys):
    folder, boxes = pictures
    out = tmp_path / "block.safetensors"
    options = ["--cache", str(tmp_path / "cache"), "--input", "64x96", "--engine", "torch", "--precision", "float32"]
    arguments = ["--out", str(out), "--steps", "60", "--epochs", "1", "--batch", "6", "--rate", "0.004", "--views", "1"]
    assert main(["train", "detection", "--data", str(yolo(folder, boxes)), *arguments, *options]) == 0
    head = load_head("detection", load_backbone("rover-tiny"), out)
    assert [label.name for label in head.spec.labels] == ["block"]
    assert head.spec.metrics["validation"]["ap50"] > 0.5 and "AP50 block" in capsys.readouterr().out


def random_frames(seed: int, classes: int):
    rng = np.random.default_rng(seed)
    for _ in range(20):
        low = rng.uniform(0, 80, (6, 2))
        truth = np.concatenate(
            [low, low + rng.uniform(10, 40, (6, 2)), rng.integers(0, classes, (6, 1)), np.full((6, 1), 5)], 1
        )
        near = truth[rng.integers(0, 6, 12)]
        boxes = near[:, :4] + rng.normal(0, 2.5, (12, 4)).clip(-4, 4)
        yield truth, np.concatenate([boxes, rng.uniform(0.1, 1, (12, 1)), near[:, 4:5]], axis=1)


def test_average_precision_is_that_of_pycocotools():
    pytest.importorskip("pycocotools", reason="COCO's own average precision")
    score, frames = DetectionScore(3), list(random_frames(0, 3))
    for truth, boxes in frames:
        score.add(truth, boxes)
    theirs = detections.coco_numbers([t for t, _ in frames], [b for _, b in frames])
    assert 0.2 < score.mean < 0.9 and score.mean == pytest.approx(theirs["ap50"], abs=1e-6)
    assert theirs["ap"] < theirs["ap50"]


def test_missing_boxes_and_wrong_ones_cost_what_they_should():
    score = DetectionScore(1)
    truth = np.array([[0, 0, 10, 10, 0], [20, 0, 30, 10, 0]], float)
    score.add(truth, np.array([[0, 0, 10, 10, 0.9, 0], [50, 50, 60, 60, 0.8, 0], [0, 0, 10, 9, 0.7, 0]]))
    assert score.mean == pytest.approx(51 / 101), "one of two found, first of all; finding it twice is wrong"
    assert np.isnan(DetectionScore(1).mean)


def test_objects_are_judged_beside_the_parts_of_the_mask():
    """Two rocks 4 m away, of which the mask shows one, and half a metre too far is what the depth says."""
    camera = CameraModel(96, 64, np.array([[80.0, 0, 47.5], [0, 80, 31.5], [0, 0, 1]]))
    truth = np.array([[9.5, 9.5, 29.5, 29.5, 0, 4.0], [49.5, 9.5, 69.5, 29.5, 0, 4.0]], np.float32)
    box = letterbox(64, 96, 64, 96, 32, 48)
    mask = np.zeros((32, 48), np.uint8)
    mask[5:15, 5:15] = 1
    mask[25:28, 30:40] = 1  # where there is no rock
    answer = Answer(
        {"boxes": np.concatenate([truth[:, :4], [[0.9, 0], [0.8, 0]]], axis=1)}, (Output("boxes", "boxes"),), ROCK
    )
    percept = Percept(
        Frame("camera", 0, "optical", np.zeros((64, 96, 3), np.uint8), camera), 32, 48, box.output_camera(camera),
        Segmentation(mask, np.full(mask.shape, 200, np.uint8), (Label(0, "soil", (0, 0, 0)), Label(1, "big_rock", (1, 1, 1)))),
        Depth(np.full(mask.shape, 4.5, np.float32)), output_scale=box.output_scale, others={"detection": answer},
    )  # fmt: skip
    sample = Sample("a", "", "k", lambda: percept.frame.image, read_boxes=lambda: truth)
    data = Dataset("two rocks", (sample,), box_labels=ROCK)
    judge = detections.ObjectJudge(data, ROCK, Settings())
    judge.judge(sample, percept)
    found = judge.numbers()
    assert found["ap50"] == 1 and found["recall"] == found["precision"] == found["range_known"] == 1
    assert found["range_error"] == pytest.approx(0.125) and found["range_error_m"] == pytest.approx(0.5)
    assert found["baseline_ap50"] == pytest.approx(51 / 101) and found["baseline_precision"] == 0.5
    with pytest.raises(DataError, match="have no name in common"):
        detections.ObjectJudge(data, (Label(0, "person", (0, 0, 0)),), Settings())


def test_a_true_distance_is_filled_from_the_depth():
    truth = np.array([[10, 10, 40, 40, 0, np.nan], [0, 0, 5, 5, 0, 3.0]], np.float32)
    depth = np.full((32, 48), 8.0, np.float32)
    depth[6:19, 6:19] = 2.5
    detections.fill_distances(truth, depth, (64, 96))
    assert truth[:, 5].tolist() == [2.5, 3.0]


def test_truth_of_boxes_need_not_have_the_pictures_aspect():
    sample = Sample(
        "a", "", "k", lambda: np.zeros((4, 4, 3), np.uint8), read_boxes=lambda: np.zeros((0, 6), np.float32)
    )
    assert sample.truth("detection", sample.read_image()).shape == (0, 6)
    assert not torch.is_tensor(sample.truth("detection", sample.read_image()))
