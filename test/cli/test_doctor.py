"""The doctor names what is there, what is amiss and what to do, and survives an engine that kills its process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap

import pytest

from dino_perception.cli.__main__ import main
from dino_perception.engines import ENGINES
from dino_perception.measuring import inventory
from dino_perception.measuring.engine_trial import trial


def findings() -> dict[str, inventory.InventoryLine]:
    return {finding.name: finding for finding in inventory.inventory()}


def test_the_versions_are_those_that_run():
    import numpy
    import torch

    found = findings()
    assert found["numpy"].found == numpy.__version__
    assert found["torch"].found.startswith(torch.__version__)
    assert found["Python"].found.startswith(sys.version.split()[0])


def test_a_broken_check_is_a_finding_and_hides_no_other(monkeypatch):
    def _broken_thing():
        raise OSError("libnothing.so: cannot open")
        yield

    monkeypatch.setattr(inventory, "CHECKS", (_broken_thing, inventory._python))
    broken, python = inventory.inventory()
    assert (broken.name, broken.level) == ("broken thing", inventory.WRONG) and "libnothing.so" in broken.found
    assert python.level == inventory.OK


def test_a_fast_dds_profile_that_is_no_file_is_amiss(monkeypatch, tmp_path):
    monkeypatch.setenv("FASTRTPS_DEFAULT_PROFILES_FILE", str(tmp_path / "gone.xml"))
    found = list(inventory._large_images("rmw_fastrtps_cpp"))
    assert found[0].level == inventory.WRONG and "gone.xml" in found[0].found
    assert not list(inventory._large_images("rmw_cyclonedds_cpp"))


def test_an_engine_that_is_not_there_says_why():
    assert "NVIDIA" in trial("cuda")["unavailable"]


def test_an_engine_that_kills_its_process_is_a_line_in_the_table(tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text(
        textwrap.dedent("""
        import os, signal, sys
        if "dino_perception.measuring.engine_trial" in sys.orig_argv:
            os.kill(os.getpid(), signal.SIGSEGV)
        """)
    )
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    assert trial("torch") == {"engine": "torch", "error": "its process was killed by SIGSEGV"}


def test_an_engine_that_never_answers_is_given_up():
    assert trial("torch", limit_s=0.05)["error"] == "it had not started after 0 s"


def test_the_command_tries_the_engines_and_its_exit_code_says_whether_all_is_well(tmp_path):
    path = tmp_path / "doctor.json"
    done = subprocess.run(
        [sys.executable, "-m", "dino_perception.cli", "doctor", "--engines", "torch", "--json", path],
        capture_output=True,
        text=True,
        timeout=300,
    )
    data = json.loads(path.read_text())
    assert done.returncode == (1 if data["amiss"] else 0), done.stdout + done.stderr
    (torch_trial,) = data["engines"]
    assert torch_trial["precision"] == "float32" and torch_trial["pass_ms"] > 0
    assert "`engine: auto` takes torch here" in done.stdout


def test_an_unknown_engine_is_refused_with_those_there_are(capsys):
    assert main(["doctor", "--engines", "onnx"]) == 1
    said = capsys.readouterr().err
    assert all(name in said for name in ENGINES)


@pytest.mark.parametrize("name", ["rover-tiny", "rover-tiny-segmentation", "rover-tiny-depth"])
def test_the_bundled_weights_are_found(name):
    assert name in findings()["bundled weights"].found
