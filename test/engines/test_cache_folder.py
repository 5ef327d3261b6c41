"""Native code is loaded from the cache, so a folder that others can write to is not one."""

import contextlib
import json
import os
import stat
import subprocess
import sys

import pytest

from dino_perception.engines import cache_folder
from dino_perception.engines.cache import SEAL, CachedEngine
from dino_perception.engines.cache_folder import default_folder, distrust, private_folder, tidy, usable_folder

DESCRIPTION = {"name": "backbone", "engine": "openvino", "precision": "float32", "shape": [1, 2]}


@pytest.fixture(autouse=True)
def fresh(monkeypatch, tmp_path):
    monkeypatch.setattr(cache_folder, "_told", set())
    monkeypatch.setattr(cache_folder, "_tidied", set())
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))


def test_a_new_folder_is_for_its_user_alone(tmp_path):
    said = []
    folder = usable_folder(tmp_path / "a" / "cache", said.append)
    assert folder == tmp_path / "a" / "cache" and not said
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o757])
def test_a_folder_that_everybody_can_write_to_is_not_used_and_that_is_said_once(tmp_path, mode):
    folder, said = tmp_path / "open", []
    folder.mkdir()
    folder.chmod(mode)
    used = {usable_folder(folder, said.append) for _ in range(3)}
    assert used == {private_folder()} and folder not in used
    assert len(said) == 1 and str(folder) in said[0] and "every user can write" in said[0]


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder away")
def test_a_folder_of_somebody_else_is_not_used_nor_one_that_they_put_in_the_private_ones_place(tmp_path):
    folder = tmp_path / "theirs"
    folder.mkdir()
    os.chown(folder, 12345, 12345)
    assert "12345" in distrust(folder)
    taken = private_folder()
    os.chown(taken, 12345, 12345)
    instead = usable_folder(folder, lambda line: None)
    assert instead not in (folder, taken) and not distrust(instead)


def test_without_a_home_the_cache_is_a_private_one(tmp_path):
    code = (
        "import os\nos.environ.pop('HOME', None); os.environ.pop('XDG_CACHE_HOME', None)\n"
        "import pwd\ndef none(uid): raise KeyError(uid)\npwd.getpwuid = none\n"
        "from dino_perception.engines.cache_folder import default_folder, distrust\n"
        "f = default_folder(); assert f.is_dir() and not distrust(f); print(f)"
    )
    env = {**os.environ, "TMPDIR": str(tmp_path / "tmp")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert done.returncode == 0 and done.stdout.startswith(str(tmp_path / "tmp")), done.stderr


def test_a_relative_place_in_the_environment_is_no_place(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "here")  # the specification says to ignore it
    assert default_folder().is_absolute()


def stored(folder, **changes):
    """An entry with a record and an engine of a few bytes."""
    entry = CachedEngine(folder, {**DESCRIPTION, **changes})
    with entry.locked(lambda line: None):
        record, _ = entry.store(b"engine" * 10)
        entry.commit({**record, "parity": {"outputs": [{"kind": "features", "nonfinite": 0, "cosine_mean": 0.999}]}})
    return entry


def test_what_a_kill_left_is_removed_at_the_next_start_and_whole_entries_stay(tmp_path):
    whole, killed, held = (stored(tmp_path, shape=[n]) for n in range(3))
    for entry in (whole, killed, held):
        (tmp_path / f"{entry.stem}-12345678.engine.part").write_bytes(b"half")
        (tmp_path / f"{entry.stem}-12345678.engine").write_bytes(b"without a record")
    killed.record_path.unlink()
    with contextlib.ExitStack() as stack:
        code = (
            "import fcntl, sys, time\nf = open(sys.argv[1], 'r+b')\nfcntl.flock(f, fcntl.LOCK_EX)\n"
            "print('held', flush=True)\nsys.stdin.read()"
        )
        process = stack.enter_context(
            subprocess.Popen(
                [sys.executable, "-c", code, str(tmp_path / f"{held.stem}.lock")],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
        )
        process.stdout.readline()
        usable_folder(tmp_path, lambda line: None)
        process.stdin.close()
    left = {
        entry.stem: [p for p in tmp_path.iterdir() if p.name.startswith(entry.stem)] for entry in (whole, killed, held)
    }
    assert whole.read()[0] and whole.blob(whole.read()[0])[0] is not None
    assert sorted(p.suffix for p in left[whole.stem]) == [".engine", ".json", ".lock"]
    assert [p.suffix for p in left[killed.stem]] == [".lock"]
    assert len(left[held.stem]) == 5, "another process has it in hand"
    tidy(tmp_path)
    assert len([p for p in tmp_path.iterdir() if p.name.startswith(held.stem)]) == 3


def test_every_flipped_byte_of_a_record_is_seen(tmp_path):
    entry = stored(tmp_path)
    good = entry.record_path.read_bytes()
    assert entry.read()[0]["parity"]["outputs"][0]["cosine_mean"] == 0.999
    believed = json.loads(good)
    for at in range(len(good)):
        bad = bytearray(good)
        bad[at] ^= 1
        entry.record_path.write_bytes(bytes(bad))
        record, why = entry.read()
        # A flip between the values, or in the seal's own name, changes none of them.
        assert (record is None and why) or _differs(believed, record) <= {SEAL}, (at, record)


def _differs(believed, record):
    return {name for name, value in believed.items() if record.get(name) != value}
