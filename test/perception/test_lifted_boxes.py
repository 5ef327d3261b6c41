"""Boxes in the picture become boxes in space where the depth says so, and nowhere else."""

import dataclasses

import numpy as np
import pytest
import torch

from dino_perception.models import catalog
from dino_perception.models.checkpoints import untrained
from dino_perception.models.heads import create_head
from dino_perception.models.label_sets import Label
from dino_perception.models.outputs import Output
from dino_perception.perception import geometry
from dino_perception.perception.doubt import doubted
from dino_perception.perception.drawing import overlay
from dino_perception.perception.frame import Answer, CameraModel, Depth, Frame, Percept, Segmentation
from dino_perception.perception.head_answers import answer
from dino_perception.perception.lifted_boxes import dominant, ids_of, lifted_boxes
from dino_perception.perception.settings import DetectionSettings, Settings

ROCK = (Label(0, "rock", (204, 121, 167)),)
CLASSES = (Label(0, "soil", (1, 2, 3)), Label(1, "big_rock", (4, 5, 6)))
FOCAL = 500.0
WALL, FACE = 9.0, 4.0
BOX = (320.0, 200.0, 400.0, 260.0)
"""Pixels of a 640x480 image; the output is half as large, and the object fills the left two thirds of the box."""


def percept(metres: np.ndarray, mask: np.ndarray | None = None, boxes=(BOX,)) -> Percept:
    camera = CameraModel(640, 480, np.array([[FOCAL, 0, 319.5], [0, FOCAL, 239.5], [0, 0, 1]]))
    box = geometry.letterbox(480, 640, 480, 640, 240, 320)
    rows = np.array([[*b, 0.9, 0] for b in boxes], np.float32).reshape(-1, 6)
    said = Answer({"boxes": rows}, (Output("boxes", "boxes"),), ROCK)
    image = np.zeros((480, 640, 3), np.uint8)
    return Percept(
        Frame("camera", 0, "optical", image, camera), 240, 320, box.output_camera(camera),
        None if mask is None else Segmentation(mask, np.full(mask.shape, 255, np.uint8), CLASSES),
        Depth(metres.astype(np.float32)), output_scale=box.output_scale, others={"detection": said},
    )  # fmt: skip


def before_a_wall(share: float = 2 / 3) -> np.ndarray:
    """Depth (240, 320): a wall, and before it an object over the left part of the box."""
    depth = np.full((240, 320), WALL)
    depth[100:131, 160 : round(160 + share * 40)] = FACE
    return depth


def test_position_and_size_are_those_of_what_fills_most_of_the_box():
    noise = np.random.default_rng(0).normal(1, 0.01, (240, 320))
    (found,) = lifted_boxes(percept(before_a_wall() * noise), Settings())
    # Output columns 160 to 186 are image columns 320 to 373, rows 100 to 130 rows 200 to 261.
    left, right, top, bottom = ((edge - middle) * FACE / FOCAL for edge, middle in
                                ((320.5, 319.5), (372.5, 319.5), (200.5, 239.5), (260.5, 239.5)))  # fmt: skip
    np.testing.assert_allclose(found.position, [(left + right) / 2, (top + bottom) / 2, FACE], atol=0.03)
    np.testing.assert_allclose(found.size[:2], [right - left, bottom - top], rtol=0.08)
    assert 0 < found.size[2] < 0.3 and found.row == 0


def test_of_a_few_pixels_of_the_class_only_these_count():
    """The object fills a fifth of the box, the wall the rest: only the mask knows which of them is meant."""
    depth = before_a_wall(0.2)
    mask = np.where(depth == FACE, 1, 0).astype(np.uint8)
    assert lifted_boxes(percept(depth), Settings())[0].position[2] == pytest.approx(WALL)
    assert lifted_boxes(percept(depth, mask), Settings())[0].position[2] == pytest.approx(FACE)
    assert lifted_boxes(percept(depth, np.zeros_like(mask)), Settings())[0].position[2] == pytest.approx(WALL)


def test_nothing_is_said_where_the_depth_says_nothing():
    depth = before_a_wall()
    depth[95:135, 155:205] = np.nan
    small = (10.0, 10.0, 12.0, 12.0)  # one output pixel
    assert lifted_boxes(percept(depth, boxes=(BOX, small)), Settings()) == []
    far = Settings().changed({"points.max_range": 3.0})
    assert lifted_boxes(percept(before_a_wall()), far) == []
    assert lifted_boxes(dataclasses.replace(percept(depth), depth=None), Settings()) is None
    assert lifted_boxes(dataclasses.replace(percept(depth), output_camera=None), Settings()) is None


def test_the_mode_is_that_of_most_depths_and_of_equally_many_the_nearer():
    rng = np.random.default_rng(1)
    scattered = rng.uniform(1, 30, 60)
    near, far, middle = dominant(np.concatenate([scattered, rng.normal(6, 0.05, 40), [np.nan] * 9]))
    assert near < 6 < far and middle == pytest.approx(6, abs=0.2)
    assert dominant(np.repeat([2.0, 5.0], 20)) == (2.0, 2.0, 2.0)
    assert dominant(np.arange(1, 20, 2.0)) is None, "no six agree"


def test_a_class_is_known_by_its_last_words():
    assert ids_of("rock", CLASSES) == [1] and ids_of("Big-Rock", CLASSES) == [1]
    assert ids_of("soil", CLASSES) == [0] and ids_of("", CLASSES) == ids_of("car", CLASSES) == []


def test_boxes_come_in_pixels_of_the_image_and_cut_to_it():
    """Of a 1280x720 image the network sees 640x360 pixels, and below them padding."""
    head = create_head("detection", untrained(catalog.get("rover-tiny")), labels=ROCK)
    box = geometry.letterbox(720, 1280, 480, 640, 240, 320)
    rows = [[-20, 9.5, 99.5, 59.5, 0.9, 0], [0, 370, 90, 470, 0.9, 0], [0, 0, 9, 9, 0.2, 0], [0, 0, 9, 9, 0, 0]]
    array = torch.tensor(rows, dtype=torch.float32)
    said = answer(head.spec, head.OUTPUTS, [array], box, DetectionSettings())
    np.testing.assert_allclose(said["boxes"], [[-0.5, 19.5, 199.5, 119.5, 0.9, 0]], atol=1e-4)
    assert said.labels == ROCK
    more = answer(head.spec, head.OUTPUTS, [array], box, DetectionSettings(min_score=0.1))
    assert len(more["boxes"]) == 2
    (surest,) = answer(head.spec, head.OUTPUTS, [array], box, DetectionSettings(min_score=0.1, max_boxes=1))["boxes"]
    assert surest[4] == pytest.approx(0.9)


def test_of_a_frame_that_is_unlike_the_training_scores_are_lowered():
    said = percept(before_a_wall()).answer("detection")
    assert doubted(said, 0.9, False) is said
    assert doubted(said, 2.0, False)["boxes"][0, 4] == pytest.approx(0.9 / 4)
    assert len(doubted(said, 2.0, True)["boxes"]) == 0


def test_the_overlay_draws_the_box_in_the_colour_of_its_class():
    picture = overlay(percept(before_a_wall()), "detection", Settings())
    assert picture.shape == (480, 640, 3)
    assert picture[230, 320].tolist() == list(ROCK[0].colour) and not picture[230, 360].any()
