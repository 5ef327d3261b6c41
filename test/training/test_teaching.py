"""`teach` as a user types it: a head from a few examples, which the perception loads like any other."""

import cv2
import numpy as np
import pytest
import torch
from small_data import SIZE, picture, striped
from test_commands import run

from dino_perception.bags.storage.topic import Record, Topic
from dino_perception.bags.storage.writer import BagWriter
from dino_perception.messages.percepts import image
from dino_perception.messages.types import RosbagsTypes
from dino_perception.models.checkpoints import load_backbone
from dino_perception.models.heads import load_head
from dino_perception.perception.frame import Frame
from dino_perception.perception.perceiver import Perceiver
from dino_perception.perception.settings import Settings
from dino_perception.perception.teacher import Region, TeachError
from dino_perception.training.teaching import patches

SMALL = ("--input", "96x128", "--engine", "torch", "--threads", 1)


@pytest.fixture(scope="module")
def drive(tmp_path_factory):
    """A recording of four striped pictures, half a second apart."""
    path, types = tmp_path_factory.mktemp("drive") / "drive.mcap", RosbagsTypes()
    writer = BagWriter(path)
    for number in range(4):
        stamp = 10**18 + number * 500_000_000
        message = image(types, types.header(stamp, "camera"), striped(number)[0], "rgb8")
        record = Record(Topic("/camera/image_raw", "sensor_msgs/msg/Image"), stamp, bytes(types.serialize(message)))
        writer.write([record])
    writer.close()
    return path


def taught(tmp_path, *arguments):
    out = tmp_path / "taught.safetensors"
    assert run("teach", *arguments, "--out", out, "--cache", tmp_path / "cache", *SMALL) == 0
    return out


def perceiver(weights, **more):
    settings = {
        "heads": ["segmentation"], "segmentation.weights": str(weights), "engine": "torch", "precision": "float32",
        "threads": 1, "input_height": 96, "input_width": 128, "output_height": 48, "output_width": 64,
        "domain.check": False, **more,
    }  # fmt: skip
    return Perceiver(Settings.from_flat(settings), report=lambda line: None)


def right(perception, seeds):
    """The share of pixels of new striped pictures that the head tells right."""
    shares = []
    for seed in seeds:
        picture, mask = striped(seed)
        said = perception.perceive([Frame("camera", 0, "camera", picture)])[0].segmentation.mask
        shares.append((said == cv2.resize(mask, said.shape[::-1], interpolation=cv2.INTER_NEAREST)).mean())
    return float(np.mean(shares))


def test_a_folder_of_labelled_pictures_teaches_its_classes(labelled, tmp_path, capsys):
    out = taught(tmp_path, "--data", labelled, "--limit", 3, "--json", tmp_path / "t.json")
    assert "ground" in capsys.readouterr().out and (tmp_path / "t.json").exists()
    head = load_head("segmentation", load_backbone("rover-tiny"), out)
    assert head.trained and [label.name for label in head.spec.labels] == ["sky", "ground"]
    assert head.spec.training["by"] == "teach" and head.spec.training["frames"] == 3
    seen = perceiver(out)
    assert right(seen, range(20, 24)) > 0.85
    seen.close()


@pytest.mark.parametrize("way", ["mask", "box", "points"])
def test_one_class_is_shown_in_one_frame_of_a_recording(way, drive, tmp_path):
    mask = striped(1)[1]
    top = int(mask[:, 0].argmax())
    region = {
        "mask": [picture(tmp_path / "mask.png", mask * 255)],
        "box": [f"0,{top},{SIZE[1]},{SIZE[0]}"],
        "points": [f"{x},{top + 12}" for x in (10, 50)],
    }[way]
    out = taught(tmp_path, "--bag", drive, "--frame", 0.6, "--name", "ground", f"--{way}", *region)
    head = load_head("segmentation", load_backbone("rover-tiny"), out)
    assert [label.name for label in head.spec.labels] == ["background", "ground"]
    seen = perceiver(out)
    assert right(seen, range(20, 24)) > 0.75
    seen.close()


@pytest.mark.parametrize(
    "arguments, said",
    [
        (("--frame", 0.5), "are for frames of a --bag"),
        (("--bag", "DRIVE", "--frame", 0.5, "--name", "x"), "with one of --mask, --box and --points"),
        (("--bag", "DRIVE", "--frame", 0.5, "--box", "1,1,9,9"), "--name"),
        (("--bag", "DRIVE", "--frame", 50, "--name", "x", "--box", "1,1,9,9"), "no frame within a second of 50 s"),
        (("--bag", "DRIVE", "--frame", 0, "--name", "x", "--box", "1,1,9,900"), "not within the frame of 64x48"),
        (("--bag", "DRIVE", "--frame", 0, 1, "--name", "x", "--box", "1,1,9,9"), "2 frames and 1 regions"),
    ],
)
def test_what_cannot_be_shown_is_a_sentence(arguments, said, drive, tmp_path, capsys):
    arguments = [drive if a == "DRIVE" else a for a in arguments]
    assert run("teach", *arguments, "--out", tmp_path / "x.safetensors", *SMALL) == 1
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_patches_count_where_they_are_pure_and_the_best_where_none_is():
    features = torch.arange(6.0).reshape(1, 2, 3)
    truth = np.zeros((8, 12), np.uint8)
    truth[:4, :4] = 1  # all of the first patch
    truth[4:6, 8:10] = 2  # a quarter of the last
    assert [v.ravel().tolist() for v in patches(features, truth, 4)] == [[1, 2, 3, 4], [0], [5], []]


def test_a_running_perceiver_learns_for_its_next_frame(tmp_path):
    """From nothing, by what the service does; and one engine serves whatever is taught."""
    seen = perceiver(taught(tmp_path))
    frame, mask = Frame("camera", 0, "camera", striped(1)[0]), striped(1)[1]
    top = int(mask[:, 0].argmax())
    before = seen.perceive([frame])[0].segmentation
    assert [label.name for label in before.labels] == ["background"] and before.confidence.max() < 64
    seen.teach(frame, Region(box=(0, top, SIZE[1], SIZE[0])), "ground")
    after = seen.perceive([frame])[0].segmentation
    assert [label.name for label in after.labels] == ["background", "ground"] and right(seen, range(20, 24)) > 0.75
    seen.teach(frame, Region(points=[(30, 4)]), "sky")
    assert [label.name for label in seen.labels] == ["background", "ground", "sky"]
    said = seen.perceive([frame])[0].segmentation.mask
    assert (said[2] == 2).mean() > 0.8 and (said[-2] == 1).mean() > 0.8, "what was learnt before stays"
    for name, region in (("background", Region(box=(0, 0, 9, 9))), ("x", Region(box=(0, 0, 900, 9))), ("x", Region())):
        with pytest.raises(TeachError):
            seen.teach(frame, region, name)
    assert np.array_equal(seen.perceive([frame])[0].segmentation.mask, said)
    seen.close()
    usual = perceiver("")
    with pytest.raises(TeachError, match="dino-perception teach"):
        usual.teach(frame, Region(box=(0, 0, 9, 9)), "x")
    usual.close()
