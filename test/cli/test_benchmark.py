"""`dino-perception benchmark` measures what it says: ratios are those of its times, the work that of the network."""

from __future__ import annotations

import json

import numpy as np
import pytest

from dino_perception.cli.__main__ import main
from dino_perception.engines.openvino import OpenVino
from dino_perception.measuring import core_benchmark as benchmark_run
from dino_perception.measuring import matrix_rate
from dino_perception.measuring.matrix_rate import MatrixRate
from dino_perception.perception.settings import Settings

KEYS = [
    "engine",
    "precision",
    "backbone",
    "heads",
    "head_precisions",
    "trained",
    "input",
    "batch",
    "stages_ms",
    "bare_backbone_ms",
    "pipeline_ms",
    "overhead_ratio",
    "one_pass_speedup",
    "gflops",
    "peak_gflops",
    "rss_mb",
]


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    if reason := OpenVino().unavailable():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("benchmark")
    page = folder / "page.md"
    page.write_text("<!-- benchmark cpu -->\n<!-- end -->\n")
    flags = [
        "--set",
        "output_height=32",
        "--set",
        "output_width=48",
        "--size",
        "64x96",
        "--engine",
        "openvino,torch",
        "--precision",
        "float32",
        "--rounds",
        "3",
        "--batch",
        "2",
        "--no-memory",
        "--set",
        "threads=1",
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(matrix_rate, "SIDE", 256)  # the machine's own rate is another test's
        places = ["--cache", str(folder), "--json", str(folder / "b.json"), "--page", str(page)]
        assert main(["benchmark", *flags, *places]) == 0
    return json.loads((folder / "b.json").read_text()), page.read_text()


def test_every_run_has_the_agreed_keys(measured):
    numbers, _ = measured
    assert [run["engine"] for run in numbers["runs"]] == ["openvino", "torch"]
    for run in numbers["runs"]:
        assert list(run) == KEYS
        assert (run["precision"], run["input"], run["batch"]) == ("float32", [64, 96], 2)
    assert {key: numbers[key] for key in KEYS} == numbers["runs"][0]


def test_stages_cover_the_pipeline_and_ratios_are_those_of_the_times(measured):
    for run in measured[0]["runs"]:
        stages = {name: ms["median"] for name, ms in run["stages_ms"].items()}
        assert {
            "decode",
            "preprocess",
            "backbone",
            "segmentation",
            "depth",
            "correspondences",
            "matching",
            "messages",
        } <= set(stages)
        assert all(ms["median"] <= ms["p95"] <= ms["p99"] for ms in run["stages_ms"].values())
        assert stages["backbone"] < stages["perceive"] < stages["pipeline"]
        assert min(stages[name] for name in ("odometry", "obstacles", "traversability")) > 0
        assert max(stages[name] for name in ("odometry", "obstacles", "traversability")) < stages["these three"]
        assert run["overhead_ratio"] == pytest.approx(stages["pipeline"] / stages["bare_backbone"])
        singles = [ms for name, ms in stages.items() if name.startswith("single ")]
        assert len(singles) == 3 and run["one_pass_speedup"] == pytest.approx(sum(singles) / stages["pipeline"])


def test_the_work_is_that_of_the_network(measured):
    """Counted by torch's own operation counter on the real graph."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    from dino_perception.models.checkpoints import load_backbone

    backbone = load_backbone("rover-tiny")
    graph = backbone.at(64, 96, backbone.spec.taps)
    counter = FlopCounterMode(display=False)
    with counter, sdpa_kernel(SDPBackend.MATH):  # the counter does not see into the fused attention of a CPU
        graph(graph.example(2))
    for run in measured[0]["runs"]:
        assert run["gflops"] * run["bare_backbone_ms"] * 1e6 == pytest.approx(counter.get_total_flops(), rel=1e-6)


def test_memory_is_that_of_a_process_of_its_own(tmp_path):
    settings = Settings.from_flat(
        {
            "input_height": 64,
            "input_width": 96,
            "output_height": 32,
            "output_width": 48,
            "heads": ["depth"],
            "engine": "torch",
        }
    )
    ballast = np.ones(int(2.5e8))  # 2 GB here, which the other process must not count
    assert 150 < benchmark_run._memory(settings, tmp_path, 1) < 1500
    assert ballast[-1] == 1


def test_the_page_holds_the_same_numbers(measured):
    numbers, page = measured
    assert f"| {numbers['runs'][0]['bare_backbone_ms']:.1f} |" in page
    assert "openvino float32 / torch float32" in page or "torch float32 / openvino float32" in page


def test_released_heads_are_compared_by_name_and_stand_in_for_each_other_when_they_are_not_here(tmp_path, monkeypatch):
    monkeypatch.setenv("DINO_PERCEPTION_WEIGHTS", str(tmp_path / "empty"))
    page = tmp_path / "page.md"
    page.write_text("<!-- released heads -->\n<!-- end -->\n")
    flags = ["--backbone", "dinov2-vits14", "--size", "56x84", "--released", "ade20k+kitti-linear,ade20k+kitti-dpt"]
    flags += [
        "--set",
        "output_height=28",
        "--set",
        "output_width=42",
        "--engine",
        "torch",
        "--rounds",
        "3",
        "--no-memory",
    ]
    files = ["--cache", str(tmp_path), "--json", str(tmp_path / "b.json"), "--page", str(page)]
    assert main(["benchmark", *flags, *files]) == 0
    linear, dpt = json.loads((tmp_path / "b.json").read_text())["runs"]
    assert linear["heads"] == {"segmentation": "ade20k", "depth": "kitti-linear"} and not linear["trained"]
    assert dpt["stages_ms"]["depth"]["median"] > 2 * linear["stages_ms"]["depth"]["median"]
    share = dpt["stages_ms"]["depth"]["median"] / dpt["bare_backbone_ms"]
    assert f"= {share:.2f} (float32) |" in page.read_text() and "random weights" in page.read_text()


def test_the_matrix_rate_is_that_of_numpys_products():
    """The same order as an independent library's on the same machine."""
    import time

    rate = MatrixRate("torch", "float32")
    a = np.random.default_rng(0).standard_normal((1536, 1536)).astype(np.float32)
    a @ a
    by_numpy = []
    for _ in range(3):
        rate.measure()
        start = time.perf_counter()
        a @ a
        by_numpy.append(2 * 1536**3 / (time.perf_counter() - start) / 1e9)
    assert 0.2 < rate.gflops / np.median(by_numpy) < 10


def test_the_sample_drive_gives_the_frames():
    frames = benchmark_run.frames(None, 3)
    assert len(frames) == 3 and all(f.dtype == np.uint8 and f.ndim == 3 and f.shape[2] == 3 for f in frames)
    assert not np.array_equal(frames[0], frames[1])


@pytest.mark.parametrize(
    "flags, sentence",
    [
        (["--size", "480"], "--size 480 is no HxW such as 480x640"),
        (["--rounds", "1"], "at least 1 frame and 3 rounds are needed"),
        (["--backbone", "resnet"], "resnet"),
        (["--backbone", "dinov2-vits14", "--released", "kitti-dpt+nyu-dpt"], "one of a kind: ade20k, ade20k-ms"),
        (["--released", "ade20k"], "accepted are released heads of rover-tiny, one of a kind: there are none"),
        (["--size", "100x100"], "100x100"),
    ],
)
def test_what_cannot_be_measured_is_one_sentence(flags, sentence, capsys, tmp_path):
    assert main(["benchmark", *flags, "--cache", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert sentence in error and error.count("\n") == 1


def test_a_topic_whose_messages_are_not_installed_is_not_measured(tmp_path, capsys):
    """~/place/global_descriptor is of rtabmap_msgs, which is not here."""
    flags = ["--engine", "torch", "--size", "64x96", "--rounds", "3", "--no-memory", "--cache", str(tmp_path / "cache")]
    flags += ["--set", "heads=[place]", "--set", "output_height=32", "--set", "output_width=48"]
    assert main(["benchmark", *flags, "--json", str(tmp_path / "out.json")]) == 0
    assert "place" in json.loads((tmp_path / "out.json").read_text())["stages_ms"]
