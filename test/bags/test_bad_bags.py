"""Whatever is wrong with a bag: what can be processed is, what was written stays, a sentence and an exit code say
it."""

import json
import resource
import signal

import numpy as np
import pytest
import recorded
import yaml
from recorded import PERIOD, START, contents, decoded, drive, image, picture, record
from rosbags.rosbag2 import StoragePlugin

from dino_perception.bags import job
from dino_perception.bags.storage import mcap_write, problems
from dino_perception.bags.storage.problems import CODES, PROBLEMS
from dino_perception.cli import replay as command
from dino_perception.cli.__main__ import main

MASK = "/dino_perception/segmentation/mask"


@pytest.fixture
def replay(tmp_path, capfd):
    """Runs the command as a user does. Returns (exit code, its figures, what it printed)."""
    settings = {"/**": {"ros__parameters": recorded.SMALL}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))

    def run(source, output="out.mcap", *arguments):
        code = main(
            [
                "replay",
                str(source),
                str(tmp_path / output),
                "--config",
                str(tmp_path / "config.yaml"),
                "--json",
                str(tmp_path / "figures.json"),
                *map(str, arguments),
            ]
        )
        printed = capfd.readouterr()
        return code, json.loads((tmp_path / "figures.json").read_text()), " ".join((printed.out + printed.err).split())

    return run


def big_drive(count=12):
    """A drive whose bag has many chunks of 1 MB: each image has a large message with it."""
    for topic, time, content in drive(count):
        yield topic, time, content
        if topic.endswith("image_raw"):
            yield "/bulk", time + 1, recorded.text("x" * 1_200_000)


def percepts(tmp_path, output="out.mcap"):
    return [
        m.header.stamp.nanosec // PERIOD + 10 * (m.header.stamp.sec - START // 10**9)
        for m in decoded(tmp_path / output, MASK)
    ]


def test_a_truncated_bag(tmp_path, replay):
    whole = record(tmp_path / "in", big_drive()) / "in.mcap"
    (tmp_path / "cut.mcap").write_bytes(whole.read_bytes()[: whole.stat().st_size * 6 // 10])
    code, figures, said = replay(tmp_path / "cut.mcap")
    assert code == PROBLEMS["truncated"][0] and "cut.mcap has no end: the recording was cut off" in said
    found = percepts(tmp_path)
    assert found == list(range(len(found))) and 5 <= len(found) < 12 and figures["stopped"] is None


def test_an_unindexed_bag(tmp_path, replay):
    from test_reader import struct

    raw = (record(tmp_path / "in", drive(4)) / "in.mcap").read_bytes()
    end = raw.rindex(struct.pack("<BQI", 0x0F, 4, 0))
    (tmp_path / "bare.mcap").write_bytes(raw[: end + 13] + struct.pack("<BQQQI", 0x02, 20, 0, 0, 0) + raw[-8:])
    code, figures, said = replay(tmp_path / "bare.mcap")
    assert code == PROBLEMS["unindexed"][0] and "bare.mcap has no index" in said and percepts(tmp_path) == [0, 1, 2, 3]


@pytest.mark.parametrize("plugin", StoragePlugin)
def test_an_empty_bag(tmp_path, replay, plugin):
    code, figures, said = replay(record(tmp_path / "in", [], plugin))
    assert code == problems.EMPTY and "holds no message" in said and not (tmp_path / "out.mcap").exists()


def test_an_empty_file(tmp_path, replay):
    (tmp_path / "in.mcap").write_bytes(b"")
    code, _, said = replay(tmp_path / "in.mcap")
    assert code == problems.EMPTY and "in.mcap is empty (0 bytes)" in said


def test_no_bag_at_all(tmp_path, replay):
    (tmp_path / "in.mcap").write_bytes(b"The quick brown fox jumps over the lazy dog.")
    code, _, said = replay(tmp_path / "in.mcap")
    assert code == problems.UNREADABLE and "does not start as an MCAP file does" in said
    assert replay(tmp_path / "nowhere.mcap")[0] == problems.UNREADABLE


def test_a_bag_without_images_lists_what_there_is(tmp_path, replay):
    source = record(tmp_path / "in", [entry for entry in drive(3) if "image" not in entry[0]])
    code, _, said = replay(source)
    assert (
        code == problems.NO_IMAGES
        and "/camera/camera_info (sensor_msgs/msg/CameraInfo, 3)" in said
        and "/notes" in said
    )


def test_a_depth_camera_is_no_camera(tmp_path, replay):
    depth = recorded.message(
        "sensor_msgs/msg/Image",
        header=recorded.header(START),
        height=2,
        width=2,
        encoding="16UC1",
        is_bigendian=0,
        step=4,
        data=np.zeros(8, np.uint8),
    )
    code, _, said = replay(record(tmp_path / "in", [("/depth/image_raw", START, depth)]))
    assert code == problems.NO_IMAGES and "/depth/image_raw (sensor_msgs/msg/Image, 1)" in said


def test_topics_of_unknown_types_are_kept_as_they_are(tmp_path, replay):
    from dino_perception.bags.storage.topic import Topic

    writer = mcap_write.McapWriter(tmp_path / "in.mcap")
    kinds = {name: "sensor_msgs/msg/Image" for name in ("/camera/image_raw",)}
    ids = {
        "/odd": writer.add_topic(Topic("/odd", "own_msgs/msg/Odd")),
        **{name: writer.add_topic(Topic(name, kind)) for name, kind in kinds.items()},
    }  # no definitions, as Humble's sqlite bags
    for topic, time, content in drive(3):
        if topic in ids:
            writer.write(ids[topic], time, recorded.STORE.serialize_cdr(content, content.__msgtype__))
            writer.write(ids["/odd"], time + 1, b"\0\1\0\0\1\2\3\4")
    writer.commit(force=True)
    writer.close()
    code, figures, said = replay(tmp_path / "in.mcap")
    assert (
        code == PROBLEMS["unknown"][0]
        and "topic /odd is of type own_msgs/msg/Odd, which the bag does not define" in said
    )
    assert percepts(tmp_path) == [0, 1, 2]
    from mcap.reader import make_reader

    with open(tmp_path / "out.mcap", "rb") as file:
        odd = [m.data for _, c, m in make_reader(file).iter_messages(topics=["/odd"])]
    assert odd == [b"\0\1\0\0\1\2\3\4"] * 3


def test_corrupt_images_in_the_middle(tmp_path, replay):
    messages = list(drive(8))
    broken = {2: image(START + 2 * PERIOD, picture(2)), 5: recorded.jpeg(START + 5 * PERIOD, picture(5))}
    broken[2].data = broken[2].data[:-7]
    for index, (topic, time, content) in enumerate(messages):
        if topic == "/camera/image_raw" and (content.header.stamp.nanosec // PERIOD) == 2:
            messages[index] = (topic, time, broken[2])
    code, figures, said = replay(record(tmp_path / "in", messages))
    assert (
        code == PROBLEMS["images"][0]
        and "1 image(s) of camera camera could not be used, the first because the image holds 36857 bytes" in said
    )
    assert percepts(tmp_path) == [0, 1, 3, 4, 5, 6, 7] and (figures["frames_in"], figures["frames_out"]) == (8, 7)
    assert (
        sum(topic == "/camera/image_raw" for topic, _, _ in contents(tmp_path / "out.mcap")) == 8
    )  # kept all the same


def test_corrupt_jpegs_and_messages(tmp_path, replay):
    messages = list(drive(6, compressed=True))
    images = [index for index, entry in enumerate(messages) if entry[0].endswith("compressed")]
    messages[images[1]][2].data = messages[images[1]][2].data[:500]
    messages[images[3]][2].data = np.zeros(0, np.uint8)
    code, figures, said = replay(record(tmp_path / "in", messages))
    assert code == PROBLEMS["images"][0] and "2 image(s) of camera" in said and percepts(tmp_path) == [0, 2, 4, 5]


def test_a_damaged_part_of_the_file(tmp_path, replay):
    whole = record(tmp_path / "in", big_drive()) / "in.mcap"
    raw = bytearray(whole.read_bytes())
    # rosbags writes no checksums: break the record structure of a chunk in the middle
    from mcap.reader import make_reader

    with open(whole, "rb") as file:
        chunk = make_reader(file).get_summary().chunk_indexes[5]
    start = chunk.chunk_start_offset + 9
    raw[start + 16 : start + 24] = (1 << 40).to_bytes(8, "little")  # its uncompressed size
    (tmp_path / "broken.mcap").write_bytes(raw)
    code, figures, said = replay(tmp_path / "broken.mcap")
    assert code == PROBLEMS["damaged"][0] and "is damaged and left out" in said
    assert len(percepts(tmp_path)) == 11 and figures["stopped"] is None


def test_a_clock_that_jumps_back(tmp_path, replay):
    """Of the recorder and of the camera: the frames stay in the order they happened in, the tracks start anew."""
    back = 30 * PERIOD
    messages = [*drive(5)]
    for topic, time, content in drive(5):
        if hasattr(content, "header"):
            stamp = content.header.stamp.sec * 10**9 + content.header.stamp.nanosec - back
            content.header.stamp.sec, content.header.stamp.nanosec = divmod(stamp, 10**9)
        messages.append((topic, time - back, content))
    code, figures, said = replay(record(tmp_path / "in", messages))
    assert (
        code == PROBLEMS["clock"][0]
        and "jumps back by 3.4 s while recording" in said
        and "jump back 1 time(s), by up to 3.4 s" in said
    )
    assert percepts(tmp_path) == [*range(-30, -25), *range(5)], "each once; who reads a bag sorts by time"
    matches = [len(m.x) for m in decoded(tmp_path / "out.mcap", "/dino_perception/correspondences")]
    assert matches[0] == matches[5] == 0 and min(matches[1:5] + matches[6:]) > 0


def test_a_full_disk(tmp_path, replay, monkeypatch):
    """No file may grow beyond a limit: the write fails in the kernel, as on a full disk."""
    source = record(tmp_path / "in", big_drive(12))
    handler, limits = signal.signal(signal.SIGXFSZ, signal.SIG_IGN), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (9_000_000, limits[1]))
    try:
        code, figures, said = replay(source)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert (
        code == problems.UNWRITABLE
        and "cannot be written any further: File too large" in said
        and "are readable" in figures["stopped"]
    )
    found = percepts(tmp_path)
    assert found == list(range(figures["frames_out"])) and 3 <= len(found) < 12
    assert len(contents(tmp_path / "out.mcap")) == sum(figures["topics"].values())
    expected = replay(source, "whole.mcap")[1]["output_sha256"]
    code, figures, said = replay(source, "out.mcap", "--resume")  # no checkpoint was due until then
    assert code == 0 and "begins at the beginning" in said and figures["output_sha256"] == expected
    assert sorted(p.name for p in tmp_path.glob("out*")) == ["out.mcap"]


def test_a_full_disk_is_gone_on_from_once_there_is_room(tmp_path, replay, monkeypatch):
    from dino_perception.bags import replay as module

    monkeypatch.setattr(module, "CHECKPOINT", 2)
    source = record(tmp_path / "in", big_drive(12))
    expected = replay(source, "whole.mcap")[1]["output_sha256"]
    handler, limits = signal.signal(signal.SIGXFSZ, signal.SIG_IGN), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (9_000_000, limits[1]))
    try:
        assert replay(source)[0] == problems.UNWRITABLE
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    code, figures, _ = replay(source, "out.mcap", "--resume")
    assert code == 0 and figures["output_sha256"] == expected and figures["resumed_at"] > 0


@pytest.mark.parametrize(
    "setting, sentence",
    [
        ("input_height=50", "'input_height' and 'input_width' cannot be used"),
        ("nonsense=1", "there is no setting 'nonsense'"),
        ("engine", "--set engine is no NAME=VALUE"),
        ("weights=/nowhere/at.all", "/nowhere/at.all"),
    ],
)
def test_bad_settings(tmp_path, capfd, setting, sentence):
    source = record(tmp_path / "in", drive(2))
    code = main(["replay", str(source), str(tmp_path / "out.mcap"), "--set", setting])
    assert code == problems.USAGE and sentence in " ".join(capfd.readouterr().err.split())
    assert not (tmp_path / "out.mcap").exists()


def test_bad_arguments(tmp_path, capfd):
    source = record(tmp_path / "in", drive(2))
    with pytest.raises(SystemExit) as caught:
        main(["replay", str(source), str(tmp_path / "out.mcap"), "--every", "0"])
    assert caught.value.code == problems.USAGE
    assert main(["replay", str(source)]) == problems.USAGE and "replay IN OUT" in capfd.readouterr().err


def test_every_exit_code_is_distinct_and_documented():
    from pathlib import Path

    codes = [*CODES]
    assert len(codes) == len(set(codes)) and all(code == 130 or code < 100 for code in codes)
    page = (Path(__file__).parents[2] / "docs" / "replay.md").read_text()
    for code, meaning in CODES.items():
        assert f"| {code} | {meaning} |" in page
    assert command.HELP and job.Job


def test_a_message_that_is_no_image_in_the_middle(tmp_path, replay):
    """Its bytes do not even fit the type: it is left out, and neither rates nor tracks take notice of it."""
    from dino_perception.bags.storage.reader import BagReader
    from dino_perception.bags.storage.writer import BagWriter

    source, number = record(tmp_path / "in", drive(6)), 0
    writer = BagWriter(tmp_path / "broken.mcap")
    with BagReader(source) as bag:
        for entry in bag.messages():
            if entry.topic.name == "/camera/image_raw":
                number += 1
                entry = entry._replace(data=bytes(entry.data)[:9]) if number == 4 else entry
            writer.write([entry])
    writer.close()
    code, figures, said = replay(tmp_path / "broken.mcap", "out.mcap", "--set", "depth.rate=5.0")
    assert code == PROBLEMS["images"][0] and "its message is damaged" in said and percepts(tmp_path) == [0, 1, 2, 4, 5]
    depth = [m.header.stamp.nanosec // PERIOD for m in decoded(tmp_path / "out.mcap", "/dino_perception/depth/image")]
    assert depth == [0, 2, 4]


def test_a_calibration_that_cannot_be_used_costs_the_points_and_is_said(tmp_path):
    messages = list(drive(6))
    for index, (topic, time, content) in enumerate(messages):
        if topic.endswith("camera_info") and START + PERIOD < time < START + 4 * PERIOD:
            content.d = np.full(5, 1e300)
    source = record(tmp_path / "in", messages)
    result = recorded.replay(source, tmp_path / "out.mcap")
    counts = {name: result.figures["topics"].get(f"/dino_perception/{name}") for name in ("depth/image", "points")}
    assert counts == {"depth/image": 6, "points": 3}, result.lines
    assert sum("D of the camera" in line for line in result.lines) == 1
