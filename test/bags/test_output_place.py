"""No replay loses a recording, or an older output before the new one is complete; and no half output is called whole."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import recorded
from recorded import contents, drive, record, replay

from dino_perception.bags import output_place as places
from dino_perception.bags.storage.origin import origin
from dino_perception.bags.storage.problems import INTERRUPTED, UNWRITABLE, USAGE, BagError
from dino_perception.bags.storage.writer import BagWriter, storage_file
from dino_perception.cli.__main__ import main


def tree(folder):
    """Every file below a folder with a hash of its bytes."""
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


@pytest.fixture
def source(tmp_path):
    (tmp_path / "in").mkdir()
    record(tmp_path / "in" / "drive", drive(3))
    shutil.copy(tmp_path / "in" / "drive" / "drive.mcap", tmp_path / "in" / "a.mcap")
    return tmp_path / "in"


def link(kind, target, path):
    path.parent.mkdir(exist_ok=True)
    os.symlink(target, path) if kind == "soft" else os.link(target, path)
    return path


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize(
    "places_of",
    [
        lambda f: ("a.mcap", "a.mcap"),
        lambda f: ("drive", "drive"),
        lambda f: ("drive", "drive/drive.mcap"),
        lambda f: ("drive", "drive/more.mcap"),
        lambda f: ("drive", "drive/deeper/more"),
        lambda f: ("drive/drive.mcap", "drive"),
        lambda f: ("a.mcap", "drive"),
        lambda f: ("a.mcap", "drive/../a.mcap"),
        lambda f: ("a.mcap", link("soft", f / "a.mcap", f / "links" / "b.mcap")),
        lambda f: ("a.mcap", link("hard", f / "a.mcap", f / "links" / "b.mcap")),
        lambda f: (link("soft", f / "a.mcap", f / "links" / "b.mcap"), "a.mcap"),
        lambda f: (link("soft", f / "drive", f / "links" / "d"), "drive/drive.mcap"),
        lambda f: ("a.mcap", link("soft", f, f.parent / "links") / "drive"),
        lambda f: ("drive", link("hard", f / "drive" / "drive.mcap", f / "links" / "b.mcap")),
        lambda f: ("drive", link("soft", f / "drive", f.parent / "other") / "drive.mcap"),
    ],
)
def test_a_recording_is_never_written_over(source, places_of, force):
    bag, output = places_of(source)
    before = tree(source)
    with pytest.raises(BagError) as caught:
        replay(source / bag, source / output, copy=("none",), force=force)
    assert caught.value.code in (USAGE, UNWRITABLE)
    assert tree(source) == before


def test_nor_by_the_command_with_any_of_its_options(source, tmp_path, capfd):
    before = tree(source)
    a, drive_, out = source / "a.mcap", source / "drive", tmp_path / "out.mcap"
    for arguments in (
        [a, drive_, source],
        [source, source, "--force"],
        [a, drive_, a],
        [a, out, "--json", a],
        [a, out, "--video", a],
        [drive_, out, "--report", drive_],
        [drive_, out, "--json", drive_ / "metadata.yaml"],
        [drive_, out, "--pictures", drive_ / "pictures"],
        [a, out, "--json", out],
        ["--compare", a, drive_, "--json", a],
    ):
        assert main(["replay", *map(str, arguments)]) in (USAGE, UNWRITABLE)
        assert len(capfd.readouterr().err.strip().splitlines()) == 1
        assert tree(source) == before and not out.exists()


@pytest.mark.parametrize("name", ["out.mcap", "out.db3", "out"])
def test_force_replaces_what_a_replay_made_and_nothing_else(source, tmp_path, name):
    out = tmp_path / name
    first = replay(source / "a.mcap", out)
    again = replay(source / "a.mcap", out, force=True, every=2)
    assert again.figures["frames_out"] == 2 and first.figures["frames_out"] == 3
    assert origin(storage_file(out)).complete and len(contents(out)) == sum(again.figures["topics"].values())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in", name]
    if out.is_dir():
        (out / "notes.txt").write_text("mine")
    else:
        shutil.copytree(source / "drive", out) if name == "out" else shutil.copy(source / "a.mcap", out)
    before = tree(tmp_path)
    with pytest.raises(BagError, match="was not made by replay"):
        replay(source / "a.mcap", out, force=True)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("name", ["out.mcap", "out.db3", "out"])
def test_an_older_output_stays_until_the_new_one_is_complete(source, tmp_path, monkeypatch, name):
    out = tmp_path / name
    replay(source / "a.mcap", out)
    old = contents(out)
    expected = replay(source / "a.mcap", tmp_path / f"expected_{name}", every=2)
    perceiver = recorded.perceiver()
    original = type(perceiver).perceive
    with monkeypatch.context() as patched:
        patched.setattr(
            type(perceiver), "perceive", lambda *a, **k: (os.kill(os.getpid(), signal.SIGINT), original(*a, **k))[1]
        )
        part = replay(source / "a.mcap", out, every=2, force=True)
    assert part.code == INTERRUPTED and contents(out) == old and "is what it was before" in part.lines[-1]
    assert contents(Path(part.figures["unfinished_output"]))
    whole = replay(source / "a.mcap", out, every=2, resume=True)
    assert whole.code == 0 and whole.figures["output_sha256"] == expected.figures["output_sha256"]
    assert contents(out) == contents(tmp_path / f"expected_{name}")
    assert not [p for p in tmp_path.iterdir() if p.suffix in (".part", ".resume")]


def test_resume_says_complete_only_of_the_same_job_that_says_so_itself(source, tmp_path):
    out = tmp_path / "out.mcap"
    shutil.copy(source / "a.mcap", out)
    with pytest.raises(BagError, match="was not made by replay"):
        replay(source / "a.mcap", out, resume=True)
    out.unlink()
    assert replay(source / "a.mcap", out).code == 0
    assert replay(source / "a.mcap", out, resume=True).lines == [f"{out} is complete; there is nothing to resume"]
    with pytest.raises(BagError, match="has changed since: every"):
        replay(source / "a.mcap", out, resume=True, every=2)
    out.write_bytes(out.read_bytes()[:-30])  # its end is gone
    again = replay(source / "a.mcap", out, resume=True)
    assert "begins at the beginning" in again.lines[0] and again.figures["frames_out"] == 3


@pytest.mark.parametrize("big", [False, True])
def test_another_input_under_the_same_name_is_another_job(tmp_path, monkeypatch, big):
    """One byte of the last image is another, and the size and all times are the same."""
    if big:
        monkeypatch.setattr("dino_perception.bags.fingerprint._WHOLE", 1000)
    source, out = record(tmp_path / "in", drive(3)) / "in.mcap", tmp_path / "out.mcap"
    replay(source, out)
    moved = tmp_path / "elsewhere.mcap"
    shutil.copy(source, moved)
    assert "nothing to resume" in replay(moved, out, resume=True).lines[0]
    raw, status = bytearray(source.read_bytes()), source.stat()
    at = raw.rindex(recorded.picture(2).tobytes()[-60:])
    raw[at] ^= 1
    source.write_bytes(raw)
    os.utime(source, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(BagError, match="has changed since: input"):
        replay(source, out, resume=True)


def test_other_weights_under_the_same_path_are_another_job(tmp_path):
    from dino_perception.bags.job import Job, run
    from dino_perception.models.heads.base import BUNDLED

    source, out, head = record(tmp_path / "in", drive(2)), tmp_path / "out.mcap", tmp_path / "head.safetensors"
    shutil.copy(BUNDLED / "rover-tiny-depth.safetensors", head)
    settings = recorded.SETTINGS.changed({"depth.weights": str(head)})
    run(Job(source, out, settings), recorded.perceiver)
    assert "nothing to resume" in run(Job(source, out, settings, resume=True), recorded.perceiver).lines[0]
    raw = bytearray(head.read_bytes())
    raw[-1] ^= 1
    head.write_bytes(raw)
    with pytest.raises(BagError, match="has changed since: weights"):
        run(Job(source, out, settings, resume=True), recorded.perceiver)


DRIVER = """
    import os, signal, sys
    sys.path.insert(0, {here!r})
    import recorded, torch
    from pathlib import Path
    from dino_perception.bags import output_place as place, replay as module, job
    from dino_perception.bags.storage import mcap_write, sqlite_write, writer
    torch.set_num_threads(1)
    recorded.perceiver()
    module.CHECKPOINT = 4
    mcap_write.CHUNK_SIZE = sqlite_write.COMMIT_SIZE = 40_000
    def die(*_): os.kill(os.getpid(), signal.SIGKILL)
    def at(owner, name, count, after=False):
        original, calls = getattr(owner, name), []
        def wrapped(*a, **k):
            calls.append(0)
            if len(calls) == count and not after: die()
            result = original(*a, **k)
            if len(calls) == count: die()
            return result
        setattr(owner, name, wrapped)
    moments = dict(
        before_its_file=lambda: at(job, "BagWriter", 1),
        after_its_file=lambda: at(job, "BagWriter", 1, after=True),
        first_group=lambda: at(writer.BagWriter, "write", 2),
        first_chunk=lambda: at(writer.BagWriter, "write", 7),
        first_checkpoint=lambda: at(place.Checkpoint, "save", 2),
        after_checkpoint=lambda: at(place.Checkpoint, "save", 2, after=True),
        late=lambda: at(writer.BagWriter, "write", 18),
        before_the_summary=lambda: at(writer.BagWriter, "close", 1),
        after_the_summary=lambda: at(writer.BagWriter, "close", 1, after=True),
        before_it_takes_its_place=lambda: at(job.OutputPlace, "finish", 1),
    )
    for line in sys.stdin:
        moment, source, output, force = line.split()
        child = os.fork()
        if not child:
            moments[moment]()
            recorded.replay(Path(source), Path(output), force=force == "force", every=1)
            os._exit(0)
        print(os.waitpid(child, 0)[1], flush=True)
"""


@pytest.fixture(scope="module")
def killed():
    """Starts a replay that dies by SIGKILL at a moment of its life."""
    code = textwrap.dedent(DRIVER.format(here=os.path.dirname(__file__)))
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )

    def run(moment, source, output, force=False):
        print(moment, source, output, "force" if force else "-", file=process.stdin, flush=True)
        return int(process.stdout.readline())

    yield run
    process.stdin.close()
    assert process.wait() == 0


MOMENTS = [
    "before_its_file",
    "after_its_file",
    "first_group",
    "first_chunk",
    "first_checkpoint",
    "after_checkpoint",
    "late",
    "before_the_summary",
    "before_it_takes_its_place",
]


@pytest.mark.parametrize(
    "name, force, moments",
    [
        ("out.mcap", False, MOMENTS),
        ("out.db3", False, MOMENTS[1::2]),
        ("out", True, MOMENTS[::2]),
        ("out.mcap", True, MOMENTS[::4]),
    ],
)
def test_whenever_it_is_killed_resume_ends_with_the_whole_output(tmp_path, killed, name, force, moments):
    source = record(tmp_path / "in", drive(10))
    whole = replay(source, tmp_path / f"whole_{name}")
    for moment in moments:
        folder = tmp_path / moment
        folder.mkdir()
        if force:  # an older output is there, and must stay what it is until then
            replay(source, folder / name, every=3)
            old = tree(folder / name)
        assert killed(moment, source, folder / name, force) == signal.SIGKILL, moment
        assert not force or tree(folder / name) == old, moment
        again = replay(source, folder / name, resume=True)
        complete = "nothing to resume" in again.lines[0] if again.lines else False
        assert again.code == 0 and complete == (moment == MOMENTS[-1]), moment
        assert contents(folder / name) == contents(tmp_path / f"whole_{name}"), moment
        assert complete or again.figures["output_sha256"] == whole.figures["output_sha256"]
        assert [p.name for p in folder.iterdir()] == [name], moment


def test_a_live_replay_is_not_gone_on_with_by_another(tmp_path, monkeypatch):
    source, out = record(tmp_path / "in", drive(4)), tmp_path / "out.mcap"
    perceiver = recorded.perceiver()
    original, tried = type(perceiver).perceive, []

    def perceive(self, frames, wanted=None):
        if not tried:
            with pytest.raises(BagError, match="is being written by another replay") as caught:
                place = places.OutputPlace(out, {})
                place.hold()
            tried.append(caught.value)
        return original(self, frames, wanted)

    monkeypatch.setattr(type(perceiver), "perceive", perceive)
    assert replay(source, out).code == 0 and len(tried) == 1
    held = places.OutputPlace(out, {})
    held.hold()
    held.release()


def test_messages_lost_to_a_full_disk_at_the_very_end_are_not_passed_over(tmp_path, monkeypatch):
    """The summary finds no room, so that the last chunk goes: that is an error, and the figures say what is left."""
    from dino_perception.bags.storage import mcap_write
    from dino_perception.bags.storage.topic import Record, Topic

    monkeypatch.setattr(mcap_write, "CHUNK_SIZE", 1000)
    writer = BagWriter(tmp_path / "out.mcap", job={"a": "b"})
    topic = Topic("/a", "std_msgs/msg/String", "string data\n", "ros2msg")
    for number in range(5):
        writer.write([Record(topic, number, bytes(2000))], number)
    append, calls = writer._storage._append, []

    def full(pieces):
        calls.append(pieces)
        if len(calls) == 1:
            raise OSError(28, "No space left on device")
        append(pieces)

    monkeypatch.setattr(writer._storage, "_append", full)
    with pytest.raises(BagError, match="No space left on device; its 4 messages are readable"):
        writer.close(complete=True)
    assert (writer.mark, writer.count) == (3, 4) and len(contents(tmp_path / "out.mcap")) == 4
    assert origin(tmp_path / "out.mcap") is not None and not origin(tmp_path / "out.mcap").complete
    assert json.dumps(origin(tmp_path / "out.mcap").job) == '{"a": "b"}'
