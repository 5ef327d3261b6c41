"""Detections through a replay: what the graph gives is what is published, drawn, reported and compared."""

from dataclasses import replace

import numpy as np
import pytest
import recorded
import torch
from recorded import decoded, drive, record

from dino_perception.bags.compare import compare, parse_tolerances
from dino_perception.bags.job import Job, run
from dino_perception.bags.storage.reader import BagReader
from dino_perception.bags.storage.topic import Record
from dino_perception.bags.storage.writer import BagWriter
from dino_perception.models.checkpoints import load_backbone
from dino_perception.models.heads import create_head, save_head
from dino_perception.models.label_sets import Label
from dino_perception.perception.geometry import letterbox
from dino_perception.perception.perceiver import Perceiver
from dino_perception.perception.preprocess import Preprocessor
from dino_perception.perception.settings import Settings

NODE = "/dino_perception/"
LABELS = (Label(0, "rock", (204, 121, 167)), Label(1, "stick", (0, 158, 115)))


@pytest.fixture(scope="module")
def head():
    """A random one, which sees boxes everywhere."""
    backbone = load_backbone("rover-tiny")
    head = create_head("detection", backbone, labels=LABELS, candidates=60, least=0.5)
    head.spec = replace(head.spec, training={"data": "nothing"})
    return head


@pytest.fixture(scope="module")
def replayed(tmp_path_factory, head):
    folder = tmp_path_factory.mktemp("detection")
    save_head(head, folder / "head.safetensors")
    values = {p.name: p.value for p in recorded.SETTINGS.parameters()}
    settings = Settings.from_flat(
        {**values, "heads": ["depth", "detection"], "detection.weights": str(folder / "head.safetensors")}
    )
    source = record(folder / "in", drive(3))
    job = Job(source, folder / "out.mcap", settings, overlays=True, report=folder / "report")
    assert run(job, lambda: Perceiver(settings, report=lambda line: None)).code == 0
    return folder


def test_the_boxes_are_those_of_the_graph_in_pixels_of_the_image(replayed, head):
    messages = decoded(replayed / "out.mcap", f"{NODE}detections")
    assert len(messages) == 3
    s, backbone = recorded.SETTINGS, load_backbone("rover-tiny")
    for number, message in enumerate(messages):
        image = recorded.picture(number)
        box = letterbox(*image.shape[:2], s.input_height, s.input_width, s.output_height, s.output_width)
        pixels = Preprocessor(s.input_height, s.input_width, [255 * m for m in backbone.spec.normalisation.mean])(
            [image], [box]
        )
        with torch.inference_mode():
            maps = backbone.at(s.input_height, s.input_width, head.spec.taps)(pixels)
            rows = head.at(8, 8)(*maps)[0][0].numpy()
        rows = rows[rows[:, 4] >= 0.5]
        enlarged = [image.shape[1] / box.content_width, image.shape[0] / box.content_height] * 2
        corners = (rows[:, :4] + 0.5) * enlarged - 0.5
        corners = np.clip(corners, -0.5, [image.shape[1] - 0.5, image.shape[0] - 0.5] * 2)
        own = np.array([[b.bbox.center.position.x, b.bbox.center.position.y, b.bbox.size_x, b.bbox.size_y]
                        for b in message.detections])  # fmt: skip
        wanted = np.concatenate([(corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]], axis=1)
        wanted, rows = wanted[(wanted[:, 2:] > 0).all(axis=1)], rows[(wanted[:, 2:] > 0).all(axis=1)]
        np.testing.assert_allclose(own, wanted, atol=0.02)
        said = [d.results[0].hypothesis for d in message.detections]
        assert [h.class_id for h in said] == [LABELS[int(n)].name for n in rows[:, 5]] and len(said) > 3
        assert [h.score for h in said] == pytest.approx(rows[:, 4].tolist(), abs=1e-4)
        assert message.header.frame_id and message.header.stamp.sec == recorded.START // 10**9


def test_in_space_they_lie_where_the_cloud_lies(replayed):
    clouds = decoded(replayed / "out.mcap", f"{NODE}points")
    found = decoded(replayed / "out.mcap", f"{NODE}detections_3d")
    assert len(found) == 3 and sum(len(m.detections) for m in found) > 5
    for cloud, message in zip(clouds, found):
        points = np.frombuffer(cloud.data, np.float32).reshape(-1, cloud.point_step // 4)[:, :3]
        points = points[np.isfinite(points).all(axis=1)]
        for each in message.detections:
            at = each.bbox.center.position
            assert points[:, 2].min() <= at.z <= points[:, 2].max()
            assert np.linalg.norm(points - [at.x, at.y, at.z], axis=1).min() < 0.5 * at.z
            assert min(each.bbox.size.x, each.bbox.size.y, each.bbox.size.z) >= 0


def test_they_are_drawn_annotated_and_reported(replayed):
    pictures = decoded(replayed / "out.mcap", f"{NODE}detections/overlay")
    boxes = decoded(replayed / "out.mcap", f"{NODE}detections")
    notes = decoded(replayed / "out.mcap", f"{NODE}detections/annotations")
    assert [len(n.points) for n in notes] == [len(b.detections) for b in boxes]
    drawn = np.asarray(pictures[0].data).reshape(pictures[0].height, pictures[0].width, 3)
    assert any((drawn == label.colour).all(axis=2).sum() > 50 for label in LABELS)
    assert "detection, boxes: boxes" in (replayed / "report" / "index.html").read_text()


def test_they_are_compared_by_their_boxes(replayed, tmp_path):
    moved = BagWriter(tmp_path / "moved.mcap")
    shifted = 0
    with BagReader(replayed / "out.mcap") as bag:
        for entry in bag.messages():
            if entry.topic.name in (f"{NODE}detections", f"{NODE}detections_3d"):
                message = bag.decode(entry)
                if entry.topic.name.endswith("detections"):
                    first = message.detections[0].bbox
                    object.__setattr__(first, "size_x", first.size_x * 2)
                    shifted += 1
                else:
                    for each in message.detections:
                        place = each.bbox.center.position
                        object.__setattr__(place, "z", place.z * 1.01)
                entry = Record(entry.topic, entry.time_ns, bag.types.serialize(message))
            moved.write([entry])
    moved.close()
    found = compare(replayed / "out.mcap", tmp_path / "moved.mcap", parse_tolerances([]))
    (over,) = [d for d in found if d.over]
    assert over.topic == f"{NODE}detections" and over.kind == "boxes" and over.over == shifted == 3
    assert all(
        d.passes for d in compare(replayed / "out.mcap", tmp_path / "moved.mcap", parse_tolerances(["boxes=0.5"]))
    )
