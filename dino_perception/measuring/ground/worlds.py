"""Drives through rendered worlds with what a robot may not drive on: level ones, steep hills, trenches."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

from dino_perception.perception.frame import CameraModel, Depth, Frame, Percept, Segmentation
from dino_perception.perception.geometry import scale_camera
from dino_perception.perception.pose import Pose
from dino_perception.perception.settings import RobotSettings
from dino_perception.training import terrain
from dino_perception.training.terrain import drive as terrain_drive
from dino_perception.training.terrain.noise import stream
from dino_perception.training.terrain.styles import CLASSES

if TYPE_CHECKING:  # loads in a second or two
    from dino_perception.training.terrain.world import World

KINDS = {"level": {}, "hills of 20 degrees": {"slope": 20.0}, "trenches": {"ditches": 6}}
"""What is asked of a world, by what its rows are called."""
FRAMES, RATE = 10, 1.0
"""Frames of a drive, and how many a second: some five metres."""
SPEED, EXTENT = 0.5, 7.0
"""Metres a second, and metres around the origin within which drives begin."""
SIZE, HEIGHT, PITCH = (480, 640), 1.1, 0.2
CELL = 0.2
"""Metres of a cell of the truth."""
AROUND = 0.6
"""Metres over which the ground is averaged to tell what stands over it and falls under it."""


@dataclass(frozen=True)
class Truth:
    """`closed` (N, N) bool, rows along y of the world: where a robot may not drive. Cell (0, 0) begins at `start` metres
    on both axes, and `CELL` is a cell's side."""

    closed: np.ndarray
    start: float

    def cells(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The flat cell of each of (N, 2 or 3) points, and whether it lies on the grid."""
        ij = np.floor((np.nan_to_num(points[:, :2], nan=1e9) - self.start) / CELL).astype(np.int64)
        inside = ((ij >= 0) & (ij < len(self.closed))).all(1)
        return ij[:, 1] * len(self.closed) + ij[:, 0], inside


@dataclass(frozen=True)
class Seen:
    """A frame of a drive: `percept` has the true depth and classes at the output's size, and the true pose."""

    percept: Percept
    base: float
    """Height in metres of the ground below the robot, where a robot in the plane has its zero."""


@dataclass(frozen=True)
class Drive:
    kind: str
    frames: list[Seen]
    truth: Truth


def drives(
    seeds: Sequence[int], cache: Path, robot: RobotSettings, shape: tuple[int, int], say: Callable[[str], None]
) -> Iterator[Drive]:
    """One drive for each kind of each seed's world; what was rendered before is read from `cache`. `shape` (h, w) is that
    of masks and depth."""
    from dino_perception.training.terrain.world import HELD_OUT_STYLES

    folder = Path(cache) / "ground" / _version()
    folder.mkdir(parents=True, exist_ok=True)
    for place, seed in enumerate(seeds):
        style = HELD_OUT_STYLES[place % len(HELD_OUT_STYLES)]
        for number, (kind, options) in enumerate(KINDS.items()):
            path = folder / f"{style}-{seed}-{number}.npz"
            if not path.exists():
                say(f"rendering {kind} of world {seed}")
                _render(path, seed, style, options)
            with np.load(path, allow_pickle=False) as file:
                yield _drive(kind, dict(file), robot, shape)


def closed_ground(ground: np.ndarray, raised: np.ndarray, cell: float, robot: RobotSettings) -> np.ndarray:
    """Where a robot may not drive, (H, W) bool, of heights in metres on nodes `cell` metres apart: `ground`, and `raised`
    with its rocks. Rocks count from the ground below them, the ground from its mean around, and slopes as the robot's
    width averages them."""
    mean = cv2.GaussianBlur(ground, (0, 0), AROUND / cell)
    slope = np.hypot(*np.gradient(cv2.GaussianBlur(ground, (0, 0), robot.width / 2 / cell), cell))
    return (
        (raised - ground > robot.step)
        | (np.abs(ground - mean) > robot.step)
        | (slope > np.tan(np.radians(robot.max_slope)))
    )


def _render(path: Path, seed: int, style: str, options: dict) -> None:
    import torch

    from dino_perception.training.pretraining.freed_memory import keep_freed_memory
    from dino_perception.training.terrain.ground import CELLS
    from dino_perception.training.terrain.world import PinholeCamera, World

    keep_freed_memory()
    world = World(seed, style, device="cuda" if torch.cuda.is_available() else "cpu", **options)
    raised = world.rocks.raise_grid(world.ground.grid(0), 0).cpu().numpy()
    drive = _towards_trouble(world, raised)
    camera = PinholeCamera.of(SIZE[1], SIZE[0])
    seen = world.render(drive.camera, camera)
    part = path.with_suffix(f".{os.getpid()}.part")
    with part.open("wb") as file:
        np.savez(
            file, rgb=seen.rgb, depth=seen.depth.astype(np.float32), classes=seen.classes, pose=drive.camera, k=camera.k,
            base=drive.base[:, 2, 3], ground=world.ground.grid(0).cpu().numpy(), cell=CELLS[0],
            raised=raised,
        )  # fmt: skip
    os.replace(part, path)


def _towards_trouble(world: World, raised: np.ndarray) -> terrain_drive.Drive:
    """Of many short drives over open ground, the one before which most of the ground is closed: a rover that only goes
    where it is clear would meet too little to count."""
    from dino_perception.training.terrain.ground import CELLS
    from dino_perception.training.terrain.world import camera_mount

    ground = world.ground.grid(0).cpu().numpy()
    closed = closed_ground(ground, raised, CELLS[0], RobotSettings())

    def at(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        column, row = (np.round(v / CELLS[0] + (len(ground) - 1) / 2).astype(int) for v in (x, y))
        return closed[row.clip(0, len(closed) - 1), column.clip(0, len(closed) - 1)]

    rng = np.random.default_rng([world.seed, 5])
    along = np.arange(FRAMES) / RATE * SPEED
    fan = np.stack(np.meshgrid(np.arange(1.5, 7, 0.2), np.linspace(-0.5, 0.5, 12)), -1).reshape(-1, 2)
    wheels = np.stack(np.meshgrid((-0.7, 0.0, 0.7), (-0.5, 0.0, 0.5)), -1).reshape(-1, 2)
    best = None
    for _ in range(400):
        heading, bend = rng.uniform(-np.pi, np.pi), rng.uniform(-0.04, 0.04)
        yaw = heading + bend * np.arange(FRAMES)
        x = rng.uniform(-EXTENT, EXTENT) + along * np.cos(heading + bend * np.arange(FRAMES) / 2)
        y = rng.uniform(-EXTENT, EXTENT) + along * np.sin(heading + bend * np.arange(FRAMES) / 2)
        c, s = np.cos(yaw)[:, None], np.sin(yaw)[:, None]
        below = at(x[:, None] + c * wheels[:, 0] - s * wheels[:, 1], y[:, None] + s * wheels[:, 0] + c * wheels[:, 1])
        ahead = yaw[:, None] + fan[:, 1]
        before = at(x[:, None] + fan[:, 0] * np.cos(ahead), y[:, None] + fan[:, 0] * np.sin(ahead))
        score = before.mean() - 10.0 * below.mean()
        if best is None or score > best[0]:
            best = score, x, y, yaw
    _, x, y, yaw = best
    base = terrain_drive.settle(world.ground, x, y, yaw, RATE, stream(world.seed, "towards trouble"))
    return terrain_drive.Drive(base, camera_mount(HEIGHT, PITCH), np.arange(FRAMES) / RATE)


def _drive(kind: str, file: dict, robot: RobotSettings, shape: tuple[int, int]) -> Drive:
    from dino_perception.measuring.demo_score import resampled
    from dino_perception.models.heads import LABELS

    height, width = file["depth"].shape[1:]
    camera = CameraModel(width, height, file["k"])
    scale = (shape[1] / width, shape[0] / height)
    small = scale_camera(camera, scale, shape[1], shape[0])
    frames = []
    assert [label.name for label in LABELS] == list(CLASSES)
    for number, pose in enumerate(file["pose"]):
        frame = Frame("camera", round(number / RATE * 1e9), "camera_optical_frame", file["rgb"][number], camera)
        classes = resampled(file["classes"][number], shape)
        percept = Percept(
            frame, *shape, small, Segmentation(classes, np.full(shape, 255, np.uint8), LABELS),
            Depth(resampled(file["depth"][number], shape)), output_scale=scale, pose=Pose(pose[:3, 3], pose[:3, :3]),
        )  # fmt: skip
        frames.append(Seen(percept, float(file["base"][number])))
    return Drive(kind, frames, _truth(file["ground"], file["raised"], float(file["cell"]), robot))


def _truth(ground: np.ndarray, raised: np.ndarray, cell: float, robot: RobotSettings) -> Truth:
    """A cell is closed where any place in it is."""
    fine = closed_ground(ground.astype(np.float32), raised.astype(np.float32), cell, robot)
    half = (len(ground) - 1) / 2 * cell
    start = -np.floor(half / CELL) * CELL
    count = round(-2 * start / CELL)
    place = np.floor((np.arange(len(ground)) * cell - half - start) / CELL).astype(int)
    inside = (place >= 0) & (place < count)
    closed = np.zeros((count, count), bool)
    rows, columns = np.nonzero(fine[np.ix_(inside, inside)])
    kept = place[inside]
    closed[kept[rows], kept[columns]] = True
    return Truth(closed, float(start))


def _version() -> str:
    """A version that changes with the renderer and with what is rendered."""
    digest = hashlib.sha256(repr((KINDS, FRAMES, RATE, SPEED, EXTENT, SIZE, HEIGHT, PITCH)).encode())
    for path in sorted(Path(terrain.__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:10]
