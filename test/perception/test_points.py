"""The cloud: layout, alignment, and which pixels become points."""

import dataclasses
import struct

import cv2
import numpy as np
import pytest

from dino_perception.models.label_sets import Label
from dino_perception.perception import geometry
from dino_perception.perception.frame import CameraModel, Depth, Frame, Percept, Segmentation
from dino_perception.perception.points import perceive_points, point_type
from dino_perception.perception.settings import Settings

LABELS = (Label(0, "soil", (1, 2, 3)), Label(3, "big_rock", (4, 5, 6)), Label(4, "sky", (7, 8, 9)))


def percept(height: int = 720, width: int = 1280, seed: int = 0) -> Percept:
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (height, width, 3), np.uint8)
    k = np.array([[0.7 * width, 0, width / 2], [0, 0.7 * width, height / 2], [0, 0, 1.0]])
    camera = CameraModel(width, height, k, np.array([-0.28, 0.07, 0.0008, -0.0006, 0.01]))
    box = geometry.letterbox(height, width, 480, 640, 240, 320)
    size = (box.output_height, box.output_width)
    mask = rng.choice(np.array([0, 3], np.uint8), size)
    return Percept(
        Frame("camera", 0, "optical", image, camera), *size, box.output_camera(camera),
        Segmentation(mask, rng.integers(0, 256, size, np.uint8), LABELS),
        Depth(rng.uniform(0.5, 20, size).astype(np.float32)), output_scale=box.output_scale,
    )  # fmt: skip


def settings(**points) -> Settings:
    return Settings.from_flat({f"points.{name}": value for name, value in points.items()})


def test_a_point_with_colour_and_label_is_twenty_packed_bytes():
    kind = point_type(["label", "rgb"])
    assert kind.itemsize == 20
    assert {name: kind.fields[name][1] for name in kind.names} == {"x": 0, "y": 4, "z": 8, "rgb": 12, "label": 16}
    assert point_type([]).itemsize == 12
    assert point_type(["confidence", "rgb", "label"]).names == ("x", "y", "z", "rgb", "label", "confidence")


def test_every_point_reprojects_onto_its_own_pixel():
    p = percept()
    cloud = perceive_points(p, settings(max_range=100.0))
    assert cloud.shape == (180, 320)
    xyz = np.stack([cloud["x"], cloud["y"], cloud["z"]], axis=-1).reshape(-1, 3).astype(np.float64)
    assert np.isfinite(xyz).all()
    c = p.output_camera
    pixel, _ = cv2.projectPoints(xyz, np.zeros(3), np.zeros(3), c.k, c.d)
    own = np.stack(np.meshgrid(np.arange(320), np.arange(180)), axis=-1)
    assert np.abs(pixel.reshape(own.shape) - own).max() < 1e-3
    assert np.array_equal(cloud["z"], p.depth.metres)
    assert np.array_equal(cloud["label"], p.segmentation.mask)


def test_colour_is_packed_as_pcl_reads_it():
    p = percept()
    flat = np.zeros_like(p.frame.image)
    flat[:] = (200, 100, 50)
    cloud = perceive_points(dataclasses.replace(p, frame=dataclasses.replace(p.frame, image=flat)), settings())
    assert struct.pack("<f", cloud["rgb"][5, 5]) == bytes([50, 100, 200, 0])


def test_colour_is_that_of_the_image_part_a_point_covers():
    p = percept()
    cloud = perceive_points(p, settings())
    packed = cloud["rgb"].copy().view(np.uint32)
    red = (packed >> 16) & 255
    block = p.frame.image.reshape(180, 4, 320, 4, 3).astype(np.float64).mean(axis=(1, 3))
    assert np.abs(red - block[..., 0]).max() <= 0.51


def _valid(cloud):
    finite = [np.isfinite(cloud[axis]) for axis in "xyz"]
    assert np.array_equal(finite[0], finite[1]) and np.array_equal(finite[1], finite[2])
    return finite[2]


def test_far_points_unknown_depth_and_sky_are_not_points():
    p = percept()
    p.depth.metres[0, :5] = [np.nan, 0.0, -1.0, np.inf, 5.0]
    p.segmentation.mask[1, :] = 4
    p.segmentation.mask[2, :] = 255
    valid = _valid(perceive_points(p, settings(max_range=12.0)))
    distance = np.linalg.norm(geometry.points(p.depth.metres, geometry.rays(p.output_camera)), axis=-1)
    expected = (distance <= 12) & (p.depth.metres > 0) & (p.segmentation.mask != 4)
    near_the_limit = np.abs(distance - 12) < 1e-4
    assert np.array_equal(valid[~near_the_limit], expected[~near_the_limit])
    assert valid[0, :5].tolist() == [False, False, False, False, True]
    assert not valid[1].any() and valid[2].any()


def test_unsure_pixels_are_not_points_when_a_least_confidence_is_set():
    p = percept()
    assert _valid(perceive_points(p, settings(max_range=100.0))).all()
    valid = _valid(perceive_points(p, settings(max_range=100.0, min_confidence=0.4)))
    assert np.array_equal(valid, p.segmentation.confidence >= 0.4 * 255)


def test_confidence_can_ride_along():
    p = percept()
    cloud = perceive_points(p, settings(fields=["confidence"]))
    assert cloud.dtype.names == ("x", "y", "z", "confidence")
    assert cloud["confidence"] == pytest.approx(p.segmentation.confidence / 255, abs=1e-6)


def test_without_segmentation_points_carry_the_ignore_label():
    cloud = perceive_points(
        dataclasses.replace(percept(), segmentation=None), settings(fields=["rgb", "label", "confidence"])
    )
    assert (cloud["label"] == 255).all() and (cloud["confidence"] == 1).all()
    assert _valid(cloud).all()


@pytest.mark.parametrize("missing", ["depth", "output_camera"])
def test_no_cloud_without_depth_or_camera_model(missing):
    assert perceive_points(dataclasses.replace(percept(), **{missing: None}), settings()) is None


def test_colour_fits_where_the_grids_do_not_divide():
    """An image whose value is its own column, on an output grid of 300 columns for 640."""
    image = np.repeat(np.tile(np.linspace(0, 255, 752).round().astype(np.uint8), (480, 1))[..., None], 3, axis=2)
    box = geometry.letterbox(480, 752, 480, 640, 225, 300)
    k = np.array([[500, 0, 376], [0, 500, 240], [0, 0, 1.0]])
    size = (box.output_height, box.output_width)
    p = Percept(
        Frame("c", 0, "f", image),
        *size,
        box.output_camera(CameraModel(752, 480, k)),
        depth=Depth(np.ones(size, np.float32)),
        output_scale=box.output_scale,
    )
    green = (perceive_points(p, settings())["rgb"].copy().view(np.uint32) >> 8) & 255
    column = box.from_output(np.stack([np.arange(size[1]), np.zeros(size[1])], axis=-1))[:, 0]
    assert np.abs(green[0] - column * 255 / 751).max() < 1.0


def test_sky_is_left_out_whatever_the_label_set_calls_it():
    sky = Label(117, "sky-other-merged", (0, 0, 1))
    percept = Percept(
        Frame("c", 0, "o", np.zeros((4, 6, 3), np.uint8)), 4, 6, CameraModel(6, 4, np.diag([5.0, 5, 1])),
        Segmentation(np.full((4, 6), 117, np.uint8), np.full((4, 6), 255, np.uint8), (sky,)),
        Depth(np.ones((4, 6), np.float32)),
    )  # fmt: skip
    cloud = perceive_points(percept, Settings())
    assert np.isnan(cloud["z"]).all()
    assert np.isfinite(perceive_points(percept, Settings.from_flat({"points.exclude": ["water"]}))["z"]).all()


def test_depth_that_is_not_sure_is_no_point_where_asked():
    p = percept()
    confidence = np.arange(p.depth.metres.size).reshape(p.depth.metres.shape).astype(np.uint8)
    sure = dataclasses.replace(p, depth=Depth(p.depth.metres, confidence))
    assert np.isfinite(perceive_points(sure, settings(max_range=100.0))["z"]).all()
    seen = np.isfinite(perceive_points(sure, settings(max_range=100.0, min_depth_confidence=0.5))["z"])
    assert np.array_equal(seen, confidence >= 127.5)
    assert np.isfinite(perceive_points(p, settings(max_range=100.0, min_depth_confidence=0.5))["z"]).all()
