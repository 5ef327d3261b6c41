"""Sizes, pixels and rays, against OpenCV and closed forms."""

import dataclasses
from fractions import Fraction

import cv2
import numpy as np
import pytest

from dino_perception.perception import geometry
from dino_perception.perception.frame import CameraModel
from dino_perception.perception.geometry import GeometryError, letterbox

SIZES = [
    (480, 640),
    (720, 1280),
    (1080, 1920),
    (1200, 1920),
    (480, 752),
    (240, 320),
    (640, 480),
    (97, 131),
    (1024, 1024),
]

LENSES = {
    "none": ("plumb_bob", []),
    "barrel": ("plumb_bob", [-0.28, 0.07, 0.0008, -0.0006, 0.01]),
    "pincushion": ("plumb_bob", [0.12, -0.05, -0.001, 0.002, 0.0]),
    "four": ("plumb_bob", [-0.2, 0.04, 0.001, 0.0005]),
    "rational": ("rational_polynomial", [0.85, 0.31, 0.0004, -0.0003, 0.012, 1.18, 0.52, 0.06]),
    "prism": ("rational_polynomial", [0.3, 0.1, 1e-3, -1e-3, 0.01, 0.45, 0.15, 0.01, 2e-3, -1e-3, 1e-3, 5e-4]),
    "tilted": ("rational_polynomial", [0.3, 0.1, 1e-3, -1e-3, 0.01, 0.45, 0.15, 0.01, 1e-3, 0, -1e-3, 0, 0.02, -0.03]),
    "fisheye": ("equidistant", [-0.021, 0.0045, -0.0023, 0.0002]),
    "plain fisheye": ("equidistant", [0.0, 0.0, 0.0, 0.0]),
}


def camera(lens: str = "none", width: int = 640, height: int = 480) -> CameraModel:
    model, d = LENSES[lens]
    focal = 0.45 * width if model == "equidistant" else 0.7 * width
    k = np.array([[focal, 0, 0.51 * width], [0, 1.01 * focal, 0.48 * height], [0, 0, 1.0]])
    p = np.array([[0.9 * focal, 0, 0.5 * width, -0.12 * focal], [0, 0.9 * focal, 0.5 * height, 0], [0, 0, 1, 0.0]])
    return CameraModel(width, height, k, np.array(d), model, p=p)


@pytest.mark.parametrize("height, width", SIZES)
def test_an_image_keeps_its_aspect_and_fills_one_side_of_the_input(height, width):
    box = letterbox(height, width, 480, 640, 240, 320)
    assert box.content_height <= 480 and box.content_width <= 640
    assert box.content_height == 480 or box.content_width == 640
    x, y = box.input_scale
    assert abs(x / y - 1) <= 1.01 / min(box.content_height, box.content_width)
    assert (box.output_height * 2, box.output_width * 2) == (box.content_height, box.content_width)


def test_common_sizes_have_the_outputs_people_expect():
    assert _output(480, 640) == (240, 320)
    assert _output(720, 1280) == (180, 320)
    assert _output(1200, 1920) == (200, 320)
    assert _output(640, 480) == (240, 180)


def _output(height, width):
    box = letterbox(height, width, 480, 640, 240, 320)
    return box.output_height, box.output_width


@pytest.mark.parametrize("grid", [(240, 320), (225, 300), (480, 640), (150, 200), (960, 1280), (101, 333)])
@pytest.mark.parametrize("height, width", SIZES)
def test_outputs_lie_wholly_on_the_image(height, width, grid):
    box = letterbox(height, width, 480, 640, *grid)
    last_edge = box.from_output(np.array([box.output_width - 0.5, box.output_height - 0.5]))
    assert (last_edge <= [width - 0.5 + 1e-9, height - 0.5 + 1e-9]).all()
    one_output_pixel = 1 / np.array(box.output_scale)
    assert (last_edge > [width - 0.5, height - 0.5] - one_output_pixel).all()


@pytest.mark.parametrize("height, width", SIZES)
def test_pixels_survive_the_way_to_input_and_output_and_back(height, width):
    box = letterbox(height, width, 480, 640, 240, 320)
    xy = np.random.default_rng(0).uniform([0, 0], [width - 1, height - 1], (500, 2))
    assert np.abs(box.from_input(box.to_input(xy)) - xy).max() < 1e-9
    assert np.abs(box.from_output(box.to_output(xy)) - xy).max() < 1e-9


@pytest.mark.parametrize("interpolation", [cv2.INTER_LINEAR, cv2.INTER_AREA])
@pytest.mark.parametrize("height, width", [(960, 1280), (720, 1280), (1080, 1920)])
def test_pixel_mapping_is_that_of_opencvs_resize(height, width, interpolation):
    """An image whose value is its own coordinate, resized, tells where each resized pixel came from."""
    box = letterbox(height, width, 480, 640, 240, 320)
    source = np.stack(np.meshgrid(np.arange(width), np.arange(height)), axis=-1).astype(np.float32)
    small = cv2.resize(source, (box.content_width, box.content_height), interpolation=interpolation)
    where = np.stack(np.meshgrid(np.arange(box.content_width), np.arange(box.content_height)), axis=-1)
    inner = np.s_[2:-2, 2:-2]
    assert np.abs(small[inner] - box.from_input(where)[inner]).max() < 2e-3


@pytest.mark.parametrize("lens", LENSES)
@pytest.mark.parametrize("height, width", [(480, 640), (720, 1280), (333, 517)])
def test_the_scaled_camera_sees_a_point_where_the_resized_image_shows_it(lens, height, width):
    box = letterbox(height, width, 480, 640, 240, 320)
    full = camera(lens, width, height)
    out = box.output_camera(full)
    assert (out.width, out.height) == (box.output_width, box.output_height)
    assert out.model == full.model and np.array_equal(out.d, full.d) and np.array_equal(out.r, full.r)
    points = np.random.default_rng(1).uniform([-2, -1.5, 3], [2, 1.5, 9], (200, 3))
    assert np.abs(geometry.project(out, points) - box.to_output(geometry.project(full, points))).max() < 1e-9
    homogeneous = np.hstack([points, np.ones((200, 1))])
    before, after = (homogeneous @ c.p.T for c in (full, out))
    moved = box.to_output(before[:, :2] / before[:, 2:])
    assert np.abs(after[:, :2] / after[:, 2:] - moved).max() < 1e-9


@pytest.mark.parametrize("lens", [name for name in LENSES if "fisheye" not in name])
def test_projection_is_opencvs(lens):
    c = camera(lens)
    points = np.random.default_rng(2).uniform([-2, -1.5, 3], [2, 1.5, 9], (300, 3))
    theirs, _ = cv2.projectPoints(points, np.zeros(3), np.zeros(3), c.k, c.d if len(c.d) else None)
    assert np.abs(geometry.project(c, points) - theirs[:, 0]).max() < 1e-9


@pytest.mark.parametrize("lens", ["fisheye", "plain fisheye"])
def test_fisheye_projection_is_opencvs(lens):
    c = camera(lens)
    points = np.random.default_rng(3).uniform([-5, -4, 0.5], [5, 4, 9], (300, 3))
    theirs, _ = cv2.fisheye.projectPoints(points[:, None], np.zeros(3), np.zeros(3), c.k, c.d)
    assert np.abs(geometry.project(c, points) - theirs[:, 0]).max() < 1e-9


@pytest.mark.parametrize("lens", LENSES)
def test_rays_invert_the_lens_to_a_ten_thousandth_pixel(lens):
    c = camera(lens)
    ray = geometry.rays(c)
    assert ray.shape == (480, 640, 3) and ray.dtype == np.float32
    pixels = np.stack(np.meshgrid(np.arange(640), np.arange(480)), axis=-1).astype(np.float64)
    assert np.isfinite(ray).all()
    assert np.abs(geometry.project(c, ray) - pixels).max() < 1e-4

    sample = pixels[::40, ::40].reshape(-1, 1, 2)
    if c.model == "equidistant":
        exact = {"criteria": (3, 200, 1e-13)} if "criteria" in cv2.fisheye.undistortPoints.__doc__ else {}
        theirs = cv2.fisheye.undistortPoints(sample, c.k, c.d, **exact)
    else:
        # Since 4.7 undistortPoints takes the criteria; before, a function of its own did.
        invert = getattr(cv2, "undistortPointsIter", cv2.undistortPoints)
        theirs = invert(sample, c.k, c.d if len(c.d) else None, None, None, criteria=(3, 500, 1e-13))
    assert np.abs(ray[::40, ::40, :2].reshape(-1, 2) - theirs[:, 0]).max() < 2e-6


def test_pixels_beyond_the_fold_of_a_calibration_have_no_ray():
    """r (1 - 0.4 r^2) grows up to r = 1 / sqrt(1.2), where it is 0.6086; no ray reaches a larger radius."""
    k = np.array([[300.0, 0, 320], [0, 300.0, 240], [0, 0, 1]])
    c = CameraModel(640, 480, k, np.array([-0.4, 0, 0, 0, 0.0]))
    ray = geometry.rays(c)
    v, u = np.mgrid[:480, :640]
    radius = np.hypot(u - 320, v - 240) / 300
    reachable = 2 / 3 / np.sqrt(1.2)
    assert np.isnan(ray[radius > reachable + 1e-3]).all()
    assert np.isfinite(ray[radius < reachable - 1e-3]).all()
    assert np.hypot(ray[..., 0], ray[..., 1])[radius < reachable].max() <= 1 / np.sqrt(1.2)
    finite = np.isfinite(ray).all(axis=-1)
    error = geometry.project(c, ray[finite]) - np.stack([u, v], axis=-1)[finite]
    assert np.abs(error).max() < 1e-4


def test_a_second_branch_beyond_the_fold_is_not_taken_for_the_lens():
    """r (1 - 0.5 r^2 + 0.1 r^4) folds at r = 1, where it is 0.6, and grows again beyond 1.41: radii above 0.6 are reached
    by that branch only, of which no calibration knows."""
    k = np.array([[300.0, 0, 320], [0, 300.0, 240], [0, 0, 1]])
    ray = geometry.rays(CameraModel(640, 480, k, np.array([-0.5, 0.1, 0, 0, 0])))
    v, u = np.mgrid[:480, :640]
    radius = np.hypot(u - 320, v - 240) / 300
    assert np.isnan(ray[radius > 0.601]).all() and np.isfinite(ray[radius < 0.599]).all()


def test_pixels_that_look_sideways_through_a_fisheye_have_no_ray():
    k = np.array([[100.0, 0, 320], [0, 100.0, 240], [0, 0, 1]])
    ray = geometry.rays(CameraModel(640, 480, k, np.zeros(4), "equidistant"))
    v, u = np.mgrid[:480, :640]
    angle = np.hypot(u - 320, v - 240) / 100
    assert np.isnan(ray[angle >= np.pi / 2]).all()
    assert np.isfinite(ray[angle < np.pi / 2 - 0.02]).all()


@pytest.mark.parametrize("lens", LENSES)
@pytest.mark.parametrize("height, width", [(480, 640), (720, 1280)])
def test_a_point_falls_back_onto_its_own_pixel_through_the_output_camera(lens, height, width):
    box = letterbox(height, width, 480, 640, 240, 320)
    c = box.output_camera(camera(lens, width, height))
    depth = np.random.default_rng(4).uniform(0.3, 60, (c.height, c.width)).astype(np.float32)
    cloud = geometry.points(depth, geometry.rays(c))
    assert cloud.dtype == np.float32
    if c.model == "equidistant":
        pixel, _ = cv2.fisheye.projectPoints(
            cloud.reshape(-1, 1, 3).astype(np.float64), np.zeros(3), np.zeros(3), c.k, c.d
        )
    else:
        d = c.d if len(c.d) else None
        pixel, _ = cv2.projectPoints(cloud.reshape(-1, 3).astype(np.float64), np.zeros(3), np.zeros(3), c.k, d)
    own = np.stack(np.meshgrid(np.arange(c.width), np.arange(c.height)), axis=-1)
    assert np.abs(pixel.reshape(own.shape) - own).max() < 1e-3


def test_depth_is_along_the_optical_axis_and_unknown_depth_has_no_point():
    depth = np.full((480, 640), 4.0, np.float32)
    depth[3, 5] = np.nan
    cloud = geometry.points(depth, geometry.rays(camera("barrel")))
    assert np.isnan(cloud[3, 5]).all()
    cloud[3, 5] = 4
    assert (cloud[..., 2] == 4).all()


def test_a_rectified_image_is_seen_through_p():
    c = geometry.rectified(camera("barrel"))
    assert np.array_equal(c.k, camera("barrel").p[:, :3])
    expected = np.linalg.inv(c.k) @ [17, 33, 1]
    assert geometry.rays(c)[33, 17] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    "bad, sentence",
    [
        (dict(model="fisheye62"), "distortion model 'fisheye62' is not known"),
        (dict(d=np.zeros(3)), "plumb_bob has 3 distortion coefficients; accepted are 0, 4, 5"),
        (dict(k=np.zeros((3, 3))), "not usable"),
        (dict(d=np.full(5, np.nan)), "not usable"),
    ],
)
def test_a_camera_that_cannot_be_used_is_named(bad, sentence):
    with pytest.raises(GeometryError, match=sentence):
        geometry.rays(dataclasses.replace(camera(), **bad))


def test_an_image_too_thin_for_the_output_is_refused_in_a_sentence():
    with pytest.raises(GeometryError, match="4000x1 pixels is too thin"):
        letterbox(1, 4000, 480, 640, 240, 320)


def test_the_pixel_under_another_is_the_one_that_exact_fractions_name():
    for count, size in [(640, 480), (480, 640), (97, 131), (131, 97), (80, 640), (1920, 640), (7, 7), (1, 9)]:
        exact = [int((i + Fraction(1, 2)) * size / count) for i in range(count)]
        assert geometry.pixels_under(count, size, size, count).tolist() == exact
