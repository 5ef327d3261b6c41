"""An output bag is what others can read, and stays so when the process is killed or the disk is full."""

import os
import resource
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
import yaml
from rosbags.highlevel import AnyReader
from rosbags.interfaces import QosDurability, QosReliability
from rosbags.typesys import Stores, get_typestore

from dino_perception.bags.storage import mcap_write, sqlite_write
from dino_perception.bags.storage.problems import UNWRITABLE, BagError
from dino_perception.bags.storage.reader import BagReader
from dino_perception.bags.storage.topic import Record, Topic, qos
from dino_perception.bags.storage.writer import BagWriter, storage_file

STORE = get_typestore(Stores.ROS2_JAZZY)
START = 1_700_000_000_000_000_000
KINDS = ["out.mcap", "out.db3", "out"]


def topic(name, kind="sensor_msgs/msg/Image", profile=None):
    text, _ = STORE.generate_msgdef(kind, ros_version=2)
    return Topic(name, kind, text, "ros2msg", STORE.hash_rihs01(kind), qos(2) if profile is None else profile)


TOPICS = [
    topic("/n/mask"),
    topic("/n/depth"),
    topic("/n/labels", "std_msgs/msg/String", qos(1, durability="transient_local")),
]


def image(number, size=40):
    make = STORE.types
    header = make["std_msgs/msg/Header"](make["builtin_interfaces/msg/Time"](number, 5), "cam")
    pixels = np.random.default_rng(number).integers(0, 256, size * size, np.uint8)
    return STORE.serialize_cdr(
        make["sensor_msgs/msg/Image"](header, size, size, "mono8", 0, size, pixels), "sensor_msgs/msg/Image"
    )


def groups(count, size=40):
    """What a replay writes: the labels once, then a group of two messages a frame."""
    text = STORE.serialize_cdr(STORE.types["std_msgs/msg/String"]("soil"), "std_msgs/msg/String")
    for number in range(count):
        first = [Record(TOPICS[2], START, text)] if number == 0 else []
        yield first + [Record(TOPICS[i], START + number * 10**8, image(2 * number + i, size)) for i in (0, 1)]


def flat(groups_):
    return [(r.topic.name, r.time_ns, bytes(r.data)) for group in groups_ for r in group]


def written(path, count=30, **options):
    writer = BagWriter(path, **options)
    for number, group in enumerate(groups(count)):
        writer.write(group, mark=number)
    writer.close()
    return writer


def read(path):
    with BagReader(path) as bag:
        return [(r.topic.name, r.time_ns, bytes(r.data)) for r in bag.messages()], [p.kind for p in bag.problems]


@pytest.mark.parametrize("compression", ["", "zstd"])
def test_mcaps_own_library_reads_and_decodes_it(tmp_path, compression):
    from mcap.reader import make_reader
    from mcap_ros2.decoder import DecoderFactory

    written(tmp_path / "out.mcap", compression=compression)
    expected = flat(groups(30))
    with open(tmp_path / "out.mcap", "rb") as file:
        reader = make_reader(file, validate_crcs=True, decoder_factories=[DecoderFactory()])
        assert reader.get_header().profile == "ros2"
        statistics = reader.get_summary().statistics
        assert (statistics.message_count, statistics.channel_count, statistics.schema_count) == (61, 3, 2)
        assert [(c.topic, m.log_time, m.data) for _, c, m in reader.iter_messages(log_time_order=False)] == expected
        decoded = [(c.topic, m) for _, c, _, m in reader.iter_decoded_messages()]
    images = [m for name, m in decoded if name == "/n/mask"]
    assert [m.header.stamp.sec for m in images] == [2 * n for n in range(30)]
    assert decoded[0][1].data == "soil"


@pytest.mark.parametrize("name", KINDS)
def test_rosbags_reads_and_decodes_it(tmp_path, name):
    written(tmp_path / name)
    with AnyReader([tmp_path / name]) as reader:
        assert [(c.topic, t, bytes(raw)) for c, t, raw in reader.messages()] == flat(groups(30))
        offered = {c.topic: c.ext.offered_qos_profiles[0] for c in reader.connections}
        assert offered["/n/labels"].durability is QosDurability.TRANSIENT_LOCAL and offered["/n/labels"].depth == 1
        assert offered["/n/mask"].durability is QosDurability.VOLATILE and offered["/n/mask"].depth == 2
        assert all(profile.reliability is QosReliability.RELIABLE for profile in offered.values())
        assert all(c.msgdef.data for c in reader.connections)
        last = list(reader.messages([c for c in reader.connections if c.topic == "/n/depth"]))[-1]
        assert reader.deserialize(last[2], last[0].msgtype).header.stamp.sec == 59


def test_a_folder_has_metadata_that_rosbag2_reads(tmp_path):
    written(tmp_path / "run")
    about = yaml.safe_load((tmp_path / "run" / "metadata.yaml").read_text())["rosbag2_bagfile_information"]
    assert about["relative_file_paths"] == ["run_0.mcap"] and about["message_count"] == 61
    assert about["duration"]["nanoseconds"] == 29 * 10**8
    assert {t["topic_metadata"]["name"]: t["message_count"] for t in about["topics_with_message_count"]} == {
        "/n/mask": 30,
        "/n/depth": 30,
        "/n/labels": 1,
    }


@pytest.mark.parametrize("name", KINDS)
def test_the_hash_is_over_topics_times_and_bytes(tmp_path, name):
    first, second = written(tmp_path / f"1{name}"), written(tmp_path / f"2{name}")
    assert first.sha256 == second.sha256 and first.count == 61 and first.mark == 29
    assert first.sha256 == written(tmp_path / "other.mcap").sha256  # whatever the storage
    assert first.sha256 != written(tmp_path / "fewer.mcap", count=29).sha256


@pytest.mark.parametrize("name", KINDS)
def test_an_existing_bag_is_never_overwritten(tmp_path, name):
    written(tmp_path / name)
    before = storage_file(tmp_path / name).read_bytes()
    with pytest.raises(BagError, match="exists") as caught:
        BagWriter(tmp_path / name)
    assert caught.value.code == UNWRITABLE and storage_file(tmp_path / name).read_bytes() == before


KILLED = """
    import sys, itertools
    sys.path[:0] = {paths!r}
    from dino_perception.bags.storage import mcap_write, sqlite_write
    from test_writer import BagWriter, groups
    mcap_write.CHUNK_SIZE = sqlite_write.COMMIT_SIZE = 50_000
    writer = BagWriter(sys.argv[1])
    for number, group in enumerate(groups(100_000)):
        writer.write(group, number)
        if writer.mark is not None:
            print(writer.mark, flush=True)
"""


@pytest.mark.parametrize("name", KINDS)
def test_a_killed_writer_leaves_every_group_it_called_safe(tmp_path, name):
    here = os.path.dirname(__file__)
    code = textwrap.dedent(KILLED.format(paths=[here, os.getcwd()]))
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / name)], stdout=subprocess.PIPE, text=True)
    safe = -1
    for line in process.stdout:
        safe = int(line)
        if safe > 200:
            break
    process.send_signal(signal.SIGKILL)
    safe = max([safe, *map(int, process.stdout.read().split("\n")[:-1] or [0])])
    process.wait()
    found, kinds = read(tmp_path / name)
    expected = flat(groups(safe + 200))
    assert found == expected[: len(found)] and len(found) >= 2 * (safe + 1) + 1
    assert kinds == {"out.mcap": ["truncated"], "out": ["unindexed", "truncated"], "out.db3": []}[name]


@pytest.fixture
def small_disk():
    """No file of this process may grow beyond so many bytes: a write beyond fails in the kernel, as on a full disk."""
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("limit", [150_000, 150_700, 201_111, 260_000])
@pytest.mark.parametrize("name", KINDS)
def test_a_full_disk_leaves_a_complete_bag_of_what_was_safe(tmp_path, monkeypatch, small_disk, name, limit):
    monkeypatch.setattr(mcap_write, "CHUNK_SIZE", 20_000)
    monkeypatch.setattr(sqlite_write, "COMMIT_SIZE", 20_000)
    writer = BagWriter(tmp_path / name)
    small_disk(limit)
    with pytest.raises(BagError, match="cannot be written any further: .*; its [0-9]+ messages are readable") as caught:
        for number, group in enumerate(groups(200)):
            writer.write(group, number)
    assert caught.value.code == UNWRITABLE
    writer.close()
    small_disk(resource.getrlimit(resource.RLIMIT_FSIZE)[1])  # pytest's own report may go to a larger file
    found, kinds = read(tmp_path / name)
    assert kinds == [] and found == flat(groups(200))[: len(found)] and len(found) > 30
    if name != "out.db3":  # its summary may have cost a chunk
        assert 2 * (writer.mark + 1) + 1 - len(found) in (0, 12, 13, 14)
    with AnyReader([tmp_path / name]) as reader:
        assert len(list(reader.messages())) == len(found)


def test_a_full_disk_is_the_same_on_a_real_one(tmp_path):
    """On a file system of 6 MB, where mounting one is allowed."""
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "none", str(tmp_path)], capture_output=True).returncode:
        pytest.skip("mounting a file system needs root")
    try:
        writer = BagWriter(tmp_path / "out.mcap")
        with pytest.raises(BagError, match="No space left on device"):
            for group in groups(200, size=300):
                writer.write(group)
        writer.close()
        found, kinds = read(tmp_path / "out.mcap")
        assert kinds == [] and found == flat(groups(200, size=300))[: len(found)] and len(found) > 40
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


@pytest.mark.parametrize("name", KINDS)
def test_a_bag_is_continued_from_a_checkpoint_to_the_same_bytes(tmp_path, monkeypatch, name):
    monkeypatch.setattr(mcap_write, "CHUNK_SIZE", 20_000)
    monkeypatch.setattr(sqlite_write, "COMMIT_SIZE", 20_000)
    (tmp_path / "whole").mkdir(), (tmp_path / "part").mkdir()
    whole = written(tmp_path / "whole" / name, 60)
    todo = list(groups(60))
    writer = BagWriter(tmp_path / "part" / name)
    for number, group in enumerate(todo[:33]):
        writer.write(group, number)
    end, topics, mark = writer.end, writer.topics, writer.mark
    for group in todo[33:50]:  # written after the checkpoint, then the process dies
        writer.write(group)
    writer.abandon()
    writer = BagWriter(tmp_path / "part" / name, keep=(end, topics))
    for number, group in enumerate(todo[mark + 1 :]):
        writer.write(group, number)
    writer.close()
    assert writer.sha256 == whole.sha256
    if name != "out.db3":
        assert (
            storage_file(tmp_path / "part" / name).read_bytes() == storage_file(tmp_path / "whole" / name).read_bytes()
        )
    assert read(tmp_path / "part" / name) == (flat(todo), [])


def test_a_changed_file_is_not_continued(tmp_path):
    writer = written(tmp_path / "out.mcap")
    (tmp_path / "out.mcap").write_bytes((tmp_path / "out.mcap").read_bytes()[:1000])
    with pytest.raises(BagError, match="it was changed since"):
        BagWriter(tmp_path / "out.mcap", keep=(writer.end, writer.topics))


def test_a_folder_that_cannot_be_made_is_a_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BagError, match="cannot be written: (Not a directory|File exists)"):
        BagWriter(tmp_path / "file" / "out.mcap")


def test_writing_keeps_no_more_than_a_chunk_in_memory(tmp_path):
    """600 MB through the writer raise the peak of the process by less than 60 MB."""
    code = textwrap.dedent("""
        import resource, sys
        from dino_perception.bags.storage.topic import Record, Topic
        from dino_perception.bags.storage.writer import BagWriter
        writer, data = BagWriter(sys.argv[1]), bytes(3_000_000)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for number in range(200):
            writer.write([Record(Topic("/a", "std_msgs/msg/String"), number, data[:-1])])
        writer.close()
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    """)
    begun = time.monotonic()
    out = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "big.mcap")], capture_output=True, text=True, check=True
    )
    assert int(out.stdout) < 60_000, f"{time.monotonic() - begun:.0f} s"


def test_sqlite_names_no_topic_that_was_rolled_back(tmp_path):
    writer = BagWriter(tmp_path / "out.db3")
    todo = list(groups(3))
    writer.write(todo[0])
    writer.flush()
    writer.write([Record(topic("/late"), START, image(9))])
    writer._storage.close()
    rows = sqlite3.connect(tmp_path / "out.db3").execute("SELECT name FROM topics").fetchall()
    assert ("/late",) not in rows and len(rows) == 3
