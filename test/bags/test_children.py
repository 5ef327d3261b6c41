"""The processes of a replay end when it ends, however it ends."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import recorded
import yaml
from recorded import drive, record

from dino_perception.bags.storage.problems import INTERRUPTED
from dino_perception.bags.storage.reader import BagReader

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are looked up in /proc")


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def below(pid):
    """The ids of all processes that a process started, and theirs."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid:
            found += [int(stat.parent.name), *below(int(stat.parent.name))]
    return found


def until(condition, seconds=120):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("several, number", [(True, signal.SIGKILL), (False, signal.SIGKILL), (True, signal.SIGTERM)])
def test_no_worker_is_left(tmp_path, several, number):
    (tmp_path / "in").mkdir()
    sources = [record(tmp_path / "in" / name, drive(400, gap=20_000_000)) for name in ("a", "b")[: 1 + several]]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"/**": {"ros__parameters": recorded.SMALL}}))
    out = tmp_path / ("out" if several else "out.mcap")
    where = [str(tmp_path / "in") if several else str(sources[0]), str(out)]
    arguments = ["replay", *where, "--workers", "2", "--config", str(tmp_path / "config.yaml")]
    process = subprocess.Popen(
        [sys.executable, "-m", "dino_perception.cli", *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    outputs = [out / "a.mcap", out / "b.mcap"] if several else [out]
    assert until(lambda: process.poll() is not None or all(o.exists() and o.stat().st_size > 9000 for o in outputs))
    children = below(process.pid)
    assert process.poll() is None and len(children) >= 2
    process.send_signal(number)
    assert process.wait(60) == (-number if number == signal.SIGKILL else INTERRUPTED)
    ended = until(lambda: not any(map(alive, children)), 10)
    for pid in filter(alive, children):
        os.kill(pid, signal.SIGKILL)
    assert ended
    for output in outputs:  # what there is can be read; after an orderly end it has its index, too
        with BagReader(output) as bag:
            assert bag.message_count > 0
            assert number == signal.SIGKILL or not bag.problems
