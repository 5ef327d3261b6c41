"""Percepts of a camera that drives between known planes, with the matches and the depth that a perfect pipeline, or a
worse one, would give: a ground, and a wall ahead."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from dino_perception.perception.frame import CameraModel, Correspondences, Depth, Frame, Percept

OPTICAL = np.array([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]])
"""From the optical frame (z ahead) to x ahead, y left, z up."""
WIDTH, HEIGHT, FOCAL = 640, 480, 400.0
CAMERA = CameraModel(WIDTH, HEIGHT, np.array([[FOCAL, 0, 319.5], [0, FOCAL, 239.5], [0, 0, 1]]))
OUTPUT = CameraModel(320, 240, np.array([[FOCAL / 2, 0, 159.5], [0, FOCAL / 2, 119.5], [0, 0, 1]]))
STEP_NS = 100_000_000


def pose(x: float, y: float = 0.0, yaw: float = 0.0, height: float = 0.8, down: float = 0.2) -> np.ndarray:
    """(4, 4): the world from a camera that looks along `yaw`, `down` radians below the horizon."""
    c, s, cd, sd = np.cos(yaw), np.sin(yaw), np.cos(down), np.sin(down)
    body = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ np.array([[cd, 0, sd], [0, 1, 0], [-sd, 0, cd]])
    whole = np.eye(4)
    whole[:3, :3], whole[:3, 3] = body @ OPTICAL, (x, y, height)
    return whole


def curve(count: int, step: float = 0.08, turning: float = 0.01) -> list[np.ndarray]:
    """A drive ahead that winds to the left."""
    yaw = turning * np.arange(count)
    x, y = np.cumsum(step * np.cos(yaw)) - step, np.cumsum(step * np.sin(yaw))
    return [pose(*place) for place in zip(x, y, yaw)]


def percepts(
    poses: list[np.ndarray],
    *,
    noise: float = 0.0,
    depth_noise: float = 0.0,
    outliers: float = 0.0,
    moving: float = 0.0,
    points: int = 600,
    reference: str = "keyframe",
    with_depth: bool = True,
    stamps: list[int] | None = None,
    seed: int = 0,
) -> Iterator[Percept]:
    """One percept a pose. `noise` in pixels an axis, `depth_noise` relative, of each point anew in each frame; `outliers` is
    the share of matches that are nonsense, `moving` that of points that slide along the wall and the ground together."""
    random = np.random.default_rng(seed)
    world = _world(points, random)
    slide = (np.arange(points) < moving * points)[:, None] * np.array([0.0, 0.12, 0.0])
    seen = []
    for number, camera in enumerate(poses):
        at = (world + number * slide - camera[:3, 3]) @ camera[:3, :3]
        xy = FOCAL * at[:, :2] / at[:, 2:] + [319.5, 239.5]
        inside = (at[:, 2] > 0.3) & ((xy > 2) & (xy < [WIDTH - 3, HEIGHT - 3])).all(1)
        seen.append((xy + noise * random.standard_normal(xy.shape), inside))
    key = 0
    for number, camera in enumerate(poses):
        xy, inside = seen[number]
        stamp = stamps[number] if stamps else number * STEP_NS
        before = max(0, number - 1) if reference == "previous" else key
        if before == number:
            matches = _matches(stamp, np.zeros(0, int), np.zeros((0, 2)), np.zeros((0, 2)))
        else:
            both = np.flatnonzero(inside & seen[before][1])
            if len(both) < 0.5 * seen[before][1].sum():
                key = number
            here = xy[both]
            wrong = random.random(len(both)) < outliers
            here = np.where(wrong[:, None], random.uniform(0, [WIDTH, HEIGHT], here.shape), here)
            matches = _matches(stamps[before] if stamps else before * STEP_NS, both, here, seen[before][0][both])
        depth = None
        if with_depth:
            metres = depth_of(camera)
            depth = Depth((metres * np.exp(depth_noise * random.standard_normal(metres.shape))).astype(np.float32))
        frame = Frame("camera", stamp, "camera_optical_frame", np.zeros((HEIGHT, WIDTH, 0), np.uint8), CAMERA)
        yield Percept(frame, 240, 320, OUTPUT, depth=depth, correspondences=matches, output_scale=(0.5, 0.5))


def depth_of(camera: np.ndarray) -> np.ndarray:
    """(240, 320) float64 metres along the optical axis to the ground or the wall."""
    v, u = np.mgrid[:240, :320]
    rays = np.stack([(u - 159.5) / (FOCAL / 2), (v - 119.5) / (FOCAL / 2), np.ones_like(u)], -1) @ camera[:3, :3].T
    with np.errstate(divide="ignore"):
        ground = np.where(rays[..., 2] < 0, -camera[2, 3] / rays[..., 2], np.inf)
        wall = np.where(rays[..., 0] > 0, (WALL - camera[0, 3]) / rays[..., 0], np.inf)
    nearest = np.minimum(ground, wall)
    return np.where(np.isfinite(nearest), nearest, np.nan)


WALL = 15.0


def _world(count: int, random: np.random.Generator) -> np.ndarray:
    """Half of the points on the ground, half on the wall."""
    ground = np.column_stack([random.uniform(0.5, WALL, count), random.uniform(-2, 2, count), np.zeros(count)])
    wall = np.column_stack([np.full(count, WALL), random.uniform(-9, 9, count), random.uniform(0, 6, count)])
    return np.where((np.arange(count) % 2 == 0)[:, None], ground, wall)


def _matches(reference_ns: int, which: np.ndarray, here: np.ndarray, there: np.ndarray) -> Correspondences:
    x, y, reference_x, reference_y = (a.astype(np.float32) for a in (*here.T, *there.T))
    return Correspondences(
        reference_ns, "camera_optical_frame", WIDTH, HEIGHT, which.astype(np.uint64) + 1, x, y, reference_x, reference_y,
        np.ones(len(which), np.float32),
    )  # fmt: skip
