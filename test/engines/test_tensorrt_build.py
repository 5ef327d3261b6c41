"""The graphs that ship convert whole and build under a real TensorRT, by Torch-TensorRT and by our ONNX, without a GPU."""

from __future__ import annotations

import json
import platform
import sys
from pathlib import Path

import pytest
from begun_early import Job
from build_with_tensorrt import ARCHITECTURES, BACKBONES, DEFAULT, HEADER, PRECISIONS, WAYS, WHEELS, Row

SCRIPT = Path(__file__).with_name("build_with_tensorrt.py")

BUILDER = (WHEELS / "tensorrt_rtx_bindings").is_dir()
pytestmark = pytest.mark.skipif(
    not BUILDER,
    reason=f"TensorRT-RTX is not in {WHEELS}: "
    + (
        "`make tensorrt-rtx` brings it"
        if (platform.system(), platform.machine()) == ("Linux", "x86_64")
        else f"there are no wheels for {platform.system()} on {platform.machine()}"
    ),
)


def script(*arguments: str) -> list[str]:
    """It builds in a process of its own: its Torch-TensorRT must not be seen by other tests."""
    return [sys.executable, str(SCRIPT), "--json", *arguments]


EVERYTHING = Job("test_every_graph_is_converted_whole_and_built", lambda folder: [script()] if BUILDER else [])
BAD = Job(
    "test_a_graph_that_tensorrt_cannot_take_fails_this_check", lambda folder: [script("--bad")] if BUILDER else []
)


def rows(job: Job) -> list[Row]:
    """What the script builds."""
    (done,) = job.result()
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert found, done.stderr[-2000:]
    return [Row(**{**row, "lacking": tuple(row["lacking"])}) for row in found]


def test_every_graph_is_converted_whole_and_built(capsys):
    found = rows(EVERYTHING)
    with capsys.disabled():
        print(f"\n{HEADER}", *found, sep="\n")
    assert [str(row) for row in found if not row.whole] == []
    for way in WAYS:
        mine = [row for row in found if row.way == way]
        assert {row.architecture for row in mine} == set(ARCHITECTURES)
        assert {row.precision for row in mine} == set(PRECISIONS)
        assert {row.graph.split(",")[0] for row in mine} >= set(BACKBONES) - {"dinov3-vits16"}
        for kind in ("segmentation", "depth", "correspondences"):
            assert {row.precision for row in mine if f" {kind} " in row.graph} == set(PRECISIONS)
    sizes = [row.size for row in found if row.graph.startswith(DEFAULT)]
    assert len(sizes) == len(WAYS) and min(sizes) > 4e6  # two blocks with their weights, in bfloat16


def test_a_graph_that_tensorrt_cannot_take_fails_this_check():
    found = rows(BAD)
    assert [row.graph for row in found] == ["transposed convolution"] * 2 + ["max with indices"]
    assert not any(row.whole for row in found)
    assert all(row.error for row in found) and "aten.max.dim" in found[-1].lacking
