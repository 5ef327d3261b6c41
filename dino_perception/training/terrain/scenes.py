"""Renders drives through many worlds to a folder, one file a drive: what the bundled model is trained on.

    python -m dino_perception.training.terrain.scenes --out SCENES --worlds 400 --size 240x320

A scene is an .npz with rgb (K, H, W, 3) uint8, depth (K, H, W) float16 metres with NaN in the sky, classes (K, H, W)
uint8, pose (K, 4, 4) float64 camera to world, intrinsics (4,) fx fy cx cy and rocks (M, 8) (rock_boxes.py). Its name holds style and seed; a file
that is there already is kept, so an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.progress import track

from dino_perception import results
from dino_perception.child_processes import end_with_parent
from dino_perception.training.pretraining.freed_memory import keep_freed_memory

if TYPE_CHECKING:  # loads in a second or two
    from dino_perception.training.terrain.world import World

HEIGHT = (1.04, 1.16)
"""Metres from the ground to the camera. One image cannot tell a low camera's near ground from a high one's far ground,
so a model of metric depth learns one mast, within a few percent."""
PITCH = (0.10, 0.30)
FIELD_OF_VIEW = (62.0, 70.0)
TALL, ROOM, AWAY = 0.15, 0.7, 14.0
"""Metres: rocks that a rover does not stand on, how far its middle stays from them, and from the world's middle."""
STEEPEST = 25.0
"""Degrees that a rover which stands is tilted at most."""


@dataclass(frozen=True)
class RenderJob:
    out: Path
    seed: int
    style: str
    height: int
    width: int
    frames: int
    drives: int
    suns: int
    rate_hz: float
    device: str
    beside: float = 0.0
    """Metres: over 0, each later light shows the first light's drives again, up to so far to the side and a little turned."""
    anywhere: bool = False
    """Whether the frames of a drive are looks from places on their own (`anywhere`) and not along a path."""


def render(job: RenderJob) -> Path:
    """One world under `suns` lights, `drives` drives of `frames` frames under each: one file a drive."""
    from dino_perception.training.terrain.world import PinholeCamera, World

    paths = [job.out / f"{job.style}-{job.seed}-{drive}.npz" for drive in range(job.suns * job.drives)]
    if all(path.exists() for path in paths):
        return paths[-1]
    rng = np.random.default_rng(job.seed)
    world = World(job.seed, job.style, device=job.device)
    for sun in range(job.suns):
        if sun:
            world.relight(job.seed * 17 + sun)
        camera = PinholeCamera.of(job.width, job.height, rng.uniform(*FIELD_OF_VIEW))
        numbers = range(sun * job.drives, (sun + 1) * job.drives)
        seeds = range(job.drives) if job.beside else numbers
        drives = [_drive(job, world, rng, seed, rng.uniform(*HEIGHT), rng.uniform(*PITCH)) for seed in seeds]
        if sun and job.beside:
            drives = [beside(world, drive, rng, job.beside) for drive in drives]
        seen = world.render(np.concatenate(drives), camera, first_frame=100 * sun)
        k = camera.k
        for i, (number, drive) in enumerate(zip(numbers, drives)):
            part, frames = paths[number].with_suffix(".part"), slice(i * job.frames, (i + 1) * job.frames)
            with part.open("wb") as file:
                np.savez(
                    file,
                    rgb=seen.rgb[frames],
                    depth=seen.depth[frames].astype(np.float16),
                    classes=seen.classes[frames],
                    pose=drive,
                    rocks=_of_frames(seen.rocks, frames),
                    intrinsics=np.array([k[0, 0], k[1, 1], k[0, 2], k[1, 2]]),
                )
            os.replace(part, paths[number])
    return paths[-1]


def _drive(
    job: RenderJob, world: World, rng: np.random.Generator, seed: int, height: float, pitch: float
) -> np.ndarray:
    """(frames, 4, 4) camera to world."""
    from dino_perception.training.terrain.drive import camera_mount

    if job.anywhere:
        return anywhere(world, rng, job.frames) @ camera_mount(height, pitch)
    return world.drive(job.frames, job.rate_hz, seed=seed, camera_height=height, camera_pitch=pitch)


def anywhere(world: World, rng: np.random.Generator, count: int) -> np.ndarray:
    """(count, 4, 4) base_link to world of a rover that stands somewhere, headed anywhere: off the rocks, but right before
    them and on every slope. A path over the clearest and most level ground (drive.py) shows none of that, and a head that
    has only seen such paths draws the near ground of a tilted view wrong."""
    from dino_perception.training.terrain.drive import standing

    rocks = world.rocks
    top = rocks.centre[:, 2] + rocks.axes[:, 2] - world.ground.height_at(rocks.centre[:, 0], rocks.centre[:, 1])
    tall = (top > TALL).cpu().numpy()
    at, radius = rocks.centre[:, :2].cpu().numpy()[tall], 0.5 * rocks.diameter.cpu().numpy()[tall]
    poses: list[np.ndarray] = []
    while len(poses) < count:
        x, y = rng.uniform(-AWAY, AWAY, 2)
        if (np.hypot(*(at - (x, y)).T) - radius).min(initial=np.inf) > ROOM:
            pose = standing(world.ground, x, y, rng.uniform(-np.pi, np.pi))
            if pose[2, 2] > np.cos(np.radians(STEEPEST)):
                poses.append(pose)
    return np.stack(poses)


def beside(world, drive: np.ndarray, rng: np.random.Generator, metres: float) -> np.ndarray:
    """The drive (N, 4, 4) again, up to so many metres to one side and up to 8 degrees turned, at its height over the
    ground."""
    import torch

    from dino_perception.training.terrain.drive import rotation

    moved = drive.copy()
    turn = rotation(np.radians(rng.uniform(-8, 8)), 0, 0)
    moved[:, :3, :3] = turn @ drive[:, :3, :3]
    moved[:, :2, 3] += rng.uniform(-metres, metres) * drive[:, :2, 0]  # the camera's x points right
    before, after = (
        world.ground.height_at(
            *(torch.tensor(p[:, i, 3], dtype=torch.float32, device=world.ground.device) for i in (0, 1))
        )
        for p in (drive, moved)
    )
    moved[:, 2, 3] += (after - before).double().cpu().numpy()
    return moved


def _of_frames(rocks: np.ndarray, frames: slice) -> np.ndarray:
    """The rows of some frames, which are then numbered from 0."""
    own = rocks[(rocks[:, 0] >= frames.start) & (rocks[:, 0] < frames.stop)]
    own[:, 0] -= frames.start
    return own


def main() -> None:
    from dino_perception.training.terrain.world import STYLES, TRAIN_STYLES

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=results.folder, required=True, help="folder for the scenes")
    parser.add_argument("--worlds", type=int, default=400, help="how many worlds")
    parser.add_argument("--first-seed", type=int, default=1, help="seed of the first world")
    parser.add_argument(
        "--styles", default=",".join(TRAIN_STYLES), help=f"any of {','.join(STYLES)}; worlds take turns"
    )
    parser.add_argument("--size", default="240x320", help="height x width in pixels")
    parser.add_argument("--frames", type=int, default=6, help="frames a drive")
    parser.add_argument("--rate", type=float, default=1.0, help="frames a second of driving, at 0.3 to 0.6 m/s")
    parser.add_argument("--drives", type=int, default=1, help="drives under each light, each in another place")
    parser.add_argument("--suns", type=int, default=2, help="lights a world")
    parser.add_argument(
        "--beside", type=float, default=0.0, metavar="M",
        help="show the first light's drives again under the others, up to so many metres to the side",
    )  # fmt: skip
    parser.add_argument(
        "--anywhere", action="store_true",
        help="frames from places on their own, before rocks and on slopes as well, instead of along the clearest path",
    )  # fmt: skip
    parser.add_argument("--workers", type=int, default=max(1, os.cpu_count() or 1))
    parser.add_argument("--device", default="cpu", help="torch device; four or five workers keep a GPU busy")
    arguments = parser.parse_args()
    height, width = (int(side) for side in arguments.size.split("x"))
    styles = arguments.styles.split(",")
    arguments.out.mkdir(parents=True, exist_ok=True)
    jobs = [
        RenderJob(
            arguments.out,
            arguments.first_seed + i,
            styles[i % len(styles)],
            height,
            width,
            arguments.frames,
            arguments.drives,
            arguments.suns,
            arguments.rate,
            arguments.device,
            arguments.beside,
            arguments.anywhere,
        )
        for i in range(arguments.worlds)
    ]
    with multiprocessing.get_context("spawn").Pool(arguments.workers, initializer=_begin) as pool:
        for _ in track(pool.imap_unordered(render, jobs), "worlds", total=len(jobs)):
            pass


def _begin() -> None:
    """Runs first in every worker: the workers share the cores, one each."""
    import torch

    end_with_parent()
    torch.set_num_threads(1)
    keep_freed_memory()


if __name__ == "__main__":
    main()
