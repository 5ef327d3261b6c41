"""A procedural rover terrain: seeded worlds, drives through them, and frames with exact ground truth.

    world = World(seed=7, style="mars")
    poses = world.drive(frames=100, rate_hz=10.0)            # (100, 4, 4) camera to world
    frames = world.render(poses[:4], PinholeCamera.of(640, 480))    # rgb, depth, classes

World axes: x east, y north, z up (REP 103); camera: x right, y down, z forward; depth along z (REP 118). One seed and
style give one world, byte for byte on the same device. Everything is batched torch and runs where `device` says.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dino_perception.training.terrain.drive import Drive, camera_mount, plan
from dino_perception.training.terrain.ground import NEAR_MEAN, WIDE_MEAN, Ground
from dino_perception.training.terrain.light import Light, Shade, mean_heights, raised_grids
from dino_perception.training.terrain.noise import stream, uniform
from dino_perception.training.terrain.ray_batch import RayBatch
from dino_perception.training.terrain.rock_boxes import rock_boxes
from dino_perception.training.terrain.rocks import Rocks
from dino_perception.training.terrain.sensor import Sensor
from dino_perception.training.terrain.styles import CLASSES, HELD_OUT_STYLES, STYLES, TRAIN_STYLES
from dino_perception.training.terrain.textures import Textures

__all__ = [
    "CLASSES",
    "PinholeCamera",
    "Drive",
    "HELD_OUT_STYLES",
    "Light",
    "Rendered",
    "STYLES",
    "Sensor",
    "TRAIN_STYLES",
    "World",
    "camera_mount",
]


@dataclass(frozen=True)
class PinholeCamera:
    """A pinhole camera; pixel centres at integers. `perception.frame.CameraModel` serves as well."""

    width: int
    height: int
    k: np.ndarray

    @classmethod
    def of(cls, width: int, height: int, horizontal_fov_deg: float = 66.0) -> PinholeCamera:
        f = 0.5 * width / np.tan(np.radians(horizontal_fov_deg) / 2)
        return cls(width, height, np.array([[f, 0, (width - 1) / 2], [0, f, (height - 1) / 2], [0, 0, 1.0]]))


@dataclass(frozen=True)
class Rendered:
    """`rgb` (N, H, W, 3) uint8, or None; `depth` (N, H, W) float32 metres along the optical axis, NaN in the sky;
    `classes` (N, H, W) uint8, ids of CLASSES; `rocks` (M, 8) float32, see rock_boxes.py."""

    rgb: np.ndarray | None
    depth: np.ndarray
    classes: np.ndarray
    rocks: np.ndarray


class World:
    """One landscape under one light. `relight` gives another hour of the same landscape cheaply. `slope` (degrees) and
    `ditches` (how many) make the ground harder to drive on: see Ground."""

    def __init__(
        self,
        seed: int,
        style: str = "mars",
        device: torch.device | str = "cpu",
        light_seed: int | None = None,
        *,
        slope: float = 0.0,
        ditches: int = 0,
    ):
        if style not in STYLES:
            raise ValueError(f"unknown terrain style '{style}'; accepted: {', '.join(STYLES)}")
        self.seed, self.style_name, self.style = seed, style, STYLES[style]
        self.device = torch.device(device)
        with torch.inference_mode():
            self.ground = Ground(seed, self.style, self.device, slope=slope, ditches=ditches)
            self.rocks = Rocks(seed, self.style, self.ground)
            self.raised = raised_grids(self.ground, self.rocks)
            """The heights of the three levels with the rocks on them, (SIZE, SIZE) each, rows along y."""
            near, wide = zip(*mean_heights(self.raised))
            self.ground.surface[:, NEAR_MEAN] = torch.cat([m.flatten() for m in near])
            self.ground.surface[:, WIDE_MEAN] = torch.cat([m.flatten() for m in wide])
            self.colours = self._palette()
        self.relight(seed if light_seed is None else light_seed)

    def relight(self, light_seed: int, light: Light | None = None, sensor: Sensor | None = None) -> None:
        """Draws the sun, the air and the camera's settings anew (or takes those given)."""
        self.light_seed = light_seed
        self.light = light or Light.draw(light_seed, self.style)
        self.sensor = sensor or Sensor.draw(light_seed)
        with torch.inference_mode():
            self.shade = Shade(self.raised, self.light.sun)
            self.textures = Textures(self.seed, self.light.sun, self.style.wind, self.device)

    def drive(
        self, frames: int, rate_hz: float = 10.0, *, seed: int = 0, camera_height: float | None = None, **options
    ) -> np.ndarray:
        """(frames, 4, 4) float64 camera-to-world poses of `rover_drive`."""
        return self.rover_drive(frames, rate_hz, seed=seed, camera_height=camera_height, **options).camera

    def rover_drive(
        self,
        frames: int,
        rate_hz: float = 10.0,
        *,
        seed: int = 0,
        camera_height: float | None = None,
        camera_pitch: float | None = None,
        speed: tuple[float, float] = (0.3, 0.6),
        turning: float = 0.12,
        extent: float = 7.0,
    ) -> Drive:
        """A drive of `frames` poses at `rate_hz`: `speed` metres a second, `turning` radians a second at most about,
        its middle within `extent` metres of the origin. Camera height (metres) and downward pitch (radians) are drawn
        from 0.6..2 m and 0.08..0.4 when not given."""
        rng = stream(self.seed, "rover", seed)
        height = uniform(rng, 0.6, 2.0) if camera_height is None else camera_height
        pitch = uniform(rng, 0.08, 0.22) + 0.09 * max(height - 0.6, 0.0) if camera_pitch is None else camera_pitch
        with torch.inference_mode():
            return plan(
                self.ground,
                self.rocks,
                self.seed * 1009 + seed,
                frames,
                rate_hz,
                speed,
                camera_mount(height, pitch),
                turning,
                extent,
            )

    @torch.inference_mode()
    def render(
        self, poses: np.ndarray, camera, *, first_frame: int = 0, batch: int = 0, colour: bool = True
    ) -> Rendered:
        """Frames of camera-to-world `poses` (N, 4, 4) through `camera` (width, height, k; no distortion).

        `first_frame` numbers the frames (it seeds their noise), `batch` frames are rendered at once (0: one on a CPU,
        eight on a GPU), `colour=False` leaves the pictures out.
        """
        if len(getattr(camera, "d", ())) and np.any(np.asarray(camera.d) != 0):
            raise ValueError("the terrain is rendered through an undistorted camera; give one without coefficients d")
        poses = np.asarray(poses, np.float64)
        if poses.ndim != 3 or poses.shape[1:] != (4, 4):
            raise ValueError(f"poses have shape {poses.shape}; wanted (N, 4, 4)")
        batch = batch or (1 if self.device.type == "cpu" else 8)
        parts = [
            self._render(poses[i : i + batch], camera, first_frame + i, colour) for i in range(0, len(poses), batch)
        ]
        rgb, depth, classes, rocks = zip(*parts)
        for i, own in enumerate(rocks):
            own[:, 0] += i * batch
        return Rendered(
            np.concatenate(rgb) if colour else None,
            np.concatenate(depth),
            np.concatenate(classes),
            np.concatenate(rocks),
        )

    def _render(self, poses: np.ndarray, camera, first: int, colour: bool):
        view = RayBatch(self, poses, camera)
        shape = (len(poses), camera.height, camera.width)
        depth = torch.where(torch.isfinite(view.scene.t), view.scene.t, torch.nan).view(shape)
        classes = view.scene.classes.view(shape)
        rgb = None
        if colour:
            radiance = view.picture().view(*shape, 3)
            middle = self._middle()
            seeds = [(self.light_seed * 100_003 + first + i) & 0x7FFFFFFF for i in range(len(poses))]
            rgb = np.stack([self.sensor.develop(r, middle, seed).cpu().numpy() for r, seed in zip(radiance, seeds)])
        return rgb, depth.cpu().numpy(), classes.cpu().numpy(), rock_boxes(view)

    def _middle(self) -> float:
        """Radiance of average ground in this light: the exposure of a whole drive hangs on it, not on one frame."""
        grey = sum(float(c.mean()) for c in self.colours[:3]) / 3
        light = self.light
        ground = grey * (0.85 * light.sun[2] * sum(light.sun_colour) / 3 + light.ambient) + 1e-3
        # Over dark ground a bright sky takes its share of the exposure.
        return max(ground, 0.13 * sum(light.horizon) / 3)

    def _palette(self) -> list[Tensor]:
        """soil, sand, bedrock, rock, dust: the style's albedos, a little different in each world."""
        rng = stream(self.seed, "palette")
        colours = []
        shared = 1.0 + 0.025 * torch.randn(3, generator=rng)
        for name in ("soil", "sand", "bedrock", "rock", "dust"):
            base = torch.tensor(getattr(self.style, name))
            own = 1.0 + 0.10 * torch.randn(1, generator=rng) + 0.008 * torch.randn(3, generator=rng)
            colours.append((base * shared * own.clamp(0.75, 1.3)).clamp(0.01, 0.9).to(self.device))
        self.dustiness = uniform(rng, *self.style.dustiness)
        return colours
