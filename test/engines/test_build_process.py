"""A new engine is built and first loaded in a process of its own: one that dies there is a rung that did not hold."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from deadly import Deadly, Double

from dino_perception import engines
from dino_perception.engines import build_process, cache, ladder
from dino_perception.engines.eager import Eager

X = (torch.ones(1, 3, 2, 2),)


@pytest.fixture
def said():
    return []


@pytest.fixture
def put(monkeypatch):
    """Puts an engine that dies as told, and after it the float32 reference, in place of the real ones."""

    def put(limit_s=60.0, **faults):
        engine = Deadly(faults, limit_s)
        monkeypatch.setattr(ladder, "ENGINES", {"deadly": engine, "torch": Eager()})
        return engine

    yield put
    build_process.BUILDS.close()


def start(said, folder, engine="deadly", **options):
    return engines.build(Double(), X, engine=engine, cache=folder, report=said.append, **options)


DEATHS = {
    "load": "its process died of SIGSEGV while loading it",
    "run": "its process died of SIGABRT while comparing it",
    "build": "its process ended with exit code 7 while building it",
}


@pytest.mark.parametrize("fault", DEATHS)
def test_an_engine_that_kills_its_process_is_a_failed_rung(fault, put, said, tmp_path):
    put(bfloat16=fault)
    compiled = start(said, tmp_path)
    assert compiled.info.precision == "float16" and torch.equal(compiled(*X)[0], 2 * X[0])
    (line,) = [line for line in said if "bfloat16" in line and "process" in line]
    assert DEATHS[fault] in line and "\n" not in line
    log = Path(line.partition("see ")[2])
    assert log.parent == tmp_path and log.exists()
    if fault != "build":
        assert "Fatal Python error" in log.read_text(), "the log says where Python was"
    assert DEATHS[fault] in compiled.info.reason


def test_one_that_died_is_never_loaded_again_until_it_is_forced(put, said, tmp_path):
    put(bfloat16="load")
    start(said, tmp_path)
    record = json.loads(next(tmp_path.glob("*bfloat16*.json")).read_text())
    assert record["blob"] is None and "SIGSEGV" in record["died"] and not list(tmp_path.glob("*bfloat16*.engine"))

    put()  # it would hold today, but nothing that the key covers has changed
    said.clear()
    again = start(said, tmp_path)
    assert again.info.precision == "float16" and again.info.from_cache
    assert any("died of SIGSEGV" in line and "compile --force" in line for line in said)

    forced = start(said, tmp_path, rebuild=True)
    assert forced.info.precision == "bfloat16" and not forced.info.from_cache
    assert start(said, tmp_path).info.from_cache, "and the mark is gone"


def test_a_clean_cache_forgets_the_mark(put, said, tmp_path):
    put(bfloat16="load")
    start(said, tmp_path)
    put()
    cache.clean(tmp_path)
    assert not list(tmp_path.iterdir()) and start(said, tmp_path).info.precision == "bfloat16"


def test_one_that_hangs_is_ended_at_its_limit(put, said, tmp_path, monkeypatch):
    monkeypatch.setattr(build_process, "PROGRESS_S", 1.0)
    put(limit_s=3.0, bfloat16="hang")
    assert start(said, tmp_path).info.precision == "float16"
    assert any("hung while loading it (no result in " in line for line in said)
    assert any("is still loading: " in line and "at most 3 s" in line for line in said)


def test_one_that_fails_says_its_own_sentence_and_is_tried_again(put, said, tmp_path):
    put(bfloat16="fail")
    start(said, tmp_path)
    assert any(line.endswith("deadly bfloat16: no kernel") for line in said)
    log = next(tmp_path.glob("*bfloat16*.log")).read_text()
    assert "and a page of trace" in log, "the rest is in the log"
    put()
    assert start(said, tmp_path).info.precision == "bfloat16"


def test_one_that_was_killed_from_outside_is_not_to_blame(put, said, tmp_path):
    put(bfloat16="killed")
    assert start(said, tmp_path).info.precision == "float16"
    assert any("died of SIGKILL while building it" in line for line in said)
    put()
    assert start(said, tmp_path).info.precision == "bfloat16"


def test_auto_ends_at_the_reference_when_all_die(put, said, tmp_path):
    put(bfloat16="load", float16="run", float32="build")
    compiled = start(said, tmp_path, engine="auto")
    assert compiled.info.engine == "torch" and compiled.info.reason.count("its process") == 3


def test_a_build_is_quiet_and_its_output_is_in_the_log(put, said, tmp_path, capfd):
    put(bfloat16="loud")
    start(said, tmp_path)
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")
    log = next(tmp_path.glob("*bfloat16*.log")).read_text()
    assert "a native library talks about kernels" in log and "a compiler warns" in log


def test_the_next_build_tells_how_long_the_last_took(put, said, tmp_path):
    put()
    start(said, tmp_path)
    start(said, tmp_path, rebuild=True)
    assert sum("building engine deadly bfloat16, about" in line for line in said) == 1


@pytest.mark.parametrize("isolated", [False, True], ids=["in this process", "in its own"])
def test_a_build_that_takes_its_time_says_so_with_how_long_the_last_one_took(
    put, said, tmp_path, monkeypatch, isolated
):
    monkeypatch.setattr(build_process, "PROGRESS_S", 0.1)
    put(bfloat16="slow").isolated = isolated
    start(said, tmp_path)
    lines = [line for line in said if "deadly bfloat16 is still building: " in line]
    assert lines and ("at most 60 s" in lines[0]) == isolated
    record = next(tmp_path.glob("*bfloat16*.json"))
    lasted = json.loads(record.read_text())["build_s"]
    said.clear()
    start(said, tmp_path, rebuild=True)
    assert any("is still building: " in line and f"of about {lasted:.0f} s" in line for line in said), said


def test_all_graphs_of_a_start_share_one_process(put, said, tmp_path):
    put()
    for name in ("backbone", "depth"):
        start(said, tmp_path, name=name)
    pids = {bytes(path.read_bytes()).split(b",")[0] for path in tmp_path.glob("*.engine")}
    assert len(pids) == 1 and str(os.getpid()).encode() not in pids.pop()


def test_a_process_that_went_home_is_called_again(put, said, tmp_path):
    put()
    start(said, tmp_path, name="backbone")
    build_process.BUILDS._child.stdin.close()  # it ends for want of work
    build_process.BUILDS._child.wait()
    assert start(said, tmp_path, name="depth").info.precision == "bfloat16"


def test_without_a_cache_it_is_isolated_all_the_same(put, said):
    put(bfloat16="load")
    compiled = engines.build(Double(), X, engine="deadly", report=said.append)
    assert compiled.info.precision == "float16" and any("SIGSEGV" in line for line in said)


def test_a_module_that_cannot_be_handed_over_is_built_here_and_that_is_said(put, said, tmp_path):
    class Local(Double):
        pass

    put()
    compiled = engines.build(Local(), X, engine="deadly", cache=tmp_path, report=said.append)
    assert compiled.info.precision == "bfloat16"
    assert any("cannot be handed to another process" in line and "built in this one" in line for line in said)


class Unwatched(Deadly):
    """One that is trusted and not isolated."""

    isolated = False


VICTIM = """
import sys, torch
sys.path.insert(0, {tests!r})
from deadly import Double
from test_build_process import Unwatched
from dino_perception import engines
from dino_perception.engines import ladder
ladder.ENGINES["deadly"] = Unwatched({{"bfloat16": "load"}})
engines.build(Double(), (torch.ones(1, 3, 2, 2),), engine="deadly", cache={cache!r})
"""


def test_a_trusted_engine_that_took_a_process_down_is_looked_at_from_outside(put, said, tmp_path, monkeypatch):
    script = VICTIM.format(tests=str(Path(__file__).parent), cache=str(tmp_path))
    assert subprocess.run([sys.executable, "-c", script]).returncode == -11
    monkeypatch.setattr(ladder, "ENGINES", {"deadly": Unwatched({"bfloat16": "load"})})
    assert start(said, tmp_path).info.precision == "float16", "this process lives, and goes on"
    assert any("died of SIGSEGV while loading it" in line for line in said)
    assert not list(tmp_path.glob("*.trying"))


def test_one_that_survives_alone_but_ends_its_processes_is_given_up(put, said, tmp_path):
    put()
    start(said, tmp_path)
    stem = next(tmp_path.glob("*bfloat16*.json")).stem
    (tmp_path / f"{stem}.trying").write_bytes(b"x")
    assert start(said, tmp_path).info.from_cache, "once may have been the power: it is tried apart, and used"
    (tmp_path / f"{stem}.trying").write_bytes(b"xxx")
    assert start(said, tmp_path).info.precision == "float16"
    assert any("3 processes ended while they built or loaded it" in line for line in said)


PARENT = """
import sys, torch
sys.path.insert(0, {tests!r})
from deadly import Deadly, Double
from dino_perception import engines
from dino_perception.engines import ladder, build_process
ladder.ENGINES["deadly"] = Deadly({{"bfloat16": "hang"}}, 600)
build_process.PROGRESS_S = 0.5
engines.build(Double(), (torch.ones(1, 3, 2, 2),), engine="deadly", cache={cache!r},
              report=lambda line: print(build_process.BUILDS._child and build_process.BUILDS._child.pid, line, flush=True))
"""


def test_the_process_ends_with_a_parent_that_is_killed(tmp_path):
    script = PARENT.format(tests=str(Path(__file__).parent), cache=str(tmp_path))
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    child = 0
    for line in parent.stdout:
        if "still loading" in line:
            child = int(line.split()[0])
            break
    parent.kill()
    parent.wait()
    for _ in range(100):
        if not _alive(child):
            return
        time.sleep(0.1)
    pytest.fail("the build process outlived its parent")


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
