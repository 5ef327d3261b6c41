"""The picture of the features: principal components as numpy finds them, in a basis that stays."""

import json

import numpy as np
import pytest

from dino_perception.models.checkpoints import load_backbone
from dino_perception.models.heads import create_head
from dino_perception.models.outputs import Output
from dino_perception.perception import drawing
from dino_perception.perception.feature_colours import COMPONENTS, FRAMES, Covariance, FeatureColours, packed_basis
from dino_perception.perception.frame import Answer, Frame, Percept
from dino_perception.perception.settings import SettingError, Settings

SETTINGS = Settings.from_flat(
    {"heads": ["features"], "input_height": 64, "input_width": 96, "output_height": 32, "output_width": 48}
)


def feature_map(seed, channels=12, rows=4, columns=6):
    """A map whose channels vary unequally, around a mean that is not zero."""
    random = np.random.default_rng(seed)
    spread = np.linspace(3, 0.2, channels)[:, None, None]
    return (random.normal(0, 1, (channels, rows, columns)) * spread + 2).astype(np.float32)


def percept(features, camera="camera", height=128, width=192):
    answer = Answer({"map": features}, (Output("map", "features"),))
    image = np.zeros((height, width, 3), np.uint8)
    return Percept(Frame(camera, 0, "optical", image), 32, 48, others={"features": answer})


def components(colours, features, **more):
    return colours.coloured(percept(features, **more), SETTINGS).others["features"].arrays[COMPONENTS]


def test_the_components_are_those_of_the_singular_values():
    features = feature_map(0)
    seen = Covariance()
    seen.add(features)
    got = seen.basis().project(features).reshape(3, -1)
    centred = features.reshape(12, -1).T.astype(np.float64)
    centred -= centred.mean(axis=0)
    left, _, _ = np.linalg.svd(centred, full_matrices=False)
    for own, wanted in zip(got, left.T):
        whitened = wanted * np.sqrt(len(centred))
        assert np.abs(own - np.sign(own @ whitened) * whitened).max() < 1e-3
    assert np.allclose(got.var(axis=1), 1, atol=1e-3)


def test_a_picture_without_variance_is_grey():
    seen = Covariance()
    seen.add(np.ones((12, 4, 6), np.float32))
    assert not seen.basis().project(np.ones((12, 4, 6), np.float32)).any()


def test_the_basis_settles_and_then_stays():
    colours, probe = FeatureColours(SETTINGS, None), feature_map(99)
    whole = Covariance()
    for number in range(FRAMES):
        components(colours, feature_map(number))
        whole.add(feature_map(number))
    settled = components(colours, probe)
    sign = np.sign((settled * whole.basis().project(probe)).sum(axis=(1, 2)))
    assert np.allclose(settled, sign[:, None, None] * whole.basis().project(probe), atol=1e-5)
    components(colours, 100 * feature_map(5))
    assert np.array_equal(components(colours, probe), settled)
    other = components(colours, feature_map(50), camera="rear")
    assert np.allclose(other.var(axis=(1, 2)), 1, atol=1e-3), "every camera has its own"


def test_signs_do_not_turn_when_the_basis_settles():
    colours, probe = FeatureColours(SETTINGS, None), feature_map(0)
    first = components(colours, probe)
    for number in range(1, FRAMES):
        components(colours, feature_map(0) + 0.05 * feature_map(number))
    assert ((first * components(colours, probe)).sum(axis=(1, 2)) > 0).all()


def test_padding_is_not_fitted_on():
    features = feature_map(3)
    features[:, :, 3:] += 100  # an image of 128x96 fills the left half of the input
    got = components(FeatureColours(SETTINGS, None), features, width=96)
    assert np.allclose(got[:, :, :3].var(axis=(1, 2)), 1, atol=1e-3)


def test_what_is_remembered_goes_on_the_same():
    colours, again = FeatureColours(SETTINGS, None), FeatureColours(SETTINGS, None)
    for number in range(FRAMES + 2):
        again.recall(json.loads(json.dumps(colours.memory())))
        wanted = components(colours, feature_map(number))
        assert np.array_equal(components(again, feature_map(number)), wanted)


def test_the_picture_shows_each_patch_where_it_lies():
    features = feature_map(1)
    colours = FeatureColours(SETTINGS, None)
    seen = colours.coloured(percept(features, height=1280, width=1920), SETTINGS)
    picture = drawing.overlay(seen, "features", SETTINGS)
    assert picture.shape == (427, 640, 3) and picture.dtype == np.uint8
    wanted = 255 / (1 + np.exp(-2 * seen.others["features"].arrays[COMPONENTS]))
    for row in range(4):
        for column in range(6):  # an image pixel is 1/320 of a patch, a picture's 3 times as much
            y, x = round((row + 0.5) * 427 / 4 - 0.5), round((column + 0.5) * 640 / 6 - 0.5)
            assert np.abs(picture[y, x] - wanted[:, row, column]).max() < 6
    alone = drawing.overlay(percept(features, height=1280, width=1920), "features", SETTINGS)
    assert np.abs(alone.astype(int) - picture).max() <= 1, "without an intake, of the frame itself"


def test_a_basis_comes_from_a_file_that_must_fit(tmp_path):
    spec = create_head("features", load_backbone("rover-tiny")).spec
    width = spec.channels[0]
    seen = Covariance()
    seen.add(feature_map(7, channels=width))
    path = tmp_path / "basis.safetensors"
    path.write_bytes(packed_basis(seen.basis(), spec))
    settings = SETTINGS.changed({"features.basis": str(path)})
    perceiver = type("Loaded", (), {"specs": {"features": spec}})
    colours, features = FeatureColours(settings, perceiver), feature_map(8, channels=width)
    assert np.allclose(components(colours, features), seen.basis().project(features))
    perceiver.specs = {"features": create_head("features", load_backbone("rover-tiny"), taps=[3]).spec}
    with pytest.raises(SettingError, match="'features.basis'.*made for layer"):
        FeatureColours(settings, perceiver)
    path.write_bytes(b"not a basis")
    with pytest.raises(SettingError, match="'features.basis'"):
        FeatureColours(settings, perceiver)
