"""Every kind of bag gives the same messages, and a broken one gives what is left of it and says what is wrong."""

import shutil
import struct

import numpy as np
import pytest
from rosbags.rosbag1 import Writer as Writer1
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

from dino_perception.bags.storage.mcap_write import McapWriter
from dino_perception.bags.storage.problems import EMPTY, UNREADABLE, BagError
from dino_perception.bags.storage.reader import BagReader, is_bag
from dino_perception.bags.storage.topic import Topic, named_qos, qos

STORE = get_typestore(Stores.ROS2_JAZZY)
KIND = "std_msgs/msg/String"
START = 1_700_000_000_000_000_000
MESSAGES = [(START + 7 * i, ("/a", "/b/c")[i % 3 == 0], f"{i} " * (i % 50)) for i in range(120)]


def cdr(text):
    return bytes(STORE.serialize_cdr(STORE.types[KIND](text), KIND))


def record(path, plugin=StoragePlugin.MCAP, mode=None, messages=MESSAGES):
    """A bag written by rosbags."""
    writer = Writer(path, version=9, storage_plugin=plugin)
    if mode:
        writer.set_compression(mode, CompressionFormat.ZSTD)
    with writer:
        topics = {name: writer.add_connection(name, KIND, typestore=STORE) for name in ("/a", "/b/c")}
        for time, name, text in messages:
            writer.write(topics[name], time, cdr(text))
    return path


def contents(path, **cut):
    with BagReader(path) as bag:
        return [(r.time_ns, r.topic.name, bag.decode(r).data) for r in bag.messages(**cut)], [
            p.kind for p in bag.problems
        ]


def write_mcap(path, messages, compression="", group=1):
    """A bag written by us: a chunk every `group` messages."""
    writer = McapWriter(path, compression=compression)
    ids = {name: writer.add_topic(Topic(name, KIND, "string data\n", "ros2msg", qos=qos(2))) for name in ("/a", "/b/c")}
    for number, (time, name, text) in enumerate(messages):
        writer.write(ids[name], time, cdr(text))
        writer.commit(force=number % group == group - 1)
    writer.commit(force=True)
    writer.close()
    return path


KINDS = [
    (plugin, mode)
    for plugin in StoragePlugin
    for mode in (None, *CompressionMode)
    if mode is not CompressionMode.NONE and (plugin, mode) != (StoragePlugin.SQLITE3, CompressionMode.STORAGE)
]


@pytest.mark.parametrize("plugin, mode", KINDS)
def test_every_storage_and_compression_gives_the_same_messages(tmp_path, plugin, mode):
    folder = record(tmp_path / "bag", plugin, mode)
    assert contents(folder) == (MESSAGES, [])
    with BagReader(folder) as bag:
        assert (bag.start_ns, bag.end_ns, bag.message_count) == (MESSAGES[0][0], MESSAGES[-1][0], len(MESSAGES))
        assert {name: (t.type, t.count) for name, t in bag.topics.items()} == {"/a": (KIND, 80), "/b/c": (KIND, 40)}


@pytest.mark.parametrize("plugin, mode", [kind for kind in KINDS if kind[1] is not CompressionMode.FILE])
def test_a_file_without_its_folder_is_a_bag_too(tmp_path, plugin, mode):
    file = next(f for f in record(tmp_path / "bag", plugin, mode).iterdir() if f.suffix in (".mcap", ".db3"))
    assert is_bag(file) and contents(file) == (MESSAGES, [])


def split(tmp_path, pack=False):
    """A folder of three files as rosbag2 splits them, the metadata naming them in order."""
    folder = tmp_path / "split"
    folder.mkdir()
    names = []
    for part in range(3):
        mode = CompressionMode.FILE if pack else None
        source = record(tmp_path / f"part{part}", mode=mode, messages=MESSAGES[40 * part : 40 * part + 40])
        file = next(f for f in source.iterdir() if f.name != "metadata.yaml")
        names.append(f"split_{part}.mcap" + (".zstd" if pack else ""))
        shutil.move(file, folder / names[-1])
    text = (tmp_path / "part0" / "metadata.yaml").read_text()
    old = "part0.mcap" + (".zstd" if pack else "")
    (folder / "metadata.yaml").write_text(text.replace(f"- {old}", "\n  - ".join(["", *names]).lstrip("\n ")))
    return folder


@pytest.mark.parametrize("pack", [False, True])
def test_a_split_bag_is_one_bag(tmp_path, pack):
    assert contents(split(tmp_path, pack)) == (MESSAGES, [])


def test_a_split_bag_with_a_file_missing_gives_the_rest(tmp_path):
    folder = split(tmp_path)
    (folder / "split_1.mcap").unlink()
    assert contents(folder) == (MESSAGES[:40] + MESSAGES[80:], ["truncated"])


def test_a_folder_without_metadata_gives_its_files(tmp_path):
    folder = split(tmp_path)
    (folder / "metadata.yaml").unlink()
    assert contents(folder) == (MESSAGES, ["unindexed"])


def test_a_part_of_the_time_and_of_the_topics(tmp_path):
    folder = record(tmp_path / "bag")
    low, high = MESSAGES[30][0], MESSAGES[60][0]
    assert contents(folder, start=low, stop=high)[0] == MESSAGES[30:60]
    assert contents(folder, names=["/b/c"])[0] == [m for m in MESSAGES if m[1] == "/b/c"]


@pytest.mark.parametrize("compression", ["", "zstd"])
def test_a_bag_cut_off_anywhere_gives_its_whole_messages(tmp_path, compression):
    """Every prefix of the file is tried at 60 places: what comes back is the beginning of what was written."""
    raw = write_mcap(tmp_path / "whole.mcap", MESSAGES, compression, group=10).read_bytes()
    most = 0
    for cut in np.linspace(len(raw) // 20, len(raw) - 1, 60).astype(int):
        part = tmp_path / "part.mcap"
        part.write_bytes(raw[:cut])
        try:
            found, kinds = contents(part)
        except BagError as error:
            assert error.code == EMPTY and "cut off" in str(error) and not most
            continue
        assert found == MESSAGES[: len(found)] and kinds == ["truncated"] and len(found) >= most
        most = len(found)
    assert most == len(MESSAGES)


def test_a_file_without_an_index_gives_everything(tmp_path):
    raw = write_mcap(tmp_path / "whole.mcap", MESSAGES, group=10).read_bytes()
    end = raw.rindex(struct.pack("<BQI", 0x0F, 4, 0))  # data end; then an empty footer
    (tmp_path / "bare.mcap").write_bytes(raw[: end + 13] + struct.pack("<BQQQI", 0x02, 20, 0, 0, 0) + raw[-8:])
    assert contents(tmp_path / "bare.mcap") == (MESSAGES, ["unindexed"])


def test_messages_outside_chunks_are_read_in_time_order(tmp_path):
    """As `fastwrite` recordings have them, here a few out of order."""
    from mcap.writer import Writer as LibraryWriter

    with open(tmp_path / "plain.mcap", "wb") as file:
        writer = LibraryWriter(file, use_chunking=False)
        writer.start("ros2")
        schema = writer.register_schema(KIND, "ros2msg", b"string data\n")
        ids = {name: writer.register_channel(name, "cdr", schema) for name in ("/a", "/b/c")}
        shuffled = [MESSAGES[i ^ 1] for i in range(len(MESSAGES))]
        for time, name, text in shuffled:
            writer.add_message(ids[name], time, cdr(text), time)
        writer.finish()
    found, kinds = contents(tmp_path / "plain.mcap")
    assert found == MESSAGES and kinds == ["unindexed"]


def test_a_damaged_chunk_is_left_out_and_named(tmp_path):
    path = write_mcap(tmp_path / "bag.mcap", MESSAGES, group=10)
    raw = bytearray(path.read_bytes())
    place = raw.index(cdr(MESSAGES[33][2])[8:])
    raw[place + 3] ^= 1
    path.write_bytes(raw)
    with BagReader(path) as bag:
        found = [(r.time_ns, r.topic.name, bag.decode(r).data) for r in bag.messages()]
        assert found == MESSAGES[:30] + MESSAGES[40:]
        assert [p.kind for p in bag.problems] == ["damaged"] and "10 messages" in bag.problems[0].sentence


def test_a_damaged_index_is_found_again(tmp_path):
    path = write_mcap(tmp_path / "bag.mcap", MESSAGES, group=10)
    raw = bytearray(path.read_bytes())
    raw[-60] ^= 1
    path.write_bytes(raw)
    assert contents(path) == (MESSAGES, ["damaged"])


def test_a_database_cut_off_gives_the_rows_that_are_there(tmp_path):
    long = [(time, name, text + "x" * 3000) for time, name, text in MESSAGES]
    path = next(record(tmp_path / "bag", StoragePlugin.SQLITE3, messages=long).glob("*.db3"))
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 3 // 5])
    found, kinds = contents(path)
    assert kinds == ["truncated"] and 30 < len(found) < len(long) and set(found) <= set(long)
    assert found == sorted(found)


def test_a_database_damaged_inside_gives_the_rows_that_are_whole(tmp_path):
    long = [(time, name, text + "x" * 3000) for time, name, text in MESSAGES]
    path = next(record(tmp_path / "bag", StoragePlugin.SQLITE3, messages=long).glob("*.db3"))
    raw = bytearray(path.read_bytes())
    middle = len(raw) // 2 // 4096 * 4096
    raw[middle : middle + 8192] = b"\xee" * 8192
    path.write_bytes(raw)
    found, kinds = contents(path)
    assert kinds in (["damaged"], ["damaged", "truncated"]) and len(found) > 60
    assert {(time, name) for time, name, _ in found} <= {(time, name) for time, name, _ in long}


JUMP = [(time - (10_000_000_000 if i >= 60 else 0), name, text) for i, (time, name, text) in enumerate(MESSAGES)]


@pytest.mark.parametrize("plugin", StoragePlugin)
def test_a_clock_that_jumped_back_keeps_the_order_of_recording(tmp_path, plugin):
    assert contents(record(tmp_path / "bag", plugin, messages=JUMP)) == (JUMP, ["clock"])


@pytest.mark.parametrize("plugin", StoragePlugin)
def test_slight_disorder_is_sorted_and_no_problem(tmp_path, plugin):
    swapped = [MESSAGES[i ^ 1] for i in range(len(MESSAGES))]
    assert contents(record(tmp_path / "bag", plugin, messages=swapped)) == (MESSAGES, [])


def test_ros_1_bags_come_as_ros_2_messages(tmp_path):
    store = get_typestore(Stores.ROS1_NOETIC)
    new = store.types
    with Writer1(tmp_path / "old.bag") as writer:
        info = writer.add_connection("/camera_info", "sensor_msgs/msg/CameraInfo", typestore=store, latching=1)
        text = writer.add_connection(
            "/own", "own_msgs/msg/Note", msgdef="Header header\nstring text\n", md5sum="0" * 32
        )
        header = new["std_msgs/msg/Header"](7, new["builtin_interfaces/msg/Time"](5, 6), "cam")
        roi = new["sensor_msgs/msg/RegionOfInterest"](0, 0, 0, 0, False)
        message = new["sensor_msgs/msg/CameraInfo"](
            header,
            48,
            64,
            "plumb_bob",
            np.arange(5.0),
            np.arange(9.0),
            np.eye(3).reshape(-1),
            np.arange(12.0),
            0,
            0,
            roi,
        )
        writer.write(info, START, store.serialize_ros1(message, "sensor_msgs/msg/CameraInfo"))
        raw = struct.pack("<III", 1, 2, 3) + struct.pack("<I", 3) + b"cam" + struct.pack("<I", 2) + b"hi"
        writer.write(text, START + 1, raw)
    with BagReader(tmp_path / "old.bag") as bag:
        first, second = bag.messages()
        assert bag.problems == [] and first.topic.latched and not second.topic.latched
        seen = bag.decode(first)
        assert (seen.header.stamp.sec, seen.header.frame_id, list(seen.k)) == (5, "cam", list(np.arange(9.0)))
        assert first.topic.hash == STORE.hash_rihs01("sensor_msgs/msg/CameraInfo")
        assert bag.decode(second).text == "hi" and not hasattr(bag.decode(second).header, "seq")
        assert "uint32 seq" not in second.topic.definition


def test_types_of_the_bag_itself_are_read(tmp_path):
    types = get_types_from_msg(
        "string text\nown_msgs/Inner[2] parts\n" + "=" * 80 + "\nMSG: own_msgs/Inner\nfloat32 x\n", "own_msgs/msg/Note"
    )
    store = get_typestore(Stores.ROS2_JAZZY)
    store.register(types)
    inner, note = store.types["own_msgs/msg/Inner"], store.types["own_msgs/msg/Note"]
    with Writer(tmp_path / "bag", version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        topic = writer.add_connection("/note", "own_msgs/msg/Note", typestore=store)
        writer.write(topic, START, store.serialize_cdr(note("hi", [inner(1.0), inner(2.0)]), "own_msgs/msg/Note"))
    with BagReader(tmp_path / "bag") as bag:
        (record_,) = bag.messages()
        assert bag.decode(record_).parts[1].x == 2.0


def test_a_type_nobody_defines_is_noted_and_its_bytes_are_given(tmp_path):
    writer = McapWriter(tmp_path / "odd.mcap")
    writer.write(writer.add_topic(Topic("/odd", "own_msgs/msg/Odd")), START, b"\0\1\0\0abcd")
    writer.commit(force=True)
    writer.close()
    with BagReader(tmp_path / "odd.mcap") as bag:
        (odd,) = bag.messages()
        assert bytes(odd.data) == b"\0\1\0\0abcd"
        assert [p.kind for p in bag.problems] == ["unknown"] and "own_msgs/msg/Odd" in bag.problems[0].sentence


@pytest.mark.parametrize(
    "make, code, sentence",
    [
        (lambda p: p / "none.mcap", UNREADABLE, "does not exist"),
        (lambda p: _file(p / "a.mcap", b""), EMPTY, "is empty"),
        (lambda p: _file(p / "a.db3", b""), EMPTY, "is empty"),
        (lambda p: _file(p / "a.bag", b""), EMPTY, "is empty"),
        (lambda p: _file(p / "a.mcap", b"hello" * 9), UNREADABLE, "does not start as an MCAP file does"),
        (lambda p: _file(p / "a.db3", b"hello" * 99), UNREADABLE, "is no rosbag2 database"),
        (lambda p: _file(p / "a.bag", b"#ROSBAG V2.0\nhello"), UNREADABLE, "cannot be read as a ROS 1 bag"),
        (lambda p: _file(p / "a.txt", b"hello"), UNREADABLE, "neither a rosbag2 folder nor a .mcap"),
        (lambda p: _empty_folder(p / "folder"), UNREADABLE, "neither a rosbag2 folder"),
        (lambda p: record(p / "bag", messages=[]), EMPTY, "holds no message"),
        (lambda p: record(p / "bag", StoragePlugin.SQLITE3, messages=[]), EMPTY, "holds no message"),
    ],
)
def test_what_is_no_bag_is_refused_with_a_sentence(tmp_path, make, code, sentence):
    with pytest.raises(BagError, match=sentence) as caught:
        BagReader(make(tmp_path))
    assert caught.value.code == code


def _file(path, raw):
    path.write_bytes(raw)
    return path


def _empty_folder(path):
    path.mkdir()
    return path


def test_numbers_of_older_qos_profiles_become_names():
    old = (
        "- history: 1\n  depth: 10\n  reliability: 2\n  durability: 1\n  deadline: {sec: 0, nsec: 0}\n  liveliness: 1\n"
    )
    text = named_qos(old)
    assert "keep_last" in text and "best_effort" in text and "transient_local" in text and "automatic" in text
    assert named_qos(text) == text and named_qos("nonsense: [") == "" and named_qos("") == ""
