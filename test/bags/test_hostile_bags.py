"""Recordings that are damaged by chance or by intent: a sentence and what can still be read, never a traceback, a hang, or
memory without end."""

import os
import random
import resource
import signal
import sqlite3
import struct
import time

import numpy as np
import pytest
import recorded
import yaml
from recorded import START, STORE, drive, image, picture, record
from rosbags.rosbag2 import StoragePlugin
from rosbags.serde import SerdeError
from test_formats import foxglove_topics, mcap_file, ros1_topics

from dino_perception.bags.cameras import Calibrations, choose_cameras
from dino_perception.bags.storage import definitions, mcap_format
from dino_perception.bags.storage.problems import UNREADABLE, USAGE, BagError
from dino_perception.bags.storage.reader import BagReader
from dino_perception.bags.storage.writer import BagWriter
from dino_perception.cli.__main__ import main

KINDS = ["indexed", "plain", "zstd", "db3", "bag", "ros1 in mcap", "protobuf", "json", "metadata"]
MUTATIONS = 40
"""Of each kind; `FAULTS=5000 pytest` runs as many as that."""


def ros1_bag(path):
    from rosbags.rosbag1 import Writer
    from rosbags.typesys import Stores, get_typestore

    store = get_typestore(Stores.ROS1_NOETIC)
    with Writer(path) as bag:
        for name, schema, _, _, messages in ros1_topics(3):
            connection = bag.add_connection(name, schema[0].replace("/", "/msg/"), typestore=store)
            for number, data in enumerate(messages):
                bag.write(connection, START + number * recorded.PERIOD, data)
    return path


def copied(source, target, **options):
    writer = BagWriter(target, **options)
    with BagReader(source) as bag:
        for entry in bag.messages():
            writer.write([entry])
    writer.close()
    return target


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    """One small recording of each kind."""
    folder, small = tmp_path_factory.mktemp("samples"), list(drive(3, compressed=True))
    bag = record(folder / "m", small)
    return {
        "indexed": copied(bag, folder / "ours.mcap"),
        "plain": bag / "m.mcap",
        "zstd": copied(bag, folder / "z.mcap", compression="zstd"),
        "db3": record(folder / "d", small, StoragePlugin.SQLITE3) / "d.db3",
        "bag": ros1_bag(folder / "r.bag"),
        "ros1 in mcap": mcap_file(folder / "r1.mcap", list(ros1_topics(2))),
        "protobuf": mcap_file(folder / "p.mcap", list(foxglove_topics(2, "protobuf"))[:2]),
        "json": mcap_file(folder / "j.mcap", list(foxglove_topics(2, "json"))[:2]),
        "metadata": bag / "metadata.yaml",
    }


def mutated(raw, rng):
    """The bytes with a few flipped, overwritten, left out or put in; mostly near the ends, where the structure is."""
    data, how = bytearray(raw), rng.randrange(5)
    for _ in range(rng.choice([1, 1, 2, 8])):
        near = rng.randrange(min(3000, len(data)))
        at = rng.choice([rng.randrange(len(data)), near, len(data) - 1 - near])
        if how == 0:
            data[at] ^= 1 << rng.randrange(8)
        elif how == 1:
            data[at] = rng.choice([0, 255, 127, 128])
        elif how == 2:
            data[at : at + 8] = rng.choice([b"\xff" * 8, bytes(8), bytes(7) + b"\x7f", bytes(7) + b"\x80"])
        elif how == 3:
            del data[at : at + rng.randrange(1, 200)]
        else:
            data[at:at] = rng.randbytes(rng.randrange(1, 40))
        if not data:
            break
    return bytes(data)


def look(path):
    """All that a replay does with its input but the perceiving."""
    try:
        with BagReader(path) as bag:
            try:
                for camera in choose_cameras(bag, [], ["camera"]):
                    Calibrations(bag, camera.info)
            except BagError as error:
                assert "\n" not in str(error)
            for number, entry in enumerate(bag.messages()):
                if number > 2000:
                    break
                try:
                    bag.decode(entry)
                except (SerdeError, KeyError):
                    pass
            assert not any("\n" in problem.sentence for problem in bag.problems)
    except BagError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize("kind", KINDS)
def test_any_damage_is_a_sentence(tmp_path, samples, kind):
    def hangs(*_):
        raise AssertionError("it hangs")

    before, rng = signal.signal(signal.SIGALRM, hangs), random.Random(f"1 {kind}")
    raw = samples[kind].read_bytes()
    path = tmp_path / samples[kind].name
    if kind == "metadata":
        (tmp_path / "m.mcap").write_bytes(samples["plain"].read_bytes())
    try:
        for number in range(int(os.environ.get("FAULTS", MUTATIONS))):
            path.write_bytes(mutated(raw, rng))
            signal.alarm(20)
            try:
                look(tmp_path if kind == "metadata" else path)
            except BaseException as error:
                raise AssertionError(f"mutation {number} of {kind}") from error
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("kind", ["plain", "indexed"])
def test_every_flipped_bit_of_a_message_index_is_borne(tmp_path, samples, kind):
    raw = samples[kind].read_bytes()
    from mcap.reader import make_reader

    with open(samples[kind], "rb") as file:
        chunk = make_reader(file).get_summary().chunk_indexes[0]
    first = min(chunk.message_index_offsets.values())
    path = tmp_path / "x.mcap"
    for at in range(first, first + min(120, chunk.message_index_length), 3):
        path.write_bytes(raw[:at] + bytes([raw[at] ^ 0x81]) + raw[at + 1 :])
        look(path)


def peak_mb():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@pytest.mark.parametrize("compression", ["zstd", "lz4"])
@pytest.mark.parametrize("stated", [1000, 1 << 40])
def test_a_chunk_expands_to_what_it_states_and_no_further(compression, stated):
    import lz4.frame

    zeros = bytes(400 << 20)
    bomb = mcap_format.zstd.compress(zeros) if compression == "zstd" else lz4.frame.compress(zeros)
    del zeros
    before = peak_mb()
    with pytest.raises(mcap_format.McapError, match="more than the 1000|the largest that is read has"):
        mcap_format.decompress(bomb, compression, stated)
    assert peak_mb() - before < 50


def test_a_message_expands_to_a_gigabyte_at_most(tmp_path, monkeypatch):
    monkeypatch.setattr("dino_perception.bags.storage.reader.LARGEST", 1 << 20)
    bomb = mcap_format.zstd.compress(bytes(50 << 20))
    text = STORE.generate_msgdef("sensor_msgs/msg/Image", ros_version=2)[0].encode()
    source = mcap_file(tmp_path / "x.mcap", [("/a", ("sensor_msgs/msg/Image", "ros2msg", text), "cdr", {}, [bomb])])
    with BagReader(source) as bag:
        assert list(bag.messages()) == [] and "hold more than" in bag.problems[0].sentence


@pytest.mark.parametrize(
    "text",
    [
        "\n".join(f"int32 a{n}" for n in range(60_000)),
        "\n".join(f"int32 a{n}" for n in range(5_000)),
        "int32[" * 3000,
        "Own own",
        "=" * 80 + "\nMSG: a/B\n" * 500,
        "string<=" + "9" * 5000 + " x",
        "int32[99999999999999] x",
        "\x00\xff\u202e",
    ],
)
@pytest.mark.parametrize("encoding", ["ros2msg", "ros2idl", "ros1msg"])
def test_hostile_definitions_take_no_time(tmp_path, text, encoding):
    if encoding == "ros2idl":
        text = "module a {" * 400 + text + "};" * 400 if len(text) < 50_000 else text
    coding = "ros1" if encoding == "ros1msg" else "cdr"
    frame = bytes(STORE.serialize_cdr(image(START, picture(0)), "sensor_msgs/msg/Image"))
    source = mcap_file(
        tmp_path / "x.mcap",
        [("/a", ("own_msgs/msg/Own", encoding, text.encode()), coding, {}, [frame, b"", b"\0\1\0\0"])],
    )
    begun = time.monotonic()
    look(source)
    assert time.monotonic() - begun < 10


def test_the_largest_definitions_there_are_are_read():
    from rosbags.typesys import Stores, get_typestore

    store = get_typestore(Stores.ROS2_JAZZY)
    sizes = []
    for kind in store.fielddefs:
        text, _ = store.generate_msgdef(kind, ros_version=2)
        sizes.append(len(text))
        definitions.message_types(text, kind)
    assert max(sizes) < definitions.LONGEST / 8


@pytest.mark.parametrize(
    "text",
    [
        "[" * 5000,
        "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\n"
        + "\n".join(f"{chr(99 + n)}: &{chr(99 + n)} [{','.join(['*' + chr(98 + n)] * 9)}]" for n in range(12)),
        "x: 2024-99-99",
        "x: !!binary '=='",
        "rosbag2_bagfile_information: 5",
        "rosbag2_bagfile_information: {relative_file_paths: [3, null, {}]}",
        "rosbag2_bagfile_information: {relative_file_paths: ['..', '', 'x.txt', '/etc/passwd', 'in.mcap', 'in.mcap']}",
        "\x00\x01",
    ],
)
def test_hostile_metadata_costs_nothing(tmp_path, text):
    source = record(tmp_path / "in", drive(2))
    (source / "metadata.yaml").write_text(text)
    begun = time.monotonic()
    with BagReader(source) as bag:
        assert bag.message_count == 5
    assert time.monotonic() - begun < 3


def test_hostile_qos_of_a_topic_is_left_out(tmp_path):
    text = "string data\n"
    frames = [bytes(STORE.serialize_cdr(recorded.text("x"), "std_msgs/msg/String"))]
    for hostile in (
        "[" * 5000,
        "- &a [*a]",
        "x: !!python/object:os.system",
        "- {history: 99}",
        "- 3",
        "{a: b}",
        "- {depth: [}",
    ):
        notes = {"offered_qos_profiles": hostile}
        schema = ("std_msgs/msg/String", "ros2msg", text.encode())
        with BagReader(mcap_file(tmp_path / "x.mcap", [("/a", schema, "cdr", notes, frames)])) as bag:
            assert len(list(bag.messages())) == 1


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE messages SET timestamp = 'noon'",
        "UPDATE messages SET timestamp = 1e300 WHERE id = 2",
        "UPDATE messages SET data = 7 WHERE id = 1",
        "UPDATE messages SET data = NULL",
        "UPDATE messages SET topic_id = 'x' WHERE id < 3",
        "UPDATE topics SET name = NULL",
        "UPDATE topics SET name = 5 WHERE id = 1",
        "UPDATE topics SET type = x'00ff'",
        "UPDATE topics SET offered_qos_profiles = 12",
        "UPDATE topics SET serialization_format = 3.5 WHERE id = 2",
        "UPDATE message_definitions SET encoded_message_definition = x'fffe00'",
        "UPDATE message_definitions SET encoding = 9",
        "DELETE FROM topics",
        "DROP TABLE message_definitions",
        "UPDATE topics SET id = id + 9223372036854775000",
    ],
)
def test_sqlite_values_of_any_type(tmp_path, change):
    source = record(tmp_path / "in", drive(2), StoragePlugin.SQLITE3)
    base = sqlite3.connect(source / "in.db3")
    for table in ("messages", "topics", "message_definitions"):  # without the constraints that a good recorder sets
        columns = [row[1] for row in base.execute(f"PRAGMA table_info({table})")]
        base.execute(f"CREATE TABLE other_{table} ({', '.join(columns)})")
        base.execute(f"INSERT INTO other_{table} SELECT * FROM {table}")
        base.execute(f"DROP TABLE {table}")
        base.execute(f"ALTER TABLE other_{table} RENAME TO {table}")
    base.execute(change)
    base.commit()
    base.close()
    look(source)
    look(source / "in.db3")


def test_times_beyond_what_ros_can_count(tmp_path):
    whole = copied(record(tmp_path / "in", drive(3)), tmp_path / "good.mcap").read_bytes()
    for late in (1 << 63, (1 << 64) - 1):
        raw = whole.replace(struct.pack("<Q", START + 5_000_000), struct.pack("<Q", late))
        (tmp_path / "x.mcap").write_bytes(raw)
        look(tmp_path / "x.mcap")
        (tmp_path / "cut.mcap").write_bytes(raw[: len(raw) * 9 // 10])
        look(tmp_path / "cut.mcap")


def test_places_that_are_no_recordings(tmp_path, capfd):
    os.mkfifo(tmp_path / "pipe.mcap")
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "gone.mcap").symlink_to(tmp_path / "nowhere")
    for place, code, sentence in [
        ("/dev/null", UNREADABLE, "is no bag"),
        ("/", USAGE, "holds more than 20000 files; name the folder with the bags"),
        (tmp_path / "pipe.mcap", UNREADABLE, "is no bag"),
        (tmp_path / "gone.mcap", UNREADABLE, "does not exist"),
        (tmp_path, UNREADABLE, "holds no bag"),
        ("/etc/passwd", UNREADABLE, "is no bag"),
    ]:
        begun = time.monotonic()
        assert main(["replay", str(place), str(tmp_path / "out.mcap")]) == code, place
        said = capfd.readouterr().err
        assert sentence in said and len(said.strip().splitlines()) == 1 and time.monotonic() - begun < 20


@pytest.mark.parametrize(
    "name", ["/[red]camera[/red]/image", "/[/]/image", "/a\x1b[31m/image", "/" + "long" * 5000, "/[bold"]
)
def test_a_topic_may_be_called_anything(tmp_path, capfd, name):
    """What a terminal or the tables would act on is printed as it is, or as an escape."""
    text = STORE.generate_msgdef("sensor_msgs/msg/Image", ros_version=2)[0].encode()
    frame = image(START, picture(0))
    odd = image(START, picture(0))
    odd.encoding = name
    frames = [bytes(STORE.serialize_cdr(made, "sensor_msgs/msg/Image")) for made in (frame, odd)]
    schema = ("sensor_msgs/msg/Image", "ros2msg", text)
    source = mcap_file(
        tmp_path / "x.mcap", [(name, schema, "cdr", {}, frames), ("/odd", schema, "cdr", {}, frames[1:])]
    )
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"/**": {"ros__parameters": recorded.SMALL}}))
    code = main(["replay", str(source), str(tmp_path / "out.mcap"), "--config", str(tmp_path / "config.yaml")])
    said = "".join(capfd.readouterr())
    assert code == 12 and "Traceback" not in said and "\x1b[31m" not in said and len(said) < 20_000
    assert main(["replay", "--compare", str(tmp_path / "out.mcap"), str(tmp_path / "out.mcap")]) == 0
    assert "Traceback" not in "".join(capfd.readouterr())
    assert np.isfinite(peak_mb())
