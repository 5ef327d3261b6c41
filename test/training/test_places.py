"""`places`: a vocabulary from a drive, where a drive comes back, and how that is judged."""

import json
import struct
import zlib

import numpy as np
import pytest
from test_commands import run

from dino_perception.bags.storage.topic import Record, Topic
from dino_perception.bags.storage.writer import BagWriter
from dino_perception.measuring.place_recall import recall
from dino_perception.messages.percepts import global_descriptor, image
from dino_perception.messages.types import RosbagsTypes
from dino_perception.models.checkpoints import load_backbone
from dino_perception.models.heads import load_head
from dino_perception.training.places import revisits, threshold

SMALL = ("--input", "96x128", "--engine", "torch", "--threads", 1)


def scene(number):
    """A picture of large blocks, another one for each number."""
    blocks = np.random.default_rng(number).integers(0, 255, (6, 8, 3), np.uint8)
    return blocks.repeat(16, 0).repeat(16, 1)


@pytest.fixture(scope="module")
def loop(tmp_path_factory):
    """Twelve places a second apart, and then the third to the fifth once more, in other light."""
    path, types = tmp_path_factory.mktemp("loop") / "loop.mcap", RosbagsTypes()
    writer = BagWriter(path)
    for at, number in enumerate([*range(12), 2, 3, 4]):
        pixels = scene(number) if at < 12 else (scene(number) * 0.85 + 10).astype(np.uint8)
        stamp = 10**18 + at * 10**9
        message = image(types, types.header(stamp, "camera"), pixels, "rgb8")
        record = Record(Topic("/camera/image_raw", "sensor_msgs/msg/Image"), stamp, bytes(types.serialize(message)))
        writer.write([record])
    writer.close()
    return path


@pytest.mark.parametrize("fitted", [False, True])
def test_a_return_is_found_with_and_without_a_vocabulary(fitted, loop, tmp_path, capsys):
    more = ["--cache", tmp_path / "cache", *SMALL]
    if fitted:
        out = tmp_path / "vocabulary.safetensors"
        assert run("places", "fit", loop, "--out", out, *more) == 0
        head = load_head("place", load_backbone("rover-tiny"), out)
        assert head.trained and head.spec.arch == "vlad" and head.spec.options["size"] == 14
        more += ["--vocabulary", out]
    assert run("places", "match", loop, "--apart", 5, "--json", tmp_path / "m.json", *more) == 0
    (first, *_) = json.loads((tmp_path / "m.json").read_text())["revisits"]
    assert (first["begin"], first["end"], first["frames"]) == (12, 14, 3) and first["at"] - first["earlier_at"] == 10
    assert "12.0 to 14.0" in capsys.readouterr().out


def test_too_short_a_drive_is_a_sentence(loop, tmp_path, capsys):
    assert run("places", "match", loop, "--apart", 60, "--cache", tmp_path, *SMALL) == 1
    assert "lasts no longer than 60 s" in capsys.readouterr().err


def test_neighbours_make_one_return_and_the_best_comes_first():
    angle = np.array([0, 0.5, 1.0, 1.5])
    earlier = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    later = np.stack([np.cos(angle[[1, 2, 3, 0]] + 0.01), np.sin(angle[[1, 2, 3, 0]] + 0.01)], axis=1)
    times = np.arange(4.0)
    found = revisits(earlier, times, later, times, 0.99)
    assert [(r.begin, r.end, r.frames) for r in found] == [(0, 2, 3), (3, 3, 1)]
    assert found[0].cosine == pytest.approx(np.cos(0.01))
    assert revisits(earlier, times, earlier, times, 0.5, apart=1.5) == [] or all(
        r.at - r.earlier_at > 1.5 for r in revisits(earlier, times, earlier, times, 0.5, apart=1.5)
    )
    assert np.isnan(threshold(earlier, times, 60)) and threshold(earlier, times, 2.5) == pytest.approx(
        np.cos(1.5)
    )  # of one pair


def test_recall_counts_frames_that_have_a_partner():
    known = np.eye(4)
    asked = np.array([[1, 0.5, 0, 0], [0.5, 1, 0.4, 0], [0, 0, 0, 1.0]])
    right = np.array([[1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]], bool)
    assert recall(known, asked, right, (1, 2, 3)) == {1: 0.5, 2: 0.5, 3: 1.0}


def test_rtabmap_gets_a_row_of_floats_as_it_compresses_them():
    types = RosbagsTypes()
    vector = np.linspace(-1, 1, 5, dtype=np.float32)
    message = global_descriptor(types, types.header(7, "camera"), vector)
    data = bytes(message.data)
    assert message.type == 1 and struct.unpack("<3i", data[-12:]) == (1, 5, 5)
    assert np.array_equal(np.frombuffer(zlib.decompress(data[:-12]), "<f4"), vector)
    assert types.deserialize(types.serialize(message), "rtabmap_msgs/msg/GlobalDescriptor").type == 1
