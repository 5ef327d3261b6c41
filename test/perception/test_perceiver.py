"""The whole core: its outputs are those of the models run by hand, whatever the batch and whoever watches."""

import dataclasses
import json
import threading

import cv2
import numpy as np
import pytest
import torch
from scenes import texture

from dino_perception.engines import Compiled
from dino_perception.models.checkpoints import CheckpointError, load_backbone
from dino_perception.models.heads.base import Head, HeadError, HeadSpec, load_head
from dino_perception.models.outputs import Output
from dino_perception.perception.frame import CameraModel, Frame
from dino_perception.perception.geometry import letterbox
from dino_perception.perception.perceiver import FrameError, Perceiver
from dino_perception.perception.preprocess import Preprocessor
from dino_perception.perception.settings import SettingError, Settings
from dino_perception.perception.tracks import Tracker

SMALL = {"input_height": 192, "input_width": 256, "output_height": 96, "output_width": 128}
NOISE = {"domain.check": False}
"""The pictures here are noise, of which the bundled heads say that it is none of theirs (test_doubt.py)."""
ALL = {"segmentation", "depth", "correspondences"}


def photo(height=480, width=640, seed=0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (height // 8, width // 8, 3), np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def frame(image: np.ndarray, camera="camera", stamp=0, model: CameraModel | None = None) -> Frame:
    return Frame(camera, stamp, "optical", image, model)


def calibrated(height=480, width=640, **other) -> CameraModel:
    return CameraModel(width, height, np.array([[500.0, 0, width / 2], [0, 500.0, height / 2], [0, 0, 1]]), **other)


def build(tmp_path, **settings) -> Perceiver:
    values = {"engine": "torch", **SMALL, **NOISE, **settings}
    return Perceiver(Settings.from_flat(values), cache=tmp_path / "engines", report=lambda line: None)


@pytest.fixture(scope="module")
def perceiver(tmp_path_factory):
    return build(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True)
def forget(request):
    if "perceiver" in request.fixturenames:
        request.getfixturevalue("perceiver").reset_tracks()


@pytest.mark.parametrize("size", [(480, 640), (360, 640), (640, 480), (192, 256)])
def test_outputs_are_those_of_the_models_run_by_hand(perceiver, size):
    image = photo(*size)
    percept = perceiver.perceive([frame(image)])[0]

    backbone = load_backbone("rover-tiny")
    box = letterbox(*size, 192, 256, 96, 128)
    pixels = Preprocessor(192, 256, [255 * m for m in backbone.spec.normalisation.mean])([image], [box])
    for kind in ("segmentation", "depth"):
        head = load_head(kind, backbone)
        with torch.inference_mode():
            out = head.at(96, 128)(*backbone.at(192, 256, head.spec.taps)(pixels))
        wanted = [t[0, : box.output_height, : box.output_width].numpy() for t in out]
        if kind == "segmentation":
            assert np.array_equal(percept.segmentation.mask, wanted[0])
            assert np.abs(percept.segmentation.confidence.astype(int) - wanted[1]).max() <= 1
        else:
            assert percept.depth.metres == pytest.approx(wanted[0], rel=1e-4)
    assert (
        (percept.output_height, percept.output_width) == percept.depth.metres.shape == percept.segmentation.mask.shape
    )
    assert percept.output_scale == box.output_scale


class Reusing(Compiled):
    """An engine that writes into the same memory each time, as the fast ones do."""

    def __init__(self, inner: Compiled):
        self.inner, self.info, self.device, self.signature = inner, inner.info, inner.device, inner.signature
        self.out = None

    def run(self, *inputs):
        out = self.inner.run(*inputs)
        self.out = self.out or tuple(torch.empty_like(t) for t in out)
        return tuple(kept.copy_(t) for kept, t in zip(self.out, out))


def test_percepts_own_their_memory(tmp_path):
    perceiver = build(tmp_path)
    for graphs in perceiver.graphs._all().values():
        graphs[1] = Reusing(graphs[1])
    wide = cv2.cvtColor(texture(480, 700), cv2.COLOR_GRAY2RGB)
    views = [frame(np.ascontiguousarray(wide[:, x : x + 640]), stamp=x) for x in (0, 9, 18)]
    alone = build(tmp_path)
    kept, fresh = [perceiver.perceive([f])[0] for f in views], [alone.perceive([f])[0] for f in views]
    for a, b in zip(kept, fresh):
        assert np.array_equal(a.segmentation.mask, b.segmentation.mask)
        assert np.array_equal(a.segmentation.confidence, b.segmentation.confidence)
        assert np.array_equal(a.depth.metres, b.depth.metres)
        assert np.array_equal(a.correspondences.score, b.correspondences.score), "the reference's descriptors, too"


def test_a_batch_gives_what_single_frames_give(perceiver):
    frames = [frame(photo(480, 640, 1), "front"), frame(photo(360, 640, 2), "rear"), frame(photo(640, 480, 3), "left")]
    together = perceiver.perceive(frames)
    for one, many in zip([perceiver.perceive([f])[0] for f in frames], together):
        assert one.frame is many.frame
        assert np.array_equal(one.segmentation.mask, many.segmentation.mask)
        assert np.array_equal(one.depth.metres, many.depth.metres)


def test_a_graph_of_several_frames_gives_what_single_frames_give(tmp_path):
    values = Settings.from_flat({"engine": "torch", **SMALL})
    batched = Perceiver(values, cache=tmp_path, report=lambda line: None, batch_sizes=(1, 3))
    frames = [frame(photo(480, 640, i), name) for i, name in enumerate(("front", "rear", "left", "right"))]
    wanted = [{"depth"}, {"depth", "segmentation"}, {"segmentation"}, {"depth"}]
    alone = [batched.perceive([f], [w])[0] for f, w in zip(frames, wanted)]
    for one, many, names in zip(alone, batched.perceive(frames, wanted), wanted):
        assert (many.depth is not None) == ("depth" in names) and (many.segmentation is not None) == (
            "segmentation" in names
        )
        if "depth" in names:
            assert many.depth.metres == pytest.approx(one.depth.metres, rel=1e-3)
        if "segmentation" in names:
            assert (many.segmentation.mask == one.segmentation.mask).mean() > 0.999
    assert batched.describe()["batch_sizes"] == [1, 3]


def test_only_wanted_heads_run_and_nothing_runs_for_nobody(perceiver):
    percept = perceiver.perceive([frame(photo())], [{"depth"}])[0]
    assert percept.depth is not None and percept.segmentation is None and percept.correspondences is None
    assert set(percept.stage_ms) == {"preprocess", "backbone", "depth", "copy"}
    nobody = perceiver.perceive([frame(photo())], [set()])[0]
    assert nobody.stage_ms == {} and nobody.depth is None
    everything = perceiver.perceive([frame(photo())])[0]
    assert set(everything.stage_ms) >= {"preprocess", "backbone", *ALL, "copy", "matching"}
    assert all(ms >= 0 for ms in everything.stage_ms.values())


@pytest.mark.parametrize("beside", [False, True], ids=["after the heads", "beside them, as where these run on a GPU"])
def test_what_needs_no_matches_is_told_before_points_are_matched(tmp_path, monkeypatch, beside):
    perceiver, go = build(tmp_path), threading.Event()
    if beside:
        perceiver._off_cpu = True
    match = Tracker.match

    def waiting(self, *arguments, **options):
        assert go.wait(30), "the dense outputs waited for the matches"
        return match(self, *arguments, **options)

    monkeypatch.setattr(Tracker, "match", waiting)
    (sight,) = perceiver.look([frame(photo())])
    first, pending = sight.percept, sight.pending
    go.set()
    percept = perceiver.complete(sight)
    assert pending == {"correspondences"}
    assert set(percept.stage_ms) == {"preprocess", "backbone", *ALL, "copy", "matching"}
    assert first.correspondences is None and percept.correspondences is not None
    assert first.depth is percept.depth and first.segmentation is percept.segmentation
    (sight,) = perceiver.look([frame(photo(), stamp=1)], [{"depth"}])
    assert not sight.pending and perceiver.complete(sight) is sight.percept, "nothing is matched"


def test_a_disabled_head_does_not_run_by_default(tmp_path):
    perceiver = build(tmp_path, heads=["segmentation", "depth"])
    perceiver.update(perceiver.settings.changed({"depth.enabled": False}))
    percept = perceiver.perceive([frame(photo())])[0]
    assert percept.depth is None and percept.segmentation is not None and percept.correspondences is None


def test_tracks_are_kept_per_camera_and_forgotten_on_demand(perceiver):
    wide = cv2.cvtColor(texture(480, 900, 4), cv2.COLOR_GRAY2RGB)

    def at(shift, camera, stamp):
        return frame(np.ascontiguousarray(wide[:, shift : shift + 640]), camera, stamp)

    perceiver.perceive([at(0, "front", 0), at(100, "rear", 0)])
    front, rear = perceiver.perceive([at(8, "front", 1), at(104, "rear", 1)])
    for percept, shift in ((front, 8), (rear, 4)):
        found = percept.correspondences
        assert len(found.x) > 300
        assert np.median(found.reference_x - found.x) == pytest.approx(shift, abs=0.02)
    perceiver.reset_tracks("front")
    front, rear = perceiver.perceive([at(16, "front", 2), at(108, "rear", 2)])
    assert len(front.correspondences.x) == 0 and len(rear.correspondences.x) > 300


def test_the_same_frames_give_the_same_bits(tmp_path):
    wide = photo(480, 700, 5)
    frames = [frame(np.ascontiguousarray(wide[:, 7 * i : 7 * i + 640]), stamp=i) for i in range(3)]

    def run():
        perceiver = build(tmp_path)
        return [perceiver.perceive([f])[0] for f in frames]

    for a, b in zip(run(), run()):
        assert a.segmentation.mask.tobytes() == b.segmentation.mask.tobytes()
        assert a.segmentation.confidence.tobytes() == b.segmentation.confidence.tobytes()
        assert a.depth.metres.tobytes() == b.depth.metres.tobytes()
        for field in dataclasses.fields(a.correspondences):
            x, y = getattr(a.correspondences, field.name), getattr(b.correspondences, field.name)
            assert x.tobytes() == y.tobytes() if isinstance(x, np.ndarray) else x == y


def test_the_output_camera_has_the_outputs_size(perceiver):
    percept = perceiver.perceive([frame(photo(360, 640), model=calibrated(360, 640))], [{"depth"}])[0]
    camera = percept.output_camera
    assert (camera.height, camera.width) == percept.depth.metres.shape == (72, 128)
    assert camera.k[0, 0] == pytest.approx(100) and camera.k[0, 2] == pytest.approx((320 + 0.5) / 5 - 0.5)
    assert percept.camera_problem == ""


@pytest.mark.parametrize(
    "model, sentence",
    [
        (None, "no camera_info"),
        (calibrated(720, 1280), "camera_info is for 1280x720 pixels and the image has 640x480"),
        (calibrated(model="fisheye62"), "distortion model 'fisheye62' is not known"),
    ],
)
def test_without_a_usable_camera_model_everything_but_points_is_there_and_the_reason_is_told(
    perceiver, model, sentence
):
    percept = perceiver.perceive([frame(photo(), model=model)])[0]
    assert percept.output_camera is None and sentence in percept.camera_problem
    assert percept.depth is not None and percept.segmentation is not None


def test_rectified_images_are_seen_through_p(tmp_path):
    perceiver = build(tmp_path, heads=["depth"], rectified=True)
    p = np.array([[450.0, 0, 330, 0], [0, 450, 235, 0], [0, 0, 1, 0]])
    camera = perceiver.perceive([frame(photo(), model=calibrated(d=np.full(5, 0.1), p=p))])[0].output_camera
    assert len(camera.d) == 0 and camera.k[0, 0] == pytest.approx(450 / 5)


@pytest.mark.parametrize("image", [np.zeros((480, 640), np.uint8), np.zeros((480, 640, 3), np.float32),
                                   np.zeros((0, 640, 3), np.uint8), np.zeros((1, 4000, 3), np.uint8)])  # fmt: skip
def test_an_image_that_cannot_be_looked_at_is_an_error_that_names_the_camera(perceiver, image):
    with pytest.raises(FrameError, match="camera 'rear'"):
        perceiver.perceive([frame(photo(), "front"), frame(image, "rear")])
    assert perceiver.perceive([frame(photo(), "front")])[0].depth is not None, "and the next frame is fine"


def test_live_settings_change_and_others_are_refused(perceiver):
    before = perceiver.settings
    perceiver.update(before.changed({"correspondences.max_matches": 77, "points.max_range": 9.0}))
    assert perceiver.settings.head["correspondences"].max_matches == 77
    with pytest.raises(SettingError, match="'input_height' takes effect only at configure time"):
        perceiver.update(before.changed({"input_height": 480}))
    perceiver.update(before)


@pytest.mark.parametrize(
    "settings, error, sentence",
    [
        ({"backbone": "dinov9"}, CheckpointError, "dinov9"),
        ({"weights": "/nowhere/weights.safetensors"}, CheckpointError, "/nowhere/weights.safetensors"),
        ({"heads": ["segmentation", "smell"]}, HeadError, "smell"),
        ({"heads": []}, SettingError, "'heads' is empty"),
        ({"depth.weights": "/nowhere/head.safetensors"}, HeadError, "/nowhere/head.safetensors"),
        ({"input_height": 200}, SettingError, "200x256.*192x256|208x256"),
    ],
)
def test_what_cannot_be_used_is_told_in_a_sentence(tmp_path, settings, error, sentence):
    with pytest.raises(error, match=sentence):
        build(tmp_path, **settings)


def test_the_description_is_plain_data(perceiver):
    described = json.loads(json.dumps(perceiver.describe()))
    assert described["engine"] == "torch" and described["backbone"] == "rover-tiny"
    assert described["input"] == [192, 256] and described["output"] == [96, 128]
    assert set(described["heads"]) == ALL
    assert described["parts"]["backbone"]["hash"] == load_backbone("rover-tiny").weights_hash
    assert described["trained"] == perceiver.trained == all(part["trained"] for part in described["parts"].values())


def test_labels_are_those_of_the_segmentation_head(perceiver):
    assert [(label.id, label.name) for label in perceiver.labels][:2] == [(0, "soil"), (1, "bedrock")]
    percept = perceiver.perceive([frame(photo())], [{"segmentation"}])[0]
    assert percept.segmentation.labels == perceiver.labels
    assert set(np.unique(percept.segmentation.mask)) <= {label.id for label in perceiver.labels}


def test_a_head_of_another_kind_needs_nothing_here(tmp_path, monkeypatch):
    class Warmth(Head):
        KIND = "warmth"
        OUTPUTS = (Output("metres", "metres"), Output("mean", "vector"))

        def forward(self, *features):
            return features[0].mean(dim=1, keepdim=True)

        def reduce(self, raw, height, width):
            return torch.nn.functional.interpolate(raw, (height, width))[:, 0], raw.mean(dim=(1, 2, 3))[:, None]

    def load(kind, backbone, weights="", **options):
        if kind != "warmth":
            return load_head(kind, backbone, weights, **options)
        spec = HeadSpec(
            kind, "mean", backbone.spec.id, backbone.weights_hash, (7,), (256,), backbone.spec.normalisation
        )
        return Warmth(spec).eval()

    monkeypatch.setattr("dino_perception.perception.perceiver.load_head", load)
    percept = build(tmp_path, heads=["depth", "warmth"], allow_untrained=True).perceive([frame(photo(360, 640))])[0]
    warmth = percept.answer("warmth")
    grid, vector = warmth["metres"], warmth["mean"]
    assert warmth is percept.others["warmth"] and percept.answers().keys() == {"depth", "warmth"}
    assert grid.shape == percept.depth.metres.shape == (72, 128) and vector.shape == (1,)


def test_a_closed_perceiver_has_freed_its_engines(tmp_path):
    perceiver = build(tmp_path, heads=["depth"])
    perceiver.close()
    for name in ("backbone", "depth"):
        with pytest.raises(KeyError):
            perceiver.graphs.graph(name)
    with pytest.raises(FrameError, match="camera 'camera': the perceiver is closed"):
        perceiver.perceive([frame(photo())])


def test_groups_are_told_instead_of_classes_where_asked(tmp_path):
    image = photo()
    plain, grouped = (
        build(tmp_path, heads=["segmentation"]),
        build(tmp_path, heads=["segmentation"], **{"segmentation.groups": True}),
    )
    mask, groups = (p.perceive([frame(image)])[0].segmentation for p in (plain, grouped))
    names = {label.id: label.name for label in groups.labels}
    meaning = {
        "soil": "traversable",
        "bedrock": "traversable",
        "sand": "traversable",
        "big_rock": "obstacle",
        "sky": "sky",
    }
    wanted = np.vectorize(lambda i: meaning[mask.labels[i].name])(mask.mask)
    assert np.array_equal(np.vectorize(names.get)(groups.mask), wanted)
    assert [label.name for label in grouped.labels][:3] == ["unknown", "traversable", "obstacle"]
