#!/usr/bin/env python3
"""Everything that a GPU owner can tell us in under eight minutes: `.venv/bin/python tools/gpu_check.py --json gpu.json`.

It runs `doctor`, the tests that need a GPU, the benchmark of ViT-S+, B and L at batch 1, 4 and 8, a profile of one pass
by group of kernels, and a replay of the sample drive. Each step has its share of the time; what it does not finish is
told as such. A summary of at most 40 lines is printed and everything is written as JSON. Without a GPU it runs the same
on the CPU with the bundled backbone, as a rehearsal.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
TOTAL_S = 470.0
SHARES = {"doctor": 60.0, "tests": 90.0, "benchmark": 220.0, "profile": 50.0, "replay": 50.0}
"""Seconds each step may take; what one leaves over, the next may use."""

GROUPS = {
    "matrix products": r"gemm|cutlass|cublas|matmul|addmm|xmma|nvjet|mm_|_mm|linear",
    "attention": r"flash|attention|fmha|sdpa",
    "convolution": r"conv|cudnn",
    "norms": r"norm",
    "softmax and reductions": r"softmax|reduce|argmax|sum|max",
    "resize": r"upsample|interpolat",
    "copies and casts": r"copy|memcpy|memset|cat|_to_copy",
    "fused by inductor": r"triton",
    "element by element": r"elementwise|vectorized|add|mul|gelu|silu|sigmoid",
}
"""Kernel groups by what their names hold; the first that fits counts."""

PROFILE = """
import json, sys, torch
from dino_perception.engines.parity_pictures import FOLDER, read
from dino_perception.perception.frame import Frame
from dino_perception.perception.perceiver import Perceiver
from dino_perception.perception.settings import Settings
p = Perceiver(Settings.from_flat(json.loads(sys.argv[1])), report=lambda line: print(line, file=sys.stderr))
frames = [Frame("c", i, "c", read(path)) for i, path in enumerate(sorted(FOLDER.glob("*.jpg")))]
for _ in range(3):
    [p.perceive([f]) for f in frames]
kinds = [torch.profiler.ProfilerActivity.CPU]
kinds += [torch.profiler.ProfilerActivity.CUDA] if p.device.type == "cuda" else []
with torch.profiler.profile(activities=kinds) as prof:
    [p.perceive([f]) for f in frames]
gpu = p.device.type == "cuda"
rows = [(e.key, (e.self_device_time_total if gpu else e.self_cpu_time_total) / 1e3 / len(frames))
        for e in prof.key_averages() if not gpu or e.device_type.name == "CUDA"]
print(json.dumps({"engine": p.describe()["graphs"][0], "kernels": rows}))
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path, default=Path("gpu_check.json"), metavar="FILE")
    args = parser.parse_args()
    import torch

    gpu = torch.cuda.is_available()
    begun, found = time.monotonic(), {"torch": torch.__version__, "gpu": torch.cuda.get_device_name() if gpu else ""}
    with tempfile.TemporaryDirectory() as folder:
        spare = TOTAL_S - sum(SHARES.values())
        for name, share in SHARES.items():
            start, limit = time.monotonic(), share + max(0.0, spare)
            found[name] = STEPS[name](gpu, Path(folder), limit)
            spare = limit - (time.monotonic() - start)
            found[name]["seconds"] = round(time.monotonic() - start, 1)
            print(f"{name}: {found[name]['seconds']} s", file=sys.stderr)
    found["seconds"] = round(time.monotonic() - begun, 1)
    args.json.write_text(json.dumps(found, indent=1) + "\n")
    print("\n".join(summary(found)[:40]))
    return 0


def doctor(gpu: bool, folder: Path, limit_s: float) -> dict[str, Any]:
    return _command([*CLI, "doctor", "--json", str(folder / "doctor.json")], limit_s, folder / "doctor.json")


def tests(gpu: bool, folder: Path, limit_s: float) -> dict[str, Any]:
    where = ["test/engines", "test/perception"]
    return _command([sys.executable, "-m", "pytest", "-q", "-m", "gpu or tensorrt", *where], limit_s)


def benchmark(gpu: bool, folder: Path, limit_s: float) -> dict[str, Any]:
    backbones = ("dinov3-vits16plus", "dinov3-vitb16", "dinov3-vitl16") if gpu else ("rover-tiny",)
    batches, rounds = ("1,4,8", "20") if gpu else ("1", "3")
    found: dict[str, Any] = {"runs": []}
    end = time.monotonic() + limit_s
    for backbone in backbones:  # one at a time, so that a slow machine still tells something
        path = folder / f"{backbone}.json"
        command = [*CLI, "benchmark", "--backbone", backbone, "--engine", "cuda,torch" if gpu else "openvino,torch"]
        command += ["--batch", batches, "--rounds", rounds, "--no-memory", "--json", str(path)]
        one = _command([*command, "--set", "allow_untrained=true"], end - time.monotonic(), path)
        found["runs"] += one.get("result", {}).get("runs", [])
        found.setdefault("problems", []).extend([f"{backbone}: {one['problem']}"] if "problem" in one else [])
    return found


def profile(gpu: bool, folder: Path, limit_s: float) -> dict[str, Any]:
    settings = {"backbone": "dinov3-vits16plus" if gpu else "rover-tiny", "engine": "cuda" if gpu else "torch"}
    done = _command([sys.executable, "-c", PROFILE, json.dumps({**settings, "allow_untrained": True})], limit_s)
    if "problem" in done:
        return done
    seen = json.loads(done["tail"][-1])
    groups: dict[str, float] = {}
    for name, ms in seen["kernels"]:
        group = next((g for g, what in GROUPS.items() if re.search(what, name, re.IGNORECASE)), "other")
        groups[group] = groups.get(group, 0.0) + ms
    return {"engine": seen["engine"], "groups_ms": dict(sorted(groups.items(), key=lambda item: -item[1]))}


def replay(gpu: bool, folder: Path, limit_s: float) -> dict[str, Any]:
    heads = ["--set", "heads=[segmentation, depth]"]
    path = folder / "replay.json"
    command = [*CLI, "replay", str(ROOT / "data" / "sample_drive"), str(folder / "out.mcap"), *heads]
    return _command([*command, "--json", str(path)], limit_s, path)


STEPS = {"doctor": doctor, "tests": tests, "benchmark": benchmark, "profile": profile, "replay": replay}
CLI = [sys.executable, "-m", "dino_perception.cli"]


def _command(command: list[str], limit_s: float, result: Path | None = None) -> dict[str, Any]:
    """{"tail": last lines, "result": its JSON, "problem": one sentence when it failed or was too slow}."""
    try:
        done = subprocess.run(
            command, cwd=ROOT, timeout=max(1.0, limit_s), text=True, capture_output=True,
            env={**os.environ, "COLUMNS": "120"},
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return {"problem": f"not done after {limit_s:.0f} s"}
    found: dict[str, Any] = {"tail": done.stdout.strip().splitlines()[-3:]}
    if result and result.exists():
        found["result"] = json.loads(result.read_text())
    if done.returncode:
        said = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        found["problem"] = f"exit code {done.returncode}: {said[-1] if said else ''}"
    return found


def summary(found: dict[str, Any]) -> list[str]:
    lines = [f"torch {found['torch']}, {found['gpu'] or 'no GPU: a rehearsal on the CPU'}, {found['seconds']:.0f} s"]
    for trial in found["doctor"].get("result", {}).get("engines", []):
        lines.append("doctor: " + ", ".join(f"{k} {v}" for k, v in trial.items() if not isinstance(v, dict))[:150])
    lines += [f"{step}: {found[step]['problem'][:150]}" for step in SHARES if "problem" in found[step]]
    lines += [f"tests: {line}" for line in found["tests"].get("tail", [])[-1:]]
    for run in found["benchmark"]["runs"]:
        lines.append(
            f"{run['backbone']} batch {run['batch']} {run['engine']} {run['precision']}: backbone "
            f"{run['bare_backbone_ms']:.2f} ms, pipeline {run['pipeline_ms']:.2f} ms, "
            f"{run['gflops'] / run['peak_gflops']:.0%} of the matrix rate"
        )
    lines += [f"benchmark: {problem[:150]}" for problem in found["benchmark"].get("problems", [])]
    groups = found["profile"].get("groups_ms", {})
    total = sum(groups.values()) or 1.0
    lines += [f"profile: {group} {ms:.2f} ms ({ms / total:.0%})" for group, ms in groups.items()]
    lines += [f"replay: {line}" for line in found["replay"].get("tail", [])[-2:]]
    return lines


if __name__ == "__main__":
    sys.exit(main())
