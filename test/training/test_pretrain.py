"""The pretraining of the bundled backbone: where patches are seen again, what the losses reward, that a step learns."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from begun_early import Job
from safetensors.torch import load_file

from dino_perception.models.checkpoints import BUNDLED, load_backbone
from dino_perception.training.pretraining.pairs import Pairs, recoloured, seen, shrunk
from dino_perception.training.pretraining.pretrain import (
    FAR,
    attention_for,
    average_gradients,
    depth_loss,
    in_the_frame,
    match_loss,
)
from dino_perception.training.terrain.styles import BIG_ROCK

INTRINSICS = np.array([200.0, 200.0, 79.5, 47.5])
HEIGHT, WIDTH, PATCH = 96, 160, 16


def wall(distance: float) -> np.ndarray:
    return np.full((HEIGHT, WIDTH), distance, np.float32)


def places(depth: np.ndarray, pose: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """x and y of `seen` for one pair."""
    given = (torch.from_numpy(a)[None] for a in (depth, pose, INTRINSICS))
    return tuple(c.numpy() for c in seen(*given, PATCH)[0].unbind(-1))


def test_a_sideways_step_moves_every_patch_by_focal_length_times_step_over_distance():
    moved = np.eye(4)
    moved[0, 3] = 0.4
    x, y = places(np.stack([wall(5.0)] * 2), np.stack([np.eye(4), moved]))
    shift = 200.0 * 0.4 / 5.0 / PATCH
    columns = np.arange(WIDTH // PATCH)
    stays = columns * PATCH + PATCH // 2 - shift * PATCH >= 0
    assert np.allclose(x[:, stays], (columns - shift)[stays], atol=1e-9)
    assert np.allclose(y[:, stays], np.arange(HEIGHT // PATCH)[:, None])
    assert np.isnan(x[:, ~stays]).all() and (~stays).any()


def test_what_something_nearer_hides_and_what_has_no_depth_is_not_seen():
    depth = np.stack([wall(5.0), wall(5.0)])
    depth[1, :, :80] = 2.0  # a rock drove into the left half of the second image
    depth[0, :48] = np.nan  # sky in the upper half of the first
    x, _ = places(depth, np.stack([np.eye(4)] * 2))
    assert np.isnan(x[:, :5]).all() and np.isnan(x[:3]).all() and np.isfinite(x[3:, 5:]).all()


def test_descriptors_that_match_the_truth_cost_little_and_shuffled_ones_much():
    unit = torch.nn.functional.normalize(torch.randn(1, 60, 64, generator=torch.Generator().manual_seed(1)), dim=-1)
    rows, columns = torch.meshgrid(torch.arange(6.0), torch.arange(10.0), indexing="ij")
    target = torch.stack([columns, rows], dim=-1).reshape(1, 60, 2)
    target[0, :7] = torch.nan
    assert match_loss(unit, unit, target, 10) < 0.05
    assert match_loss(unit, unit.roll(3, dims=1), target, 10) > 5


def test_a_place_between_two_patches_asks_for_both_alike():
    first, second = torch.eye(4)[None, :1], torch.eye(4)[None, [1, 2, 3, 0]]
    target = torch.tensor([[[0.5, 0.0]]])  # between columns 0 and 1 of a 1 x 4 grid
    loss = match_loss(first, second, target, 4)
    log_p = torch.log_softmax(first @ second.transpose(1, 2) / 0.07, dim=-1)[0, 0]
    assert loss.item() == pytest.approx(-(log_p[0] + log_p[1]).item() / 2)


def test_depth_is_asked_for_in_ratios_and_only_where_it_is_known_and_near():
    truth = torch.tensor([[[2.0, 4.0, float("nan"), 2 * FAR]]])
    assert depth_loss(torch.tensor([[[4.0, 8.0, 1.0, 1.0]]]), truth).item() == pytest.approx(np.log(2))


def scene(folder, name: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    step = np.tile(np.eye(4), (3, 1, 1))
    step[:, 0, 3] = 0.05 * np.arange(3)
    picture = rng.integers(0, 255, (HEIGHT // 8, WIDTH // 8, 3), np.uint8).repeat(8, axis=0).repeat(8, axis=1)
    np.savez(
        folder / f"{name}.npz",
        rgb=np.stack([picture] * 3),
        depth=np.stack([wall(5.0)] * 3).astype(np.float16),
        classes=(picture[..., 0] // 52).astype(np.uint8)[None].repeat(3, axis=0),
        pose=step,
        intrinsics=INTRINSICS,
    )


def test_a_mirrored_pair_keeps_its_matches_and_its_labels(tmp_path):
    scene(tmp_path, "one", 1)
    pairs = Pairs(tmp_path, PATCH, None, seed=0)
    for _ in range(8):
        batch = pairs.batch(1)
        target = batch["target"][0].view(HEIGHT // PATCH, WIDTH // PATCH, 2)
        moved = (target[..., 0] - torch.arange(WIDTH // PATCH)).nan_to_num()
        signs = {int(s) for s in moved.sign().unique() if s}
        assert len(signs) == 1  # all one way: left, or right in the mirror or when driven backwards
        grey = batch["rgb"][0].float().mean(dim=-1)
        assert grey.shape == batch["classes"][0].shape == batch["depth"][0].shape


def test_a_crop_is_a_part_of_its_frame_and_its_matches_are_the_frames(tmp_path):
    scene(tmp_path, "one", 1)
    part = Pairs(tmp_path, PATCH, None, seed=0, crop=(48, 64))
    part._lit = lambda rgb, *_: rgb  # as it was rendered, so that the pictures can be compared
    frames = part._scene().rgb[0], part._scene().rgb[0].flip(1)
    shift = 200.0 * 0.05 / 5.0 / PATCH  # patches a frame; pairs are one or two frames apart
    places = set()
    for _ in range(12):
        batch = part.batch(1)
        row, column = batch["corner"][0].tolist()
        places.add((row, column))
        assert batch["rgb"].shape == (2, 48, 64, 3) and batch["corner"].tolist()[0] == batch["corner"].tolist()[1]
        y, x = PATCH * row, PATCH * column
        assert any(torch.equal(batch["rgb"][0], frame[y : y + 48, x : x + 64]) for frame in frames)
        target = batch["target"][0].view(3, 4, 2)
        moved = (target[..., 0] - torch.arange(4)).abs()
        assert moved[moved.isfinite()].div(shift).round().unique().tolist() in ([1.0], [2.0])
        assert ((target[..., 0] >= 0) & (target[..., 0] <= 3))[target[..., 0].isfinite()].all()
        assert target[..., 0].isnan().any()  # what left the crop
    assert len(places) > 5


def test_parts_know_their_place_and_one_in_three_is_about_a_big_rock(tmp_path):
    scene(tmp_path, "one", 1)
    with np.load(tmp_path / "one.npz") as file:
        whole = {key: file[key] for key in file.files}
    whole["classes"][:] = 0
    whole["classes"][:, 80:88, 144:160] = BIG_ROCK  # the lower right corner
    np.savez(tmp_path / "one.npz", **whole)
    pairs = Pairs(tmp_path, PATCH, None, seed=0)
    pairs._lit = lambda rgb, *_: rgb
    batch = pairs.parts(80, (32, 48))
    assert batch["rgb"].shape == (80, 32, 48, 3) and batch["classes"].shape == batch["depth"].shape == (80, 32, 48)
    frames = whole["rgb"][0], whole["rgb"][0][:, ::-1]
    for rgb, (row, column) in zip(batch["rgb"].numpy(), PATCH * batch["corner"].numpy()):
        assert any(np.array_equal(rgb, frame[row : row + 32, column : column + 48]) for frame in frames)
    with_rock = (batch["classes"] == BIG_ROCK).flatten(1).any(dim=1).float().mean()
    assert 0.2 < with_rock < 0.5  # 1 of 40 places otherwise


def test_a_crop_that_is_off_the_patch_grid_is_refused(tmp_path):
    scene(tmp_path, "one", 1)
    with pytest.raises(ValueError, match="the crop is 50x64 pixels; accepted are multiples of the patch, 16"):
        Pairs(tmp_path, PATCH, None, seed=0, crop=(50, 64))


def test_the_patches_of_a_crop_have_the_positions_that_they_have_in_the_frame():
    backbone = load_backbone("rover-tiny", "")
    frame, prefix = backbone.at(HEIGHT, WIDTH, (0,)), 1 + backbone.spec.registers
    table = in_the_frame(frame.cos, torch.tensor([[1, 2], [0, 0]]), (48, 64), (HEIGHT, WIDTH), backbone.spec)
    grid = frame.cos[prefix:].view(HEIGHT // PATCH, WIDTH // PATCH, -1)
    assert table.shape == (2, 1, prefix + 12, frame.cos.shape[1])
    assert torch.equal(table[0, 0, prefix:], grid[1:4, 2:6].flatten(0, 1)) and torch.equal(
        table[1, 0, prefix:], grid[:3, :4].flatten(0, 1)
    )
    assert torch.equal(table[:, 0, :prefix], frame.cos[:prefix].expand(2, -1, -1))
    # A crop of everything is the frame.
    picture = torch.randint(0, 255, (1, HEIGHT, WIDTH, 3), dtype=torch.uint8)
    wanted = frame(picture)[0]
    frame.cos, frame.sin = (
        in_the_frame(t, torch.zeros(1, 2, dtype=torch.int64), (HEIGHT, WIDTH), (HEIGHT, WIDTH), backbone.spec)
        for t in (frame.cos, frame.sin)
    )
    assert torch.allclose(frame(picture)[0], wanted, atol=1e-5)


def test_the_attention_of_few_tokens_is_another_way_to_the_same():
    backbone = load_backbone("rover-tiny", "")
    graph = backbone.at(HEIGHT, WIDTH, (7,))
    picture = torch.randint(0, 255, (1, HEIGHT, WIDTH, 3), dtype=torch.uint8)
    with torch.profiler.profile() as usual:
        wanted = graph(picture)[0]
    with torch.profiler.profile() as plain, attention_for((HEIGHT, WIDTH), backbone.spec, torch.device("cpu")):
        given = graph(picture)[0]
    fused = "aten::_scaled_dot_product_flash_attention_for_cpu"
    assert fused in {e.key for e in usual.key_averages()} and fused not in {e.key for e in plain.key_averages()}
    assert torch.allclose(given, wanted, atol=1e-4)
    with torch.profiler.profile() as large, attention_for((480, 640), backbone.spec, torch.device("cpu")):
        graph(picture)
    assert fused in {e.key for e in large.key_averages()}


def plain_and_compiled(folder):
    """Two runs that differ in `--compile` alone."""
    for seed in range(2):
        scene(folder, f"s{seed}", seed)
    command = [sys.executable, "-m", "dino_perception.training.pretraining.pretrain", "--scenes", folder]
    small = "--steps 2 --size 48x80 --crop 32x48 --parts 2 --part 32x48 --pairs 1 --rate 1e-2 --device cpu".split()
    return [
        [*command, "--out", folder / name, *small, *more]
        for name, more in (("plain.safetensors", []), ("compiled.safetensors", ["--compile"]))
        if COMPILER
    ]


COMPILER = shutil.which("g++") or shutil.which("clang++")
COMPILED = Job(
    "test_a_compiled_run_learns_what_a_plain_one_does",
    plain_and_compiled,
    {"TORCHINDUCTOR_CPP_CACHE_PRECOMPILE_HEADERS": "1"},
)


@pytest.mark.skipif(not COMPILER, reason="torch compiles with a C++ compiler: g++ or clang++")
def test_a_compiled_run_learns_what_a_plain_one_does():
    for run in COMPILED.result():
        assert run.returncode == 0, run.stderr
    plain, compiled = (load_file(COMPILED.folder / f"{name}.safetensors") for name in ("plain", "compiled"))
    start = load_backbone("rover-tiny", "").state_dict()
    moved = [(plain[k] - start[k]).norm() for k in ("patch.weight", "blocks.3.mlp.up.weight")]
    apart = [(plain[k] - compiled[k]).norm() for k in ("patch.weight", "blocks.3.mlp.up.weight")]
    assert all(a < 0.7 * m for a, m in zip(apart, moved))  # steps that had nothing in common: 1.4


@pytest.mark.parametrize(
    "device",
    [
        "cpu",
        pytest.param(
            "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="cuda: torch finds no NVIDIA GPU")
        ),
    ],
)
def test_a_short_run_writes_a_backbone_that_loads_as_trained_and_differs_from_its_start(tmp_path, device):
    for seed in range(2):
        scene(tmp_path, f"s{seed}", seed)
    out = tmp_path / "tiny.safetensors"
    run = subprocess.run(
        [
            sys.executable,
            "-m",
            "dino_perception.training.pretraining.pretrain",
            "--scenes",
            tmp_path,
            "--out",
            out,
            "--steps",
            "2",
            "--pairs",
            "1",
            "--device",
            device,
        ],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    backbone = load_backbone("rover-tiny", out)
    assert backbone.trained and backbone.weights_hash != load_backbone("rover-tiny", "").weights_hash


def test_a_run_goes_on_from_the_heads_that_lie_beside_a_backbone(tmp_path):
    for seed in range(2):
        scene(tmp_path, f"s{seed}", seed)
    for part in ("", "-segmentation", "-depth"):
        shutil.copy(BUNDLED / f"rover-tiny{part}.safetensors", tmp_path / f"rover-tiny{part}.safetensors")
    out = tmp_path / "on.safetensors"
    run = subprocess.run(
        [
            sys.executable,
            "-m",
            "dino_perception.training.pretraining.pretrain",
            "--scenes",
            tmp_path,
            "--out",
            out,
            "--resume",
            tmp_path / "rover-tiny.safetensors",
            "--steps",
            "1",
            "--pairs",
            "1",
            "--rate",
            "1e-6",
            "--device",
            "cpu",
        ],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    trained, shipped = load_file(f"{out}.heads"), load_file(BUNDLED / "rover-tiny-depth.safetensors")
    assert torch.allclose(trained["depth.net.out.weight"], shipped["net.out.weight"].float(), atol=1e-4)
    for head in ("segmentation", "depth"):  # the heads of an interrupted run go before those
        (tmp_path / f"on-{head}.safetensors").write_text("none")
    again = subprocess.run(
        [
            sys.executable,
            "-m",
            "dino_perception.training.pretraining.pretrain",
            "--scenes",
            tmp_path,
            "--out",
            f"{out}2",
            "--resume",
            out,
            "--steps",
            "1",
            "--pairs",
            "1",
            "--rate",
            "1e-6",
            "--device",
            "cpu",
        ],
        capture_output=True,
        text=True,
    )
    assert again.returncode == 0, again.stderr
    assert torch.allclose(
        load_file(f"{out}2.heads")["depth.net.out.weight"], trained["depth.net.out.weight"], atol=1e-4
    )


def test_a_shrunk_scene_is_seen_by_a_camera_that_sees_the_same_with_fewer_pixels(tmp_path):
    scene(tmp_path, "one", 3)
    with np.load(tmp_path / "one.npz") as file:
        whole = {key: file[key] for key in file.files}
    small = shrunk(whole, (HEIGHT // 2, WIDTH // 2))
    assert small["rgb"].shape == (3, HEIGHT // 2, WIDTH // 2, 3)
    assert np.allclose(
        small["rgb"][0], whole["rgb"][0].reshape(HEIGHT // 2, 2, WIDTH // 2, 2, 3).mean(axis=(1, 3)), atol=1
    )
    # A direction lies at corresponding places of both images: pixel edges at 0 and at the width stay where they are.
    fx, fy, cx, cy = whole["intrinsics"]
    direction = np.array([0.3, -0.2])
    before, after = (
        np.array([f * d + c for f, d, c in zip((k[0], k[1]), direction, (k[2], k[3]))])
        for k in (whole["intrinsics"], small["intrinsics"])
    )
    assert np.allclose((before + 0.5) / 2, after + 0.5)


def test_a_class_is_recoloured_and_the_others_are_left():
    rgb = torch.full((2, HEIGHT, WIDTH, 3), 100, dtype=torch.uint8)
    classes = torch.zeros(2, HEIGHT, WIDTH, dtype=torch.uint8)
    classes[:, :, 80:] = 2
    tints = torch.ones(2, 256, 3)
    tints[1, 2] = torch.tensor([1.5, 0.5, 3.0])
    plain, new = recoloured(rgb, classes, tints)
    assert torch.allclose(plain, torch.tensor(100.0))
    assert torch.allclose(new[:, :76], torch.tensor(100.0)) and torch.allclose(
        new[:, 84:], torch.tensor([150.0, 50.0, 300.0])
    )
    assert ((new[:, 76:84, 0] >= 99.9) & (new[:, 76:84, 0] <= 150.1)).all()
    assert (rgb == 100).all()


def test_pictures_of_a_pair_share_their_tints_and_every_picture_has_its_own_exposure(tmp_path):
    scene(tmp_path, "one", 1)
    pairs = Pairs(tmp_path, PATCH, None, seed=0)
    tints = []
    pairs._photographed = lambda rgb: tints.append(rgb) or rgb.to(torch.uint8)
    pairs._lit(
        torch.full((40, HEIGHT, WIDTH, 3), 100, dtype=torch.uint8), torch.zeros(40, HEIGHT, WIDTH, dtype=torch.uint8), 2
    )
    factor = (tints[0][:, 0, 0] / 100).log()
    assert torch.equal(factor[0::2], factor[1::2])
    drawn = (factor[0::2].abs() > 1e-3).all(dim=1)
    assert 0.4 < drawn.float().mean() < 1 and 0.1 < factor[0::2][drawn].std() < 0.35  # 70 % of them, by about 20 %
    pictures = Pairs(tmp_path, PATCH, None, seed=0)._photographed(torch.full((40, HEIGHT, WIDTH, 3), 100.0))
    levels = pictures.float().mean(dim=(1, 2))
    assert (
        pictures.dtype == torch.uint8 and levels.mean() == pytest.approx(100, abs=15) and levels.mean(dim=1).std() > 10
    )
    grey = (levels.amax(dim=1) - levels.amin(dim=1)) < 0.5
    assert 1 <= grey.sum() < 20
    assert pictures.float().std(dim=(1, 2)).max() < 0.02 * 256 + 1


def test_processes_that_share_a_step_write_one_backbone(tmp_path):
    for seed in range(2):
        scene(tmp_path, f"s{seed}", seed)
    out = tmp_path / "tiny.safetensors"
    run = subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node",
            "2",
            "-m",
            "dino_perception.training.pretraining.pretrain",
            "--scenes",
            tmp_path,
            "--out",
            out,
            "--steps",
            "20",
            "--size",
            "48x80",
            "--crop",
            "32x48",
            "--parts",
            "3",
            "--part",
            "32x32",
            "--pairs",
            "1",
            "--device",
            "cpu",
        ],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert load_backbone("rover-tiny", out).trained
    assert len((tmp_path / "tiny.safetensors.log.jsonl").read_text().splitlines()) == 1


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are counted in /proc, which Linux has")
def test_no_thread_of_the_process_group_outlives_the_run(tmp_path):
    """One that does can want the interpreter while it ends: one run in thirty ended with an abort."""
    scene(tmp_path, "one", 1)
    code = (
        "import os; from dino_perception.training.pretraining.pretrain import main; main(); "
        "print(sorted(open(f'/proc/self/task/{t}/comm').read().strip() for t in os.listdir('/proc/self/task')))"
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    run = subprocess.run(
        [
            sys.executable,
            "-c",
            code,
            "--scenes",
            tmp_path,
            "--out",
            tmp_path / "tiny.safetensors",
            "--steps",
            "1",
            "--pairs",
            "1",
            "--device",
            "cpu",
        ],
        capture_output=True,
        text=True,
        env=dict(os.environ, RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)),
    )
    assert run.returncode == 0, run.stderr
    assert "python" in run.stdout and "gloo" not in run.stdout, run.stdout


def test_gradients_of_processes_become_their_mean(monkeypatch):
    parameters = [
        torch.nn.Parameter(torch.zeros(2)),
        torch.nn.Parameter(torch.zeros(3)),
        torch.nn.Parameter(torch.zeros(1)),
    ]
    parameters[0].grad, parameters[1].grad = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0, 5.0])
    monkeypatch.setattr(
        torch.distributed, "all_reduce", lambda flat: flat.add_(torch.arange(5.0))
    )  # another's gradients
    average_gradients(parameters, 2)
    assert parameters[0].grad.tolist() == [0.5, 1.5] and parameters[1].grad.tolist() == [2.5, 3.5, 4.5]
    assert parameters[2].grad is None


def test_a_folder_without_scenes_is_named(tmp_path):
    with pytest.raises(SystemExit, match="holds no scenes"):
        Pairs(tmp_path, PATCH, None, seed=0)
