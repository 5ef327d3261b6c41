"""A replay that was stopped goes on as if it never had been."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import recorded
import yaml
from recorded import contents, drive, record, replay

from dino_perception.bags import replay as module
from dino_perception.bags import state as states
from dino_perception.bags.feed import Part
from dino_perception.bags.fingerprint import weights_of
from dino_perception.bags.state import Checkpoint, State
from dino_perception.bags.storage.problems import INTERRUPTED, USAGE, BagError
from dino_perception.bags.storage.topic import Topic
from dino_perception.models import catalog, head_catalog
from dino_perception.perception.settings import Settings


@pytest.fixture(autouse=True)
def often(monkeypatch):
    monkeypatch.setattr(module, "CHECKPOINT", 3)


def stop_after(count, monkeypatch):
    """Ctrl-C while the perceiver looks at frame `count`."""
    perceiver = recorded.perceiver()
    original, calls = type(perceiver).perceive, []

    def perceive(self, frames, wanted=None):
        calls.append(frames)
        if len(calls) == count:
            os.kill(os.getpid(), signal.SIGINT)
        return original(self, frames, wanted)

    monkeypatch.setattr(type(perceiver), "perceive", perceive)


CASES = [
    ("out.mcap", {}),
    ("out.db3", {}),
    ("out", {}),
    ("out.mcap", dict(every=2, start=0.07)),
    ("out.mcap", dict(compression="zstd")),
]


@pytest.mark.parametrize("name, options", CASES)
def test_an_interrupted_replay_goes_on_to_the_same_output(tmp_path, monkeypatch, name, options):
    stop = 4 if "every" in options else 7
    source = record(tmp_path / "in", drive(8, cameras=("/front", "/rear"), gap=60_000_000))
    whole = replay(source, tmp_path / f"whole_{name}", **options)
    with monkeypatch.context() as patched:
        stop_after(stop, patched)
        part = replay(source, tmp_path / name, **options)
    assert part.code == INTERRUPTED and part.figures["frames_out"] == stop
    assert "interrupted at" in part.figures["stopped"] and f"after {stop} percepts" in part.figures["stopped"]
    assert contents(tmp_path / name) == contents(tmp_path / f"whole_{name}")[: sum(part.figures["topics"].values())]
    again = replay(source, tmp_path / name, resume=True, **options)
    assert (again.code, again.figures["resumed_at"]) == (0, stop)
    assert (
        again.figures["output_sha256"] == whole.figures["output_sha256"]
        and again.figures["topics"] == whole.figures["topics"]
    )
    assert contents(tmp_path / name) == contents(tmp_path / f"whole_{name}")
    assert not states.checkpoint_file(tmp_path / name).exists()


def test_interrupted_twice(tmp_path, monkeypatch):
    source = record(tmp_path / "in", drive(14))
    whole = replay(source, tmp_path / "whole.mcap")
    for resume in (False, True):
        with monkeypatch.context() as patched:
            stop_after(4, patched)
            assert replay(source, tmp_path / "out.mcap", resume=resume).code == INTERRUPTED
    last = replay(source, tmp_path / "out.mcap", resume=True)
    assert last.figures["resumed_at"] == 8 and last.figures["output_sha256"] == whole.figures["output_sha256"]


def test_a_clock_that_jumped_back_does_not_matter(tmp_path, monkeypatch):
    jumped = [
        (topic, time - (40_000_000_000 if number >= 18 else 0), content)
        for number, (topic, time, content) in enumerate(drive(12))
    ]
    source = record(tmp_path / "in", jumped)
    whole = replay(source, tmp_path / "whole.mcap")
    with monkeypatch.context() as patched:
        stop_after(9, patched)
        replay(source, tmp_path / "out.mcap")
    again = replay(source, tmp_path / "out.mcap", resume=True)
    assert again.figures["output_sha256"] == whole.figures["output_sha256"]


def went_on(checkpoint):
    """Whether a checkpoint is not that of the beginning any more."""
    if not checkpoint.exists():
        return False
    with np.load(checkpoint) as arrays:
        return json.loads(str(arrays["about"]))["state"]["records"] > 0


def test_a_killed_process_goes_on_from_its_last_checkpoint(tmp_path):
    """SIGKILL at any moment: no code of ours runs, the checkpoint on the disk is all there is."""
    source = record(tmp_path / "in", drive(80, gap=50_000_000))
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"/**": {"ros__parameters": recorded.SMALL}}))
    command = [
        sys.executable,
        "-m",
        "dino_perception.cli",
        "replay",
        str(source),
        str(tmp_path / "out.mcap"),
        "--config",
        str(tmp_path / "config.yaml"),
        "--json",
        str(tmp_path / "figures.json"),
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    waited = time.monotonic()
    while not went_on(tmp_path / "out.mcap.resume") and process.poll() is None and time.monotonic() - waited < 120:
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    whole = replay(source, tmp_path / "whole.mcap")
    assert subprocess.run([*command, "--resume"], stdout=subprocess.DEVNULL).returncode == 0
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["resumed_at"] >= 50 and figures["output_sha256"] == whole.figures["output_sha256"]


def test_with_nothing_to_go_on_from_it_begins_or_has_ended(tmp_path):
    source = record(tmp_path / "in", drive(3))
    assert replay(source, tmp_path / "out.mcap", resume=True).figures["frames_out"] == 3
    done = replay(source, tmp_path / "out.mcap", resume=True)
    assert done.code == 0 and "there is nothing to resume" in done.lines[0]


def test_another_job_is_not_gone_on_with(tmp_path, monkeypatch):
    source = record(tmp_path / "in", drive(10))
    with monkeypatch.context() as patched:
        stop_after(4, patched)
        replay(source, tmp_path / "out.mcap")
    before = (tmp_path / "out.mcap").read_bytes()
    with pytest.raises(BagError, match="what it is to do has changed since: every; .*--force") as caught:
        replay(source, tmp_path / "out.mcap", resume=True, every=2)
    assert caught.value.code == USAGE and (tmp_path / "out.mcap").read_bytes() == before
    with pytest.raises(BagError, match="--force replaces it; --resume goes on with it"):
        replay(source, tmp_path / "out.mcap")


def test_a_damaged_checkpoint_is_refused_with_a_sentence(tmp_path):
    source = record(tmp_path / "in", drive(3))
    replay(source, tmp_path / "out.mcap")
    states.checkpoint_file(tmp_path / "out.mcap").write_bytes(b"PK nonsense")
    with pytest.raises(BagError, match="cannot be read .*; start anew with --force"):
        replay(source, tmp_path / "out.mcap", resume=True)


def test_a_checkpoint_file_holds_plain_data(tmp_path):
    """No pickle: whatever somebody puts in the file, loading it runs nothing."""
    state = State(
        5,
        7,
        1,
        3,
        2,
        {"camera": 3},
        {"/info": b"\1\2"},
        frozenset(["camera"]),
        {"next": [["camera", "depth", 9]]},
        {"camera": {"about": np.array("{}"), "_xy": np.arange(4.0)}},
    )
    Checkpoint(state, 99, [Topic("/a", "b/msg/C")], {"every": 2}).save(tmp_path / "x.resume")
    loaded = states.load(tmp_path / "x.resume", {"every": 2})
    assert loaded.end == 99 and loaded.topics == [Topic("/a", "b/msg/C")]
    assert (loaded.state.records, loaded.state.infos, loaded.state.labelled, loaded.state.demand) == (
        5,
        {"/info": b"\1\2"},
        {"camera"},
        state.demand,
    )
    np.testing.assert_array_equal(loaded.state.tracks["camera"]["_xy"], np.arange(4.0))
    np.savez(tmp_path / "evil.npz", about=np.array([object()], dtype=object))
    with pytest.raises(BagError, match="cannot be read"):
        states.load(tmp_path / "evil.npz", {})
    assert Part().every == 1


def test_weights_that_are_named_count_by_their_content(tmp_path, monkeypatch):
    """A released head goes by its name, and a released backbone by its id: what lies in the weights folder decides."""
    monkeypatch.setenv("DINO_PERCEPTION_WEIGHTS", str(tmp_path))
    settings = Settings.from_flat({"backbone": "dinov2-vits14", "heads": ["depth"], "depth.weights": "kitti-dpt"})
    assert weights_of(settings) == {"backbone": "", "depth": ""}
    head = tmp_path / head_catalog.find("dinov2-vits14", "kitti-dpt").file
    backbone = tmp_path / catalog.get("dinov2-vits14").file
    for file in (head, backbone):
        file.write_bytes(b"one")
    before = weights_of(settings)
    assert all(before.values())
    head.write_bytes(b"two")
    after = weights_of(settings)
    assert after["depth"] != before["depth"] and after["backbone"] == before["backbone"]
