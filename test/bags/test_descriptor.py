"""A head that only declares what it gives is checked, kept, published, drawn, reported and compared like any other."""

import numpy as np
import pytest
import recorded
import torch
from recorded import contents, decoded, drive, record

from dino_perception.bags.compare import compare, parse_tolerances
from dino_perception.bags.farm import Farm, Looker
from dino_perception.bags.job import Job, run
from dino_perception.bags.storage.reader import BagReader
from dino_perception.bags.storage.topic import Record
from dino_perception.bags.storage.writer import BagWriter
from dino_perception.engines.parity import summary
from dino_perception.models.checkpoints import load_backbone
from dino_perception.perception.geometry import image_shares, letterbox
from dino_perception.perception.perceiver import Perceiver
from dino_perception.perception.preprocess import Preprocessor
from dino_perception.perception.settings import Settings

TOPIC = "/dino_perception/descriptor"
SETTINGS = Settings.from_flat(
    {**{p.name: p.value for p in recorded.SETTINGS.parameters()}, "heads": ["depth", "descriptor"], "engine": "auto"}
)
INPUT = (SETTINGS.input_height, SETTINGS.input_width)


@pytest.fixture(scope="module")
def perceiver():
    perceiver = Perceiver(SETTINGS, report=lambda line: None)
    yield perceiver
    perceiver.close()


@pytest.fixture(scope="module")
def replayed(tmp_path_factory, perceiver):
    folder = tmp_path_factory.mktemp("descriptor")
    source = record(folder / "in", drive(4))
    job = Job(source, folder / "out.mcap", SETTINGS, overlays=True, report=folder / "report")
    assert run(job, lambda: perceiver).code == 0
    return folder


def test_it_is_the_mean_of_the_last_layer_at_unit_length(replayed):
    messages = decoded(replayed / "out.mcap", TOPIC)
    backbone = load_backbone("rover-tiny")
    for number, message in enumerate(messages):
        image = recorded.picture(number)
        box = letterbox(*image.shape[:2], *INPUT, SETTINGS.output_height, SETTINGS.output_width)
        pixels = Preprocessor(*INPUT, [255 * m for m in backbone.spec.normalisation.mean])([image], [box])
        with torch.inference_mode():
            (last,) = backbone.at(*INPUT, taps=[backbone.spec.depth - 1])(pixels)
        share = torch.from_numpy(image_shares(box, *last.shape[2:]))
        by_hand = torch.nn.functional.normalize((last[0] * share).sum(dim=(1, 2)), dim=0).numpy()
        assert np.linalg.norm(message.vector) == pytest.approx(1, abs=1e-5)
        assert message.vector @ by_hand > 0.999
        assert message.model == f"rover-tiny {backbone.weights_hash} descriptor mean"
        assert message.header.frame_id and message.header.stamp.sec == recorded.START // 10**9
    assert len(messages) == 4 and messages[0].vector @ messages[3].vector > 0.5


def test_its_engine_is_judged_as_a_vector(perceiver):
    parity = perceiver.describe()["parity"]["descriptor"]
    if parity is not None:  # float32 torch is the reference itself
        assert [output["kind"] for output in parity["outputs"]] == ["vector"] and "cosine" in summary(parity)


def test_it_is_drawn_and_reported(replayed):
    pictures = decoded(replayed / "out.mcap", f"{TOPIC}/overlay")
    assert len(pictures) == 4 and all(picture.encoding == "rgb8" for picture in pictures)
    drawn = np.asarray(pictures[0].data).reshape(pictures[0].height, pictures[0].width, 3).astype(int)
    changed = np.abs(drawn - recorded.picture(0)).mean(axis=(1, 2)) > 15
    assert changed[-drawn.shape[0] // 4 :].all() and not changed[: drawn.shape[0] // 2].any(), "a plate below"
    assert "descriptor, vector: cosine with the frame before" in (replayed / "report" / "index.html").read_text()


def test_it_is_compared_by_its_angle(replayed, tmp_path):
    turned = BagWriter(tmp_path / "turned.mcap")
    with BagReader(replayed / "out.mcap") as bag:
        for entry in bag.messages():
            if entry.topic.name == TOPIC:
                message = bag.decode(entry)
                vector = np.array(message.vector)
                across = np.zeros_like(vector)
                across[0], across[1] = -vector[1], vector[0]
                across *= 0.75 / np.linalg.norm(across)  # 3-4-5: the cosine becomes 0.8
                object.__setattr__(message, "vector", (vector + across).astype(np.float32))
                entry = Record(entry.topic, entry.time_ns, bag.types.serialize(message))
            turned.write([entry])
    turned.close()
    (found,) = [d for d in compare(replayed / "out.mcap", tmp_path / "turned.mcap", parse_tolerances([])) if d.over]
    assert (found.topic, found.kind) == (TOPIC, "vector") and found.worst["angle"] == pytest.approx(0.2, abs=1e-4)
    loose = compare(replayed / "out.mcap", tmp_path / "turned.mcap", parse_tolerances(["vector=0.21"]))
    assert all(difference.passes for difference in loose)


def test_a_farm_gives_the_same_bytes(replayed, perceiver, monkeypatch, tmp_path):
    """With its worker in this process: what the worker's percepts hold is passed on, whatever the head."""

    class Here:
        count = 1

        def __init__(self):
            self._looker = Looker(SETTINGS)
            self.about, self.close = self._looker.about, lambda: None

        def submit(self, frames):
            percepts = self._looker.look(frames)
            return type("Done", (), {"result": lambda _: percepts})()

    job = Job(replayed / "in", tmp_path / "out.mcap", SETTINGS, overlays=True)
    assert run(job, lambda: Farm(SETTINGS, Here())).code == 0
    assert contents(tmp_path / "out.mcap") == contents(replayed / "out.mcap")
