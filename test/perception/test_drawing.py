"""Overlays: what each colour says, sizes, and that they can be read."""

import dataclasses

import cv2
import numpy as np
import pytest

from dino_perception.models.label_sets import Label
from dino_perception.perception import drawing, geometry
from dino_perception.perception.frame import Correspondences, Depth, Frame, Percept, Segmentation
from dino_perception.perception.settings import Settings

LABELS = (Label(0, "soil", (230, 159, 0)), Label(1, "bedrock", (0, 158, 115)), Label(4, "sky", (86, 180, 233)))
PLAIN = Settings.from_flat({"overlay.legend": False, "overlay.alpha": 0.5})


def percept(height=480, width=640) -> Percept:
    image = np.full((height, width, 3), 100, np.uint8)
    box = geometry.letterbox(height, width, 480, 640, 240, 320)
    h, w = box.output_height, box.output_width
    mask = np.zeros((h, w), np.uint8)
    mask[:, w // 2 :] = 1
    depth = np.full((h, w), 4.0, np.float32)
    return Percept(
        Frame("camera", 2_000_000_000, "optical", image), h, w, None,
        Segmentation(mask, np.full((h, w), 255, np.uint8), LABELS), Depth(depth), output_scale=box.output_scale,
    )  # fmt: skip


@pytest.mark.parametrize("height, width, shape", [(480, 640, (480, 640)), (1080, 1920, (360, 640)), (120, 160, (120, 160)),
                                                  (640, 480, (640, 480))])  # fmt: skip
@pytest.mark.parametrize("legend", [True, False])
def test_overlays_are_rgb_pictures_of_the_images_shape_and_at_most_640_wide(height, width, shape, legend):
    p = dataclasses.replace(percept(height, width), correspondences=matches(height, width))
    settings = Settings.from_flat({"overlay.legend": legend})
    before = p.frame.image.copy()
    for draw in (drawing.segmentation_overlay, drawing.depth_overlay, drawing.correspondences_overlay):
        picture = draw(p, settings)
        assert picture.shape == (*shape, 3) and picture.dtype == np.uint8
    assert np.array_equal(p.frame.image, before), "drawing must not paint on the camera's image"


def test_a_class_is_its_colour_mixed_with_the_image_at_alpha():
    picture = drawing.segmentation_overlay(percept(), PLAIN)
    assert picture[200, 100] == pytest.approx(0.5 * 100 + 0.5 * np.array(LABELS[0].colour), abs=1)
    assert picture[200, 500] == pytest.approx(0.5 * 100 + 0.5 * np.array(LABELS[1].colour), abs=1)


def test_an_unsure_class_is_fainter_and_an_ignored_pixel_is_not_painted():
    p = percept()
    p.segmentation.confidence[:100] = 60
    p.segmentation.mask[200:] = 255
    picture = drawing.segmentation_overlay(p, PLAIN).astype(int)
    sure, unsure = (np.abs(picture[row, 100] - 100).sum() for row in (300, 100))
    assert 0 < unsure < 0.7 * sure
    assert (picture[450, 100] == 100).all()


def test_the_legend_names_only_what_is_in_sight_and_is_where_it_says():
    with_legend = drawing.segmentation_overlay(percept(), Settings())
    without = drawing.segmentation_overlay(percept(), PLAIN)
    changed = np.argwhere((with_legend != without).any(axis=2))
    assert changed[:, 0].min() > 350 and changed[:, 1].max() < 320, "lower left corner"
    colours = {tuple(c) for c in with_legend[tuple(changed.T)]}
    assert LABELS[0].colour in colours and LABELS[1].colour in colours and LABELS[2].colour not in colours


def test_depth_is_brighter_the_nearer_and_grey_where_unknown():
    p = percept()
    columns = np.geomspace(0.5, 60, 320).astype(np.float32)
    p.depth.metres[:] = columns
    p.depth.metres[:20] = np.nan
    picture = drawing.depth_overlay(p, PLAIN)
    light = cv2.cvtColor(picture, cv2.COLOR_RGB2LAB)[300, :, 0].astype(int)
    reachable = np.repeat(columns, 2) <= 30
    assert (np.diff(light[reachable]) <= 1).all() and light[0] - light[reachable][-1] > 150
    assert (picture[300][~reachable] == 33).all(), "farther than points.max_range"
    assert (picture[10] == 33).all(), "unknown"


def matches(height=480, width=640, n=40) -> Correspondences:
    rng = np.random.default_rng(0)
    x, y = rng.uniform(20, width - 20, n).astype(np.float32), rng.uniform(20, height - 20, n).astype(np.float32)
    return Correspondences(1_900_000_000, "optical", width, height, np.arange(n, dtype=np.uint64), x, y, x - 10, y - 4,
                           np.ones(n, np.float32))  # fmt: skip


def test_matches_are_drawn_from_where_a_point_was_to_where_it_is():
    found = dataclasses.replace(
        matches(n=1),
        x=np.float32([300]),
        y=np.float32([200]),
        reference_x=np.float32([260]),
        reference_y=np.float32([180]),
    )
    picture = drawing.correspondences_overlay(dataclasses.replace(percept(), correspondences=found), PLAIN).astype(int)
    coloured = np.argwhere(picture.max(axis=2) - picture.min(axis=2) > 60)
    assert np.abs(coloured.min(axis=0) - [180, 260]).max() <= 2
    assert np.abs(coloured.max(axis=0) - [200, 300]).max() <= 3
    off_line = np.abs((coloured[:, 0] - 180) - 0.5 * (coloured[:, 1] - 260))
    assert off_line.max() <= 3


def test_no_matches_is_a_picture_too():
    p = dataclasses.replace(percept(), correspondences=matches(n=0))
    assert drawing.correspondences_overlay(p, Settings()).shape == (480, 640, 3)
