"""A map of where the robot can drive, fused over the frames of one camera: it rolls with the robot and forgets.

Each cell holds the log odds that it is closed (Moravec and Elfes 1985), what driving over it costs if it is open, and how
much was seen of it. All three fade with time, so that what moved away, or drifted away with odometry, does not stay.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from dino_perception.perception.frame import Percept
from dino_perception.perception.obstacles import Obstacles
from dino_perception.perception.pose import LOST, Pose
from dino_perception.perception.settings import RobotSettings, Settings, TraversabilitySettings

HIT, MISS = 1.1, 0.5
"""Log odds that a sure look at something in the way adds, and one at ground takes: it is worse to miss one."""
MOST = 4.0
"""Log odds beyond which nothing is added: 98 %."""
SHARE = 0.15
"""Of a frame's pixels in a cell, the share that must show something in the way."""
CLOSED = 0.65
"""Probability from which a cell is closed: 100 in the message."""
ENOUGH = 0.5
"""Looks below which a cell is unknown, and..."""
LOOKS = 8.0
"""...beyond which more say the same."""
LEARN = 0.3
"""How much of a cell's cost the newest look makes, at least."""
DEAREST = 0.6
"""Cost of open ground, at most, as a share: it says where to drive rather, and never closes a cell."""
FADES = 6.0
"""Metres at which a look says half as much as a near one."""


@dataclass(frozen=True)
class TraversabilityGrid:
    """`cells` (N, N) int8, rows along y of odom, columns along x: -1 unknown, 0 free to 99 dear, 100 closed. `x`, `y`:
    the corner of cell (0, 0), metres in odom; `resolution` metres a cell."""

    cells: np.ndarray
    x: float
    y: float
    resolution: float


class TraversabilityMap:
    """One camera's map. `see` takes frames in order; a pose of another era, a stamp that goes back or another size start it
    anew."""

    def __init__(self) -> None:
        self._key: tuple[Any, ...] = ()
        self._stamp_ns = 0
        self._corner = (0, 0)
        self._layers = np.zeros((3, 1, 1), np.float32)

    def see(self, found: Obstacles, pose: Pose, stamp_ns: int, robot: RobotSettings, wanted: TraversabilitySettings):
        """The map with one frame more."""
        size, resolution = max(4, round(wanted.size / wanted.resolution)), wanted.resolution
        key = (pose.era, size, resolution)
        corner = tuple(int(np.floor(value / resolution)) - size // 2 for value in pose.position[:2])
        if key != self._key or stamp_ns < self._stamp_ns:
            self._key, self._layers = key, np.zeros((3, size, size), np.float32)
        else:
            self._fade((stamp_ns - self._stamp_ns) / 1e9, wanted.decay)
            self._roll(corner)
        self._corner, self._stamp_ns = corner, stamp_ns
        self._add(found, pose, robot, resolution)

    def grid(self) -> TraversabilityGrid:
        """What is known now."""
        resolution = self._key[2]
        odds, cost, looks = self._layers
        closed = 1 / (1 + np.exp(-odds))
        percent = 99 * np.maximum(np.where(closed > 0.5, closed, 0), cost)
        cells = np.where(closed >= CLOSED, 100, np.round(percent)).astype(np.int8)
        cells[looks < ENOUGH] = -1
        return TraversabilityGrid(cells, self._corner[0] * resolution, self._corner[1] * resolution, resolution)

    def memory(self) -> dict[str, Any]:
        """What it remembers, as plain data."""
        packed = base64.b64encode(zlib.compress(self._layers.tobytes(), 1)).decode()
        return {"key": list(self._key), "stamp": self._stamp_ns, "corner": list(self._corner), "layers": packed}

    @classmethod
    def recalled(cls, memory: Mapping[str, Any]) -> TraversabilityMap:
        """The map that gave this memory."""
        made = cls()
        made._key, made._stamp_ns = tuple(memory["key"]), memory["stamp"]
        made._corner = tuple(memory["corner"])
        layers = np.frombuffer(zlib.decompress(base64.b64decode(memory["layers"])), np.float32)
        made._layers = layers.reshape(3, made._key[1], made._key[1]).copy()
        return made

    def _fade(self, seconds: float, decay: float) -> None:
        if decay > 0 and seconds > 0:
            kept = np.float32(np.exp(-seconds / decay))
            self._layers[0] *= kept
            self._layers[2] *= kept

    def _roll(self, corner: tuple[int, int]) -> None:
        across, up = corner[0] - self._corner[0], corner[1] - self._corner[1]
        if not (across or up):
            return
        size = self._layers.shape[1]
        kept = np.zeros_like(self._layers)
        if abs(across) < size and abs(up) < size:
            (into_x, from_x), (into_y, from_y) = _overlap(across, size), _overlap(up, size)
            kept[:, into_y, into_x] = self._layers[:, from_y, from_x]
        self._layers = kept

    def _add(self, found: Obstacles, pose: Pose, robot: RobotSettings, resolution: float) -> None:
        ground, size = found.ground, self._layers.shape[1]
        turn = ((pose.rotation @ ground.rotation.T)[:2] / resolution).astype(np.float32)
        start = (pose.position[:2] - (pose.rotation @ ground.rotation.T)[:2, 2] * ground.lift) / resolution
        start = (start - self._corner).astype(np.float32)
        x, y, z = (np.concatenate([v.ravel(), gap]) for v, gap in zip((ground.x, ground.y, ground.z), found.gap))
        column, row = (a * x + b * y + c * z + d for (a, b, c), d in zip(turn, start))
        with np.errstate(invalid="ignore"):
            inside = np.flatnonzero((column >= 0) & (column < size) & (row >= 0) & (row < size))
        cell = row[inside].astype(np.int64) * size + column[inside].astype(np.int64)
        pixel = np.concatenate([np.arange(ground.x.size), found.behind])[inside]
        away = (x[inside] ** 2 + y[inside] ** 2) / np.float32(FADES**2)
        sure = found.sure.ravel()[pixel] / (1 + away)
        blocks = found.mask.ravel()[pixel]
        dear = self._costs(found, pixel, robot)

        def total(of: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
            given = None if weights is None else weights[of]
            return np.bincount(cell[of], given, size * size).astype(np.float32).reshape(size, size)

        shut, free = np.flatnonzero(blocks), np.flatnonzero(~blocks)
        closed, opened = total(shut), total(free)
        count = closed + opened
        hit = total(shut, sure) / np.maximum(closed, 1)
        miss, cost = (total(free, values) / np.maximum(opened, 1) for values in (sure, dear))
        odds, costs, looks = self._layers
        stands = closed > SHARE * count
        odds += np.where(stands, HIT * hit, np.where(count > 0, -MISS * miss, 0))
        np.clip(odds, -MOST, MOST, out=odds)
        open_ = (count > 0) & ~stands
        share = np.maximum(np.float32(LEARN), 1 / (1 + looks))
        costs += np.where(open_, share * (cost - costs), 0)
        looks += count > 0
        np.minimum(looks, LOOKS, out=looks)

    @staticmethod
    def _costs(found: Obstacles, pixels: np.ndarray, robot: RobotSettings) -> np.ndarray:
        """(N,) 0..DEAREST of pixels, by their flat numbers: how near to the robot's limits their height and slope come."""
        height = np.abs(found.ground.over.ravel()[pixels]) / np.float32(robot.step)
        slope = found.slope.ravel()[pixels] / np.float32(robot.max_slope)
        return np.float32(DEAREST) * np.minimum(np.maximum(height, slope) ** 2, 1)


class Maps:
    """The maps of all cameras."""

    def __init__(self) -> None:
        self._maps: dict[str, TraversabilityMap] = {}

    def see(self, percept: Percept, found: Obstacles | None, settings: Settings) -> TraversabilityGrid | None:
        """The camera's map with this percept, in which `found` was seen. None where it is not known where the camera is."""
        if found is None or percept.pose is None or percept.pose.health == LOST:
            return None
        camera = percept.frame.camera
        kept = self._maps.setdefault(camera, TraversabilityMap())
        kept.see(found, percept.pose, percept.frame.stamp_ns, settings.robot, settings.traversability)
        return kept.grid()

    def reset(self) -> None:
        """Forget everything."""
        self._maps = {}

    def memory(self) -> dict[str, Any]:
        """What they remember, as plain data."""
        return {camera: kept.memory() for camera, kept in self._maps.items()}

    def recall(self, memory: Mapping[str, Any]) -> None:
        """Take up again what `memory` gave."""
        self._maps = {camera: TraversabilityMap.recalled(kept) for camera, kept in memory.items()}


def _overlap(shift: int, size: int) -> tuple[slice, slice]:
    """Where what stays goes to, and where it comes from, when a row of cells moves on by `shift`."""
    return (
        slice(max(0, -shift), min(size, size - shift)),
        slice(max(0, shift), min(size, size + shift)),
    )
