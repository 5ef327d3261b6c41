"""Two bags of percepts: what differs is found, measured as the definitions say, and judged by the tolerance."""

import json
from pathlib import Path

import numpy as np
import pytest
import recorded
import yaml
from recorded import START, contents, drive, record, replay

from dino_perception.bags.compare import TOLERANCES, compare, parse_tolerances
from dino_perception.bags.storage.problems import DIFFERENT, UNREADABLE, USAGE, BagError
from dino_perception.bags.storage.reader import BagReader
from dino_perception.bags.storage.topic import Record
from dino_perception.bags.storage.writer import BagWriter
from dino_perception.cli.__main__ import main

NODE = "/dino_perception/"
EXACT = parse_tolerances(["exact"])


@pytest.fixture(scope="module")
def percepts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("percepts")
    replay(record(folder / "in", drive(4)), folder / "out.mcap")
    return folder / "out.mcap"


def changed(source, target, topic, change, drop=()):
    """A copy of a bag, in which the messages of one topic were changed; those numbered in `drop` are missing."""
    writer, number = BagWriter(target), 0
    with BagReader(source) as bag:
        for entry in bag.messages():
            if entry.topic.name == NODE + topic:
                number += 1
                if number - 1 in drop:
                    continue
                message = bag.decode(entry)
                for name in ("data", "x", "y", "reference_x", "k"):
                    if hasattr(message, name):
                        object.__setattr__(message, name, np.array(getattr(message, name)))
                change(message)
                entry = Record(entry.topic, entry.time_ns, bag.types.serialize(message))
            writer.write([entry])
    writer.close()
    return target


def difference(first, second, topic, **tolerances):
    (found,) = [d for d in compare(first, second, {**EXACT, **tolerances}) if d.topic == NODE + topic]
    return found


def test_a_bag_equals_itself(percepts):
    results = compare(percepts, percepts, EXACT)
    assert all(r.passes and r.identical == r.pairs == r.messages[0] for r in results)
    assert {r.topic for r in results} == {topic for topic, _, _ in contents(percepts)}


def test_mask_pixels_are_counted(percepts, tmp_path):
    def change(message):
        message.data[:10] = (message.data[:10] + 1) % 5

    other = changed(percepts, tmp_path / "b.mcap", "segmentation/mask", change)
    (mask, *_) = recorded.decoded(percepts, NODE + "segmentation/mask")
    share = 10 / (mask.height * mask.width)
    found = difference(percepts, other, "segmentation/mask")
    assert (
        found.worst["pixels"] == found.mean["pixels"] == pytest.approx(share) and found.over == 4 and not found.passes
    )
    assert difference(percepts, other, "segmentation/mask", mask=share * 1.01).passes
    assert not difference(percepts, other, "segmentation/mask", mask=share * 0.99).passes


def test_depth_is_compared_relatively_and_where_it_is_known(percepts, tmp_path):
    def change(message):
        metres = message.data.view(np.float32)
        metres *= np.float32(1.25)
        metres[: message.width] = np.nan

    other = changed(percepts, tmp_path / "b.mcap", "depth/image", change)
    found = difference(percepts, other, "depth/image")
    assert found.worst["relative"] == pytest.approx(0.25, rel=1e-5) and found.worst["unknown"] == pytest.approx(
        1 / recorded.SMALL["output_height"]
    )
    assert (
        difference(percepts, other, "depth/image", depth=0.26).passes
        and not difference(percepts, other, "depth/image", depth=0.24).passes
    )


def test_points_are_compared_in_metres(percepts, tmp_path):
    def change(message):
        points = message.data.view(np.float32).reshape(-1, 5)
        points[:, 0] += 3.0
        points[:, 1] += 4.0

    other = changed(percepts, tmp_path / "b.mcap", "points", change)
    found = difference(percepts, other, "points")
    assert found.worst["metres"] == pytest.approx(5.0, rel=1e-4) and found.worst["missing"] == found.worst["label"] == 0


def test_matches_need_a_partner_at_both_ends(percepts, tmp_path):
    def change(message):
        message.x[: len(message.x) // 2] += 1.5  # these are lost
        message.reference_x[len(message.x) // 2 :] += 0.5  # these are near enough

    other = changed(percepts, tmp_path / "b.mcap", "correspondences", change)
    found = difference(percepts, other, "correspondences")
    assert 0.3 < found.worst["unmatched"] <= 0.55  # a shifted point may fall onto another's place
    assert difference(percepts, other, "correspondences", matches=0.6).passes


def test_a_camera_info_is_compared_by_value(percepts, tmp_path):
    def change(message):
        message.k[0] += 0.25

    other = changed(percepts, tmp_path / "b.mcap", "depth/camera_info", change)
    assert difference(percepts, other, "depth/camera_info").worst["value"] == pytest.approx(0.25)


def test_a_stamp_or_a_missing_message_is_beyond_any_tolerance(percepts, tmp_path):
    def change(message):
        message.header.stamp.sec += 1

    anything = {name: 1e9 for name in TOLERANCES}
    other = changed(percepts, tmp_path / "b.mcap", "segmentation/mask", change)
    assert not difference(percepts, other, "segmentation/mask", **anything).passes
    fewer = changed(percepts, tmp_path / "c.mcap", "segmentation/mask", lambda message: None, drop=(1, 2))
    found = difference(percepts, fewer, "segmentation/mask", **anything)
    assert found.unpaired == 2 and found.pairs == 2 and not found.passes
    none = changed(percepts, tmp_path / "d.mcap", "points", lambda message: None, drop=range(4))
    assert difference(percepts, none, "points", **anything).note == "only in the first bag"


def test_padding_between_fields_is_no_difference(percepts, tmp_path):
    """rclpy leaves it as the memory was."""
    writer = BagWriter(tmp_path / "b.mcap")
    with BagReader(percepts) as bag:
        for entry in bag.messages():
            if entry.topic.type == "std_msgs/msg/String":
                entry = entry._replace(data=bytes(entry.data) + b"\x17")
            if entry.topic.name == NODE + "segmentation/label_info":
                raw = bytearray(entry.data)
                at = raw.index(b"soil\0") - 4  # the name's length; before it two bytes of padding behind the uint16
                raw[at - 2 : at] = b"\xab\xcd"
                entry = entry._replace(data=bytes(raw))
            writer.write([entry])
    writer.close()
    assert contents(percepts) != contents(tmp_path / "b.mcap")
    assert [r for r in compare(percepts, tmp_path / "b.mcap", EXACT) if not r.passes] == []


@pytest.mark.parametrize(
    "text, sentence",
    [
        ("masks=0.1", "there is no tolerance 'masks'; they are mask"),
        ("mask=much", "a number from 0 up"),
        ("mask=-1", "a number from 0 up"),
        ("mask", "a number from 0 up"),
    ],
)
def test_tolerances_are_checked(text, sentence):
    with pytest.raises(BagError, match=sentence) as caught:
        parse_tolerances([text])
    assert caught.value.code == USAGE
    assert parse_tolerances(["mask=0.1,depth=0.2", "points=3"]) == {**EXACT, "mask": 0.1, "depth": 0.2, "points": 3.0}


def test_the_command_says_equal_or_not_by_its_exit_code(percepts, tmp_path, capfd):
    def change(message):
        message.data[:10] = (message.data[:10] + 1) % 5

    other = changed(percepts, tmp_path / "b.mcap", "segmentation/mask", change)
    report = tmp_path / "figures.json"
    assert main(["replay", "--compare", str(percepts), str(percepts), "--json", str(report)]) == 0
    assert json.loads(report.read_text())["equal"] is True
    assert main(["replay", "--compare", str(percepts), str(other), "--json", str(report)]) == DIFFERENT
    assert json.loads(report.read_text())["equal"] is False
    assert main(["replay", "--compare", str(percepts), str(other), "--tolerance", "mask=0.01"]) == 0
    assert main(["replay", "--compare", str(percepts), str(tmp_path / "none.mcap")]) == UNREADABLE
    assert main(["replay", "--compare", str(percepts), str(other), "--tolerance", "nonsense=1"]) == USAGE
    assert "different" in capfd.readouterr().out


def test_every_tolerance_is_documented():
    page = (Path(__file__).parents[2] / "docs" / "replay.md").read_text()
    assert all(f"| {name} |" in page for name in TOLERANCES)
    assert START and yaml and recorded
