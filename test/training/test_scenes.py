"""Scenes for pretraining: one file a drive, each in another place, all drives of a light through one camera."""

from __future__ import annotations

import numpy as np
import torch

from dino_perception.training.pretraining.pairs import seen
from dino_perception.training.terrain.scenes import RenderJob, render


def test_every_drive_is_a_file_and_its_two_frames_see_the_same_ground(tmp_path):
    job = RenderJob(
        tmp_path, seed=11, style="mars", height=96, width=128, frames=2, drives=2, suns=2, rate_hz=0.5, device="cpu"
    )
    render(job)
    files = [np.load(tmp_path / f"mars-11-{number}.npz") for number in range(4)]
    assert len(list(tmp_path.iterdir())) == 4
    for file in files:
        assert file["rgb"].shape == (2, 96, 128, 3) and file["classes"].shape == file["depth"].shape == (2, 96, 128)
        depth, pose, intrinsics = (torch.from_numpy(file[key])[None] for key in ("depth", "pose", "intrinsics"))
        assert (
            torch.isfinite(seen(depth, pose, intrinsics, 16)[..., 0]).float().mean() > 0.15
        )  # were the frames mixed up: none
    places = np.stack([file["pose"][0, :2, 3] for file in files])
    apart = np.linalg.norm(places[:, None] - places[None], axis=2)[~np.eye(4, dtype=bool)]
    assert apart.min() > 0.3
    first, second, third, _ = (file["intrinsics"][0] for file in files)
    assert first == second != third  # a camera a light

    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    render(job)
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}  # kept, not made again
