"""The plane of the ground: against planes known exactly, against noise and rocks, and against a rendered drive's poses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dino_perception.models.label_sets import Label
from dino_perception.perception import geometry
from dino_perception.perception.frame import CameraModel, Depth, Frame, Percept, Segmentation
from dino_perception.perception.ground_plane import fit, ground_plane

SAMPLE = Path(__file__).parents[2] / "data" / "sample_drive"
CAMERA = CameraModel(160, 120, np.array([[120.0, 0, 79.5], [0, 120, 59.5], [0, 0, 1]]))


def seen(height: float, pitch: float, roll: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """(h, w, 3) points of an endless plane, `height` metres below a camera that looks `pitch` rad down and is rolled,
    NaN over the horizon; and the plane's normal."""
    down = np.array([np.sin(roll) * np.cos(pitch), np.cos(roll) * np.cos(pitch), np.sin(pitch)])
    ray = geometry.rays(CAMERA).astype(np.float64)
    with np.errstate(divide="ignore"):
        depth = height / (ray @ down)
    depth[(depth <= 0) | (depth > 60)] = np.nan
    return depth[..., None] * ray, -down


@pytest.mark.parametrize("height, pitch, roll", [(1.1, 0.26, 0.0), (0.3, 0.5, 0.1), (2.5, 0.1, -0.2), (1.5, 1.2, 0.0)])
def test_an_exact_plane_is_found_exactly(height, pitch, roll):
    points, normal = seen(height, pitch, roll)
    plane = fit(points, np.isfinite(points[..., 2]))
    assert plane.height == pytest.approx(height, rel=1e-6) and plane.agreeing == 1.0
    np.testing.assert_allclose(plane.normal, normal, atol=1e-6)
    rows = points[np.isfinite(points[..., 2])]
    np.testing.assert_allclose(plane.over(rows), 0, atol=1e-5)
    np.testing.assert_allclose(plane.over(rows + 0.4 * normal), 0.4, atol=1e-5)


@pytest.mark.parametrize("scale", [0.7, 1.4])
def test_a_wrong_scale_of_the_depth_is_a_wrong_height_by_the_same_factor(scale):
    points, normal = seen(1.1, 0.26)
    rng = np.random.default_rng(1)
    points *= scale * (1 + rng.normal(0, 0.03, points.shape[:2]))[..., None]
    plane = fit(points, np.isfinite(points[..., 2]))
    assert plane.height == pytest.approx(1.1 * scale, rel=0.01)
    assert plane.normal @ normal > np.cos(np.radians(1))


def test_rocks_that_the_classes_missed_do_not_lift_it():
    points, normal = seen(1.1, 0.26)
    rng = np.random.default_rng(2)
    points *= (1 + rng.normal(0, 0.02, points.shape[:2]))[..., None]
    rocks = rng.random(points.shape[:2]) < 0.3
    points[rocks] *= rng.uniform(0.5, 0.9, (int(rocks.sum()), 1))  # nearer than the ground behind them
    plane = fit(points, np.isfinite(points[..., 2]))
    assert plane.height == pytest.approx(1.1, rel=0.02) and 0.6 < plane.agreeing < 0.8


def test_what_is_no_ground_has_no_plane():
    points, _ = seen(1.1, 0.26)
    ground = np.isfinite(points[..., 2])
    few = ground & (np.arange(ground.size).reshape(ground.shape) % 200 == 0)
    assert fit(points, few) is None  # too little of it
    assert fit(points * np.nan, ground) is None
    rng = np.random.default_rng(3)
    assert fit(points * rng.uniform(0.3, 3, ground.shape)[..., None], ground) is None  # no plane at all
    wall = geometry.rays(CAMERA) * np.float32(3.0)
    assert fit(wall, np.ones_like(ground)) is None
    line = np.repeat(points[100:101], 120, axis=0)
    assert (
        fit(line, np.isfinite(line[..., 2])) is None or True
    )  # one row of points: whatever it says, it does not raise


def test_only_classes_of_the_ground_are_looked_at():
    points, _ = seen(1.1, 0.26)
    depth = points[..., 2].astype(np.float32)
    mask = np.where(np.isfinite(depth), 0, 4).astype(np.uint8)
    mask[80:, :80], depth[80:, :80] = 3, 0.8  # a rock that fills a quarter of the ground
    labels = (Label(0, "soil", (0, 0, 0)), Label(3, "big_rock", (0, 0, 0)), Label(4, "sky", (0, 0, 0)))

    def percept(**parts) -> Percept:
        frame = Frame("camera", 0, "optical", np.zeros((120, 160, 3), np.uint8), CAMERA)
        whole = dict(
            output_camera=CAMERA,
            depth=Depth(depth),
            segmentation=Segmentation(mask, np.full_like(mask, 255), labels),
        )
        return Percept(frame, 120, 160, **{**whole, **parts})

    assert ground_plane(percept()).height == pytest.approx(1.1, rel=1e-5)
    assert ground_plane(percept(), classes=["lava"]) is None
    for part in ("output_camera", "depth", "segmentation"):
        assert ground_plane(percept(**{part: None})) is None


def test_on_the_sample_drive_it_is_the_height_of_the_mast(tmp_path):
    """By the rendered depth, and the heights of the camera and of the ground below it that the poses tell."""
    from dino_perception.training.datasets import open_dataset

    heights = []
    for sample in open_dataset(SAMPLE, cache=tmp_path).samples[::10]:
        depth, classes = sample.read_depth(), sample.read_classes()[::2, ::2]
        camera = geometry.scale_camera(sample.camera, (0.25, 0.25), depth.shape[1], depth.shape[0])
        plane = fit(geometry.points(depth, geometry.rays(camera)), classes <= 2)
        up = sample.pose[:3, :3].T @ [0, 0, 1]  # of the odometry, in the optical frame
        assert plane.normal @ up > np.cos(np.radians(8))
        heights.append(plane.height)
    assert np.median(heights) == pytest.approx(1.1, rel=0.1)
