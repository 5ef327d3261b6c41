"""Scenes for pretraining: one file a drive, each in another place, all drives of a light through one camera."""

from __future__ import annotations

import numpy as np
import torch

from dino_perception.training.pretraining.pairs import seen
from dino_perception.training.terrain.scenes import RenderJob, anywhere, render
from dino_perception.training.terrain.world import World


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


def test_anywhere_stands_on_slopes_and_right_before_rocks_but_on_none():
    world = World(11, "mars")
    somewhere, path = anywhere(world, np.random.default_rng(0), 24), world.rover_drive(24, 1.0).base
    tilt = [np.degrees(np.arccos(poses[:, 2, 2])) for poses in (somewhere, path)]
    assert tilt[0].max() > 2 * tilt[1].max() and tilt[0].max() < 25
    assert np.ptp(somewhere[:, :2, 3], axis=0).min() > 10
    rocks = world.rocks
    over = rocks.centre[:, 2] + rocks.axes[:, 2] - world.ground.height_at(rocks.centre[:, 0], rocks.centre[:, 1])
    at, radius = (values.numpy()[over.numpy() > 0.15] for values in (rocks.centre[:, :2], 0.5 * rocks.diameter))
    away = (np.linalg.norm(somewhere[:, None, :2, 3] - at, axis=2) - radius).min(1)
    assert away.min() > 0.5 and away.min() < 2
