"""The installed commands may be imported: worker processes do so before they work."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

BIN = Path(__file__).parents[2] / "bin"


@pytest.mark.parametrize("command", sorted(path.name for path in BIN.iterdir()))
def test_a_worker_process_that_imports_the_command_does_not_run_it_again(command, monkeypatch):
    monkeypatch.setattr("sys.argv", [command, "--help"])  # run, it would end in SystemExit
    assert callable(runpy.run_path(str(BIN / command), run_name="__mp_main__")["main"])
