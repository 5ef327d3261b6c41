"""One engine tried on the bundled model: does it start here, is it right, how fast is it?

Each trial is a process of its own: native code that kills it, or never comes back, is a result and no accident.
`python -m dino_perception.measuring.engine_trial NAME` is that process; its last line is the result as JSON.
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROUNDS, MEASURED_S = 20, 1.5
"""Frames that are timed: so many, or three and as many as there is time for."""

LIMIT_S = 300.0
"""A first start builds the engines of the bundled model: seconds on a CPU, a minute or two on a small GPU."""

BACKBONE = "rover-tiny"


def trial(engine: str, *, limit_s: float = LIMIT_S, cache: Path | None = None, threads: int = 0) -> dict[str, Any]:
    """What became of `engine`: {"engine", "unavailable"} where it cannot run here, {"engine", "error"} where it should
    and does not, else {"engine", "precision", "device", "parity", "pass_ms", "start_s", "from_cache"}.

    `pass_ms` is the median of one frame through the backbone and both dense heads; `parity` is how near each graph is
    to float32 torch, in words."""
    if why := _unavailable(engine):
        return {"engine": engine, "unavailable": why}
    command = [sys.executable, "-m", "dino_perception.measuring.engine_trial", engine, str(threads)]
    if cache:
        command.append(str(cache))
    with tempfile.TemporaryFile("w+") as log:
        try:
            done = subprocess.run(command, stdout=subprocess.PIPE, stderr=log, text=True, timeout=limit_s)
        except subprocess.TimeoutExpired:
            return {"engine": engine, "error": f"it had not started after {limit_s:.0f} s"}
        log.seek(0)
        said = [line for line in log.read().splitlines() if line.strip()]
    last = (done.stdout.strip().splitlines() or [""])[-1]
    if done.returncode == 0 and last.startswith("{"):
        return json.loads(last)
    if done.returncode < 0:
        return {"engine": engine, "error": f"its process was killed by {signal.Signals(-done.returncode).name}"}
    return {"engine": engine, "error": said[-1] if said else f"its process ended with code {done.returncode}"}


def _unavailable(engine: str) -> str:
    from dino_perception.engines import ENGINES

    try:
        return ENGINES[engine].unavailable()
    except Exception as error:  # a runtime that is installed and broken
        return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"


def look(engine: str, threads: int, cache: Path | None) -> dict[str, Any]:
    """The trial itself, in this process. Raises whatever the engine does."""
    from dino_perception.engines import summary
    from dino_perception.engines.parity_pictures import FOLDER, read
    from dino_perception.perception.frame import Frame
    from dino_perception.perception.perceiver import Perceiver
    from dino_perception.perception.settings import Settings

    heads = ["segmentation", "depth"]
    settings = Settings.from_flat({"backbone": BACKBONE, "heads": heads, "engine": engine, "threads": threads})
    perceiver = Perceiver(settings, cache=cache, report=lambda line: print(line, file=sys.stderr, flush=True))
    pictures = [read(path) for path in sorted(FOLDER.glob("*.jpg"))]
    frames = [Frame("camera", number, "camera", picture, None) for number, picture in enumerate(pictures)]
    perceiver.perceive(frames[:1], [heads])
    times: list[float] = []
    while len(times) < 3 or (len(times) < ROUNDS and sum(times) < MEASURED_S * 1e3):
        start = time.perf_counter()
        perceiver.perceive([frames[len(times) % len(frames)]], [heads])
        times.append((time.perf_counter() - start) * 1e3)
    about = perceiver.describe()
    perceiver.close()
    return {
        "engine": about["engine"],
        "precision": about["precision"],
        "device": about["device"],
        "parity": {name: summary(record) if record else "the reference" for name, record in about["parity"].items()},
        "pass_ms": statistics.median(times),
        "start_s": about["start_s"],
        "from_cache": about["from_cache"],
    }


def main() -> int:
    result = look(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]) if len(sys.argv) > 3 else None)
    print(json.dumps(result), flush=True)
    os._exit(0)  # some runtimes crash while they are taken down, which is not what was asked


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Exception as error:
        print(f"{type(error).__name__}: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(1)
