"""Depth scaled by the lens or by the camera's height: closed forms on planes, off by default, refused where it cannot be."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from dino_perception.perception import geometry
from dino_perception.perception.depth_scale import DepthScale, check_scaling
from dino_perception.perception.frame import CameraModel, Depth, Frame, Label, Percept, Segmentation
from dino_perception.perception.settings import SettingError, Settings

HEIGHT = 1.2
OFF = Settings.from_flat({})
BY_LENS = Settings.from_flat({"depth.focal_length_scaling": 700.0})
BY_HEIGHT = Settings.from_flat({"depth.camera_height_scaling": True, "camera_height": HEIGHT})

BY_TF = BY_HEIGHT.changed({"camera_height": 0.0})


def percept(error: float = 1.0, stamp_ns: int = 0, camera: bool = True) -> Percept:
    """Level ground seen from 1.2 m, its depth `error` times what it is: y = 1.2 at every ray, so z = 1.2 / ray's y."""
    image = np.zeros((720, 1280, 3), np.uint8)
    k = np.array([[900.0, 0, 639.5], [0, 900.0, 200.0], [0, 0, 1]])
    model = CameraModel(1280, 720, k)
    box = geometry.letterbox(720, 1280, 480, 640, 240, 320)
    out = box.output_camera(model)
    with np.errstate(divide="ignore"):
        z = HEIGHT / geometry.rays(out)[..., 1]
    depth = np.where(z > 0, error * z, np.nan).astype(np.float32)
    mask = np.zeros(depth.shape, np.uint8)
    return Percept(
        Frame("camera", stamp_ns, "optical", image, model), *depth.shape, out if camera else None,
        Segmentation(mask, mask, (Label(0, "soil", (1, 2, 3)),)), Depth(depth), output_scale=box.output_scale,
    )  # fmt: skip


def test_nothing_is_scaled_unless_asked() -> None:
    seen = percept(1.4)
    assert DepthScale().scaled(seen, OFF) is seen


def test_depth_grows_with_the_focal_length_at_the_heads_input() -> None:
    """1280 pixels become 640, so 900 pixels of focal length are 450; learnt at 700, depth is 450 / 700 of what is said."""
    seen = percept()
    scaled = DepthScale().scaled(seen, BY_LENS)
    np.testing.assert_allclose(scaled.depth.metres, seen.depth.metres * 450 / 700, rtol=1e-6)


def test_without_a_lens_that_is_known_there_are_no_metres() -> None:
    assert np.isnan(DepthScale().scaled(percept(camera=False), BY_LENS).depth.metres).all()


@pytest.mark.parametrize("error", [0.7, 1.0, 1.6])
def test_depth_is_scaled_to_the_height_of_the_camera(error: float) -> None:
    scale, truth = DepthScale(), percept().depth.metres
    for i in range(6):
        seen = percept(error, i * 10**9)
        scaled = scale.scaled(seen, BY_HEIGHT)
        assert i >= 4 or scaled is seen  # one view is not believed
    np.testing.assert_allclose(scaled.depth.metres, truth, rtol=1e-4)
    assert scale.scale("camera") == pytest.approx(1 / error, rel=1e-4) and scale.health("camera").startswith(
        "spread 0%"
    )


def test_a_few_wrong_planes_and_impossible_ones_move_nothing() -> None:
    scale = DepthScale()
    errors = [1.25] * 7 + [0.8, 1.9, 1.25, 1.25] + [0.4] * 6
    for i, error in enumerate(errors):
        scale.scaled(percept(error, i * 10**9), BY_HEIGHT)
    assert scale.scale("camera") == pytest.approx(0.8, rel=1e-4)
    assert "the last 6 heights are off by more than 2 times" in scale.health("camera")


def test_frames_of_one_moment_count_once() -> None:
    scale = DepthScale()
    for i in range(20):
        scale.scaled(percept(1.25, i * 10**7), BY_HEIGHT)
    assert scale.scale("camera") is None and "1 of 5 views" in scale.health("camera")


def test_a_stamp_that_goes_back_begins_anew() -> None:
    """A bag that starts again, or another one: what it learnt of the drive before may be of another rig."""
    scale = DepthScale()
    for i in range(6):
        scale.scaled(percept(1.25, (100 + i) * 10**9), BY_HEIGHT)
    assert scale.scale("camera") == pytest.approx(0.8, rel=1e-4)
    seen = percept(0.9, 10**9)
    assert scale.scaled(seen, BY_HEIGHT) is seen and "1 of 5 views" in scale.health("camera")
    for i in range(2, 7):
        scale.scaled(percept(0.9, i * 10**9), BY_HEIGHT)
    assert scale.scale("camera") == pytest.approx(1 / 0.9, rel=1e-4)


def test_a_height_that_something_else_knows_is_taken_and_the_parameter_wins() -> None:
    by_tf, both, none = DepthScale(), DepthScale(), DepthScale()
    for i in range(6):
        by_tf.scaled(percept(1.25, i * 10**9), BY_TF, HEIGHT)
        both.scaled(percept(1.25, i * 10**9), BY_HEIGHT, 2 * HEIGHT)
        seen = percept(1.25, i * 10**9)
        assert none.scaled(seen, BY_TF, None) is seen
    assert by_tf.scale("camera") == both.scale("camera") == pytest.approx(0.8, rel=1e-4)
    assert none.scale("camera") is None and "the camera's height is not known" in none.health("camera")


def test_it_goes_on_where_it_stopped() -> None:
    whole, first, second = DepthScale(), DepthScale(), DepthScale()
    frames = [percept(1 + 0.02 * i, i * 10**9) for i in range(8)]
    wanted = [whole.scaled(frame, BY_HEIGHT).depth.metres for frame in frames]
    for frame in frames[:5]:
        first.scaled(frame, BY_HEIGHT)
    second.recall(json.loads(json.dumps(first.memory())))
    for frame, metres in zip(frames[5:], wanted[5:]):
        np.testing.assert_array_equal(second.scaled(frame, BY_HEIGHT).depth.metres, metres)


@pytest.mark.parametrize(
    "values, sentence",
    [
        ({"camera_height": 0.0, "ground_frame": ""}, "'camera_height' is 0; set it to the height"),
        ({"depth.focal_length_scaling": 500.0}, "set one of them"),
    ],
)
def test_what_cannot_be_scaled_is_refused_with_a_sentence(values, sentence: str) -> None:
    with pytest.raises(SettingError, match=sentence):
        check_scaling(BY_HEIGHT.changed(values))
    with pytest.raises(SettingError, match="it needs segmentation"):
        check_scaling(dataclasses.replace(BY_HEIGHT, heads=["depth"]))
    check_scaling(BY_HEIGHT)
    check_scaling(BY_TF)
    check_scaling(BY_LENS)
