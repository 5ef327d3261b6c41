"""A rover driving over the ground: where it goes, how it tilts, where its camera looks."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from dino_perception.training.terrain.ground import Ground
from dino_perception.training.terrain.noise import stream, uniform
from dino_perception.training.terrain.rocks import Rocks

WHEELBASE, TRACK = 0.9, 0.8


@dataclass(frozen=True)
class Drive:
    """`base` (N, 4, 4): base_link (x forward, y left, z up; REP 103) to world. `mount` (4, 4): camera optical frame
    (x right, y down, z forward) to base_link. `seconds` (N,). All float64, metres."""

    base: np.ndarray
    mount: np.ndarray
    seconds: np.ndarray

    @property
    def camera(self) -> np.ndarray:
        """(N, 4, 4) camera optical frame to world."""
        return self.base @ self.mount


def camera_mount(height: float, pitch: float, forward: float = 0.3, yaw: float = 0.0, roll: float = 0.0) -> np.ndarray:
    """(4, 4) optical frame to base_link of a camera `height` metres up; `pitch` radians, positive looks down."""
    optical = np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])
    mount = np.eye(4)
    mount[:3, :3] = rotation(yaw, pitch, roll) @ optical
    mount[:3, 3] = (forward, 0.0, height)
    return mount


def rotation(yaw: float, pitch: float, roll: float) -> np.ndarray:
    """Rz(yaw) Ry(pitch) Rx(roll), REP 103: positive pitch lowers the nose."""
    cy, sy, cp, sp, cr, sr = (f(a) for a in (yaw, pitch, roll) for f in (math.cos, math.sin))
    return np.array(
        [
            [cy * cp, cy * sp * sr - sy * cr, cy * sp * cr + sy * sr],
            [sy * cp, sy * sp * sr + cy * cr, sy * sp * cr - cy * sr],
            [-sp, cp * sr, cp * cr],
        ]
    )


def plan(
    ground: Ground,
    rocks: Rocks,
    seed: int,
    frames: int,
    rate_hz: float,
    speed: tuple[float, float],
    mount: np.ndarray,
    turning: float,
    extent: float,
) -> Drive:
    """The clearest of many gently winding paths through the middle of the world."""
    rng = stream(seed, "drive")
    pace = uniform(rng, *speed)
    seconds = np.arange(frames) / rate_hz
    tall = (
        (rocks.centre[:, 2] + rocks.axes[:, 2] - ground.height_at(rocks.centre[:, 0], rocks.centre[:, 1]) > 0.10)
        .cpu()
        .numpy()
    )
    at, size = rocks.centre[:, :2].cpu().numpy()[tall], 0.5 * rocks.diameter.cpu().numpy()[tall]
    best = None
    for _ in range(48):
        path = _wander(rng, frames, rate_hz, pace, turning, extent)
        x, y, yaw = path
        here = np.stack([x[::5], y[::5]], 1)
        ahead = here, here + 1.2 * np.stack([np.cos(yaw[::5]), np.sin(yaw[::5])], 1)
        gap = min(float((np.linalg.norm(p[:, None] - at[None], axis=2) - size).min(initial=3.0)) for p in ahead)
        # Four wheels' heights along the path: level is good, smooth is good.
        c, s, reach = np.cos(yaw[::5]), np.sin(yaw[::5]), 0.5 * TRACK
        sides = [(x[::5] - side * reach * s, y[::5] + side * reach * c) for side in (-1, 1)]
        right, left = (
            ground.height_at(*(torch.tensor(v, dtype=torch.float32, device=ground.device) for v in side))
            for side in sides
        )
        lean = float((left - right).abs().mean()) / TRACK
        climb = float((right + left).diff().abs().mean()) / max(10 * pace / rate_hz, 1e-6) if len(right) > 1 else 0.0
        rough = float((right + left).diff().diff().abs().mean()) if len(right) > 2 else 0.0
        score = min(gap, 0.9) - 2.0 * lean - 1.0 * climb - 2.0 * rough
        if best is None or score > best[0]:
            best = (score, path)
    x, y, yaw = best[1]
    return Drive(settle(ground, x, y, yaw, rate_hz, rng), mount, seconds)


def _wander(
    rng: torch.Generator, frames: int, rate_hz: float, pace: float, turning: float, extent: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Positions and headings at a nearly steady pace; the middle of the path lies within `extent` of the origin."""
    t = np.arange(frames) / rate_hz
    speed = pace * (1.0 + 0.08 * np.sin(0.9 * t + uniform(rng, 0, 6.28)))
    rate = sum(turning / 1.5 * uniform(rng, -1, 1) * np.sin(w * t + uniform(rng, 0, 6.28)) for w in (0.25, 0.5, 0.9))
    yaw = uniform(rng, -math.pi, math.pi) + np.cumsum(rate) / rate_hz
    x, y = np.cumsum(speed * np.cos(yaw)) / rate_hz, np.cumsum(speed * np.sin(yaw)) / rate_hz
    middle = frames // 2
    return x - x[middle] + uniform(rng, -extent, extent), y - y[middle] + uniform(rng, -extent, extent), yaw


def settle(
    ground: Ground, x: np.ndarray, y: np.ndarray, yaw: np.ndarray, rate_hz: float, rng: torch.Generator
) -> np.ndarray:
    """Puts four wheels on the ground, averages over a wheel's size and the suspension's time, adds a little shake."""
    half = max(1, round(0.25 * rate_hz))
    z, pitch, roll = _attitude({wheel: _smooth(heights, half) for wheel, heights in _wheels(ground, x, y, yaw).items()})
    shake = torch.randn((3, len(x)), generator=rng, dtype=torch.float64).numpy()
    base = np.tile(np.eye(4), (len(x), 1, 1))
    for i in range(len(x)):
        base[i, :3, :3] = rotation(yaw[i], pitch[i] + 0.0015 * shake[0, i], roll[i] + 0.0015 * shake[1, i])
        base[i, :3, 3] = x[i], y[i], z[i] + 0.0012 * shake[2, i]
    return base


def standing(ground: Ground, x: float, y: float, yaw: float) -> np.ndarray:
    """(4, 4) base_link to world of a rover that stands still, its middle at (x, y) metres, heading `yaw` radians."""
    place = (np.array([value]) for value in (x, y, yaw))
    (z,), (pitch,), (roll,) = _attitude(_wheels(ground, *place))
    base = np.eye(4)
    base[:3, :3] = rotation(yaw, pitch, roll)
    base[:3, 3] = x, y, z
    return base


def _wheels(ground: Ground, x: np.ndarray, y: np.ndarray, yaw: np.ndarray) -> dict[tuple[int, int], np.ndarray]:
    """The ground's mean height under each wheel, by (1 front or -1 back, 1 left or -1 right)."""
    c, s = np.cos(yaw), np.sin(yaw)
    heights = {}
    for forward in (-1, 1):
        for left in (-1, 1):
            total = 0.0
            for a in (-0.12, 0.0, 0.12):
                for b in (-0.08, 0.08):
                    fx, fy = forward * WHEELBASE / 2 + a, left * TRACK / 2 + b
                    px, py = x + c * fx - s * fy, y + s * fx + c * fy
                    place = (torch.tensor(v, dtype=torch.float32, device=ground.device) for v in (px, py))
                    total = total + ground.height_at(*place).double().cpu().numpy() / 6
            heights[forward, left] = total
    return heights


def _attitude(heights: dict[tuple[int, int], np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Height in metres, pitch and roll in radians (REP 103) on wheels of these heights."""
    z = sum(heights.values()) / 4
    pitch = -np.arctan((heights[1, 1] + heights[1, -1] - heights[-1, 1] - heights[-1, -1]) / (2 * WHEELBASE))
    roll = np.arctan((heights[1, 1] + heights[-1, 1] - heights[1, -1] - heights[-1, -1]) / (2 * TRACK))
    return z, pitch, roll


def _smooth(values: np.ndarray, half: int) -> np.ndarray:
    window = np.hanning(2 * half + 3)[1:-1]
    padded = np.pad(values, half, mode="edge")
    return np.convolve(padded, window / window.sum(), mode="valid")
