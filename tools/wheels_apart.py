"""Wheels that tests want and the environment must not see, in a folder of their own below .venv/opt."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def put(folder: Path, wanted: str, asked: Sequence[str], what: str, first: str = "") -> None:
    """Have `folder` hold what pip brings for the arguments `asked`, without dependencies; `wanted` is that in words, and
    what is there already is kept. `first` is said before a download, and one line says where `what` cannot be had."""
    stamp = folder / "installed.txt"
    if stamp.is_file() and stamp.read_text() == wanted:
        return
    if first:
        print(first, flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    pip = [str(ROOT / ".venv" / "bin" / "python"), "-m", "pip", "install", "--no-input", "--quiet", "--no-deps"]
    command = [*pip, "--retries", "1", "--timeout", "30", "--target", str(folder), *asked]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        why = (done.stderr.strip().splitlines() or ["pip did not say why"])[-1]
        print(f"{what}: {why}", flush=True)
        shutil.rmtree(folder, ignore_errors=True)
        return
    stamp.write_text(wanted)
