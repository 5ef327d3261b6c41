"""A procedural rover terrain: seeded worlds, drives through them, and frames with exact ground truth.

    world = World(seed=7, style="mars")
    poses = world.drive(frames=100, rate_hz=10.0)            # (100, 4, 4) camera to world
    frames = world.render(poses[:4], Camera.of(640, 480))    # rgb, depth, classes

World axes: x east, y north, z up (REP 103); camera: x right, y down, z forward; depth along z (REP 118). One seed and
style give one world, byte for byte on the same device. Everything is batched torch and runs where `device` says.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from . import terrain_textures as textures
from .terrain_drive import Drive, camera_mount, plan
from .terrain_ground import BEDROCK_OVER, NEAR_MEAN, SAND_OVER, SIZE, SLAB_TONE, TONE, WIDE_MEAN, Ground
from .terrain_light import Light, Shade, mean_heights
from .terrain_noise import stream, uniform
from .terrain_rays import meet_ground
from .terrain_rocks import Hits, Rocks, expand
from .terrain_sensor import Sensor
from .terrain_styles import BEDROCK, BIG_ROCK, CLASSES, HELD_OUT_STYLES, SAND, SKY, SOIL, STYLES, TRAIN_STYLES

__all__ = ["CLASSES", "Camera", "Drive", "HELD_OUT_STYLES", "Light", "Rendered", "STYLES", "Sensor", "TRAIN_STYLES",
           "World", "camera_mount"]


@dataclass(frozen=True)
class Camera:
    """A pinhole camera; pixel centres at integers. `perception.frame.CameraModel` serves as well."""

    width: int
    height: int
    k: np.ndarray

    @classmethod
    def of(cls, width: int, height: int, horizontal_fov_deg: float = 66.0) -> Camera:
        f = 0.5 * width / np.tan(np.radians(horizontal_fov_deg) / 2)
        return cls(width, height, np.array([[f, 0, (width - 1) / 2], [0, f, (height - 1) / 2], [0, 0, 1.0]]))


@dataclass(frozen=True)
class Rendered:
    """`rgb` (N, H, W, 3) uint8, or None; `depth` (N, H, W) float32 metres along the optical axis, NaN in the sky;
    `classes` (N, H, W) uint8, ids of CLASSES."""

    rgb: np.ndarray | None
    depth: np.ndarray
    classes: np.ndarray


class World:
    """One landscape under one light. `relight` gives another hour of the same landscape cheaply."""

    def __init__(self, seed: int, style: str = "mars", device: torch.device | str = "cpu", light_seed: int | None = None):
        if style not in STYLES:
            raise ValueError(f"unknown terrain style '{style}'; accepted: {', '.join(STYLES)}")
        self.seed, self.style_name, self.style = seed, style, STYLES[style]
        self.device = torch.device(device)
        with torch.inference_mode():
            self.ground = Ground(seed, self.style, self.device)
            self.rocks = Rocks(seed, self.style, self.ground)
            near, wide = zip(*mean_heights(self.ground, self.rocks))
            self.ground.surface[:, NEAR_MEAN] = torch.cat([m.flatten() for m in near])
            self.ground.surface[:, WIDE_MEAN] = torch.cat([m.flatten() for m in wide])
            self._colours = self._palette()
        self.relight(seed if light_seed is None else light_seed)

    def relight(self, light_seed: int, light: Light | None = None, sensor: Sensor | None = None) -> None:
        """Draws the sun, the air and the camera's settings anew (or takes those given)."""
        self.light_seed = light_seed
        self.light = light or Light.draw(light_seed, self.style)
        self.sensor = sensor or Sensor.draw(light_seed)
        with torch.inference_mode():
            self.shade = Shade(self.ground, self.rocks, self.light.sun)
            self.textures = textures.Textures(self.seed, self.light.sun, self.device)

    def drive(self, frames: int, rate_hz: float = 10.0, *, seed: int = 0, camera_height: float | None = None,
              **options) -> np.ndarray:
        """(frames, 4, 4) float64 camera-to-world poses of `rover_drive`."""
        return self.rover_drive(frames, rate_hz, seed=seed, camera_height=camera_height, **options).camera

    def rover_drive(self, frames: int, rate_hz: float = 10.0, *, seed: int = 0, camera_height: float | None = None,
                    camera_pitch: float | None = None, speed: tuple[float, float] = (0.3, 0.6), turning: float = 0.12,
                    extent: float = 7.0) -> Drive:
        """A drive of `frames` poses at `rate_hz`: `speed` metres a second, `turning` radians a second at most about,
        its middle within `extent` metres of the origin. Camera height (metres) and downward pitch (radians) are drawn
        from 0.6..2 m and 0.08..0.4 when not given."""
        rng = stream(self.seed, "rover", seed)
        height = uniform(rng, 0.6, 2.0) if camera_height is None else camera_height
        pitch = uniform(rng, 0.08, 0.22) + 0.09 * max(height - 0.6, 0.0) if camera_pitch is None else camera_pitch
        with torch.inference_mode():
            return plan(self.ground, self.rocks, self.seed * 1009 + seed, frames, rate_hz, speed,
                        camera_mount(height, pitch), turning, extent)

    @torch.inference_mode()
    def render(self, poses: np.ndarray, camera, *, first_frame: int = 0, batch: int = 0, colour: bool = True) -> Rendered:
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
        parts = [self._render(poses[i:i + batch], camera, first_frame + i, colour) for i in range(0, len(poses), batch)]
        rgb, depth, classes = zip(*parts)
        return Rendered(np.concatenate(rgb) if colour else None, np.concatenate(depth), np.concatenate(classes))

    def _render(self, poses: np.ndarray, camera, first: int, colour: bool):
        view = View(self, poses, camera)
        scene = view.trace()
        shape = (len(poses), camera.height, camera.width)
        depth = torch.where(torch.isfinite(scene.t), scene.t, torch.nan).view(shape)
        classes = scene.classes.view(shape)
        rgb = None
        if colour:
            radiance = view.shade(scene).view(*shape, 3)
            middle = self._middle()
            rgb = np.stack([self.sensor.develop(r, middle, (self.light_seed * 100_003 + first + i) & 0x7FFFFFFF).cpu().numpy()
                            for i, r in enumerate(radiance)])
        return rgb, depth.cpu().numpy(), classes.cpu().numpy()

    def _middle(self) -> float:
        """Radiance of average ground in this light: the exposure of a whole drive hangs on it, not on one frame."""
        grey = sum(float(c.mean()) for c in self._colours[:3]) / 3
        light = self.light
        return grey * (0.85 * light.sun[2] * sum(light.sun_colour) / 3 + light.ambient) + 1e-3

    def _palette(self) -> list[Tensor]:
        """soil, sand, bedrock, rock, dust: the style's albedos, a little different in each world."""
        rng = stream(self.seed, "palette")
        colours = []
        shared = 1.0 + 0.05 * torch.randn(3, generator=rng)
        for name in ("soil", "sand", "bedrock", "rock", "dust"):
            base = torch.tensor(getattr(self.style, name))
            own = 1.0 + 0.10 * torch.randn(1, generator=rng) + 0.02 * torch.randn(3, generator=rng)
            colours.append((base * shared * own.clamp(0.75, 1.3)).clamp(0.01, 0.9).to(self.device))
        self.dustiness = uniform(rng, *self.style.dustiness)
        return colours


@dataclass
class Scene:
    """What each ray of a batch sees: `t` (R,) depth, `classes` (R,) uint8, `rocks`, and the ground's `surface` (R', 8)
    at the `solid` rays (those that end on something)."""

    t: Tensor
    classes: Tensor
    rocks: Hits
    solid: Tensor
    surface: Tensor
    point: Tensor


class View:
    """The rays of a batch of frames."""

    def __init__(self, world: World, poses: np.ndarray, camera):
        self.world, self.camera, self.batch = world, camera, len(poses)
        device = world.device
        k = np.asarray(camera.k, np.float64)
        self.k = (k[0, 0], k[1, 1], k[0, 2], k[1, 2])
        self.origin = torch.tensor(poses[:, :3, 3], dtype=torch.float32, device=device)
        self.rotation = torch.tensor(poses[:, :3, :3], dtype=torch.float32, device=device)
        x = (torch.arange(camera.width, device=device, dtype=torch.float32) - k[0, 2]) / k[0, 0]
        y = (torch.arange(camera.height, device=device, dtype=torch.float32) - k[1, 2]) / k[1, 1]
        rays = torch.stack([x.expand(camera.height, -1), y[:, None].expand(-1, camera.width),
                            torch.ones((camera.height, camera.width), device=device)], -1)
        self.direction = rays.view(1, -1, 3) @ self.rotation.transpose(1, 2)

    def trace(self) -> Scene:
        world, camera = self.world, self.camera
        t = meet_ground(world.ground, self.origin, self.direction, max(64, camera.width // 2)).flatten()
        direction = self.direction.reshape(-1, 3)
        pixel, frame, rock = world.rocks.in_view(self.rotation.transpose(1, 2), self.origin, self.k, camera.width,
                                                 camera.height)
        rocks = world.rocks.nearest(pixel, frame, rock, self.origin, direction, t, len(t))
        t = t.index_copy(0, rocks.ray, rocks.t)
        solid = torch.isfinite(t).nonzero()[:, 0]
        start = self.origin.index_select(0, torch.div(solid, direction.shape[0] // self.batch, rounding_mode="floor"))
        point = start + t[solid, None] * direction[solid]
        surface = world.ground.surface_at(point[:, 0], point[:, 1])
        kind = torch.full((len(solid),), SOIL, dtype=torch.uint8, device=t.device)
        kind[surface[:, SAND_OVER] > 0] = SAND
        kind[(surface[:, BEDROCK_OVER] > 0)] = BEDROCK
        classes = torch.full_like(t, SKY, dtype=torch.uint8)
        classes[solid] = kind
        classes[rocks.ray[world.rocks.big[rocks.rock]]] = BIG_ROCK
        return Scene(t, classes, rocks, solid, surface, point)

    def shade(self, scene: Scene) -> Tensor:
        """Radiance (R, 3) of every ray."""
        world, light = self.world, self.world.light
        direction = torch.nn.functional.normalize(self.direction.reshape(-1, 3), dim=1)
        radiance = torch.empty_like(direction)
        sky = torch.isinf(scene.t).nonzero()[:, 0]
        radiance[sky] = light.sky(direction[sky])
        view = direction[scene.solid]
        distance = scene.t[scene.solid] * torch.linalg.vector_norm(self.direction.reshape(-1, 3)[scene.solid], dim=1)
        order = torch.full((len(scene.t),), -1, device=scene.t.device, dtype=torch.int64)
        order[scene.solid] = torch.arange(len(scene.solid), device=scene.t.device)
        on_rock = order[scene.rocks.ray]
        is_ground = torch.ones(len(scene.solid), dtype=torch.bool, device=scene.t.device)
        is_ground[on_rock] = False
        on_ground = is_ground.nonzero()[:, 0]
        albedo = torch.empty_like(view)
        normal = torch.empty_like(view)
        fine_lit = torch.ones_like(distance)
        footprint = distance / self.k[0]
        albedo[on_ground], normal[on_ground], fine_lit[on_ground] = self._ground(
            scene.point[on_ground], scene.surface[on_ground], footprint[on_ground], view[on_ground])
        albedo[on_rock], normal[on_rock] = self._rock(scene.rocks, footprint[on_rock])
        point = scene.point
        lifted = point.index_add(0, on_rock, scene.rocks.normal * 0.03)
        lit = world.shade.sunlit(lifted) * fine_lit
        low_near = (scene.surface[:, NEAR_MEAN] - point[:, 2]).clamp_min(0.0)
        low_wide = (scene.surface[:, WIDE_MEAN] - point[:, 2]).clamp_min(0.0)
        open_sky = torch.exp(-7.0 * low_near - 1.6 * low_wide)
        colour = self._lambert(albedo, normal, view, lit, open_sky)
        radiance[scene.solid] = light.through_air(colour, view, distance)
        return radiance

    def _lambert(self, albedo: Tensor, normal: Tensor, view: Tensor, lit: Tensor, open_sky: Tensor) -> Tensor:
        """Dusty ground: half Lambert, half Lommel-Seeliger (flat towards the limb), sky from above, ground from below."""
        light, device = self.world.light, albedo.device
        sun = (normal * torch.tensor(light.sun, device=device)).sum(1).clamp_min(0.0)
        towards = -(normal * view).sum(1).clamp_max(-0.03)
        direct = (0.5 * sun + 0.5 * (2.0 * sun / (sun + towards + 0.05)).clamp_max(1.3) * light.sun[2] ** 0.5) * lit
        up = 0.5 + 0.5 * normal[:, 2]
        sky = torch.tensor(light.zenith, device=device) * 0.5 + torch.tensor(light.horizon, device=device) * 0.5
        sky = sky / sky.mean().clamp_min(1e-6) * light.ambient if float(sky.mean()) > 0 else torch.full_like(
            sky, light.ambient)
        bounce = self.world._colours[0] * (light.sun[2] + light.ambient) * 0.6
        received = (direct[:, None] * torch.tensor(light.sun_colour, device=device)
                    + (up * open_sky)[:, None] * sky + ((1.0 - up) * (0.3 + 0.7 * open_sky))[:, None] * bounce)
        return albedo * received

    def _ground(self, point: Tensor, surface: Tensor, footprint: Tensor, view: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        soil, sand, bedrock = self.world._colours[:3]
        bank = self.world.textures
        slope = torch.stack([-surface[:, 0], -surface[:, 1], torch.ones_like(footprint)], 1)
        normal = torch.nn.functional.normalize(slope, dim=1)
        facing = -(normal * view).sum(1).clamp_max(-0.06)
        # The footprint is long along the view; the geometric mean of its axes keeps detail without much shimmer.
        size = footprint / torch.sqrt(facing)
        u, v = point[:, 0] / textures.TILE, point[:, 1] / textures.TILE
        sandy = torch.sigmoid(surface[:, SAND_OVER] / 0.006 + 0.0)
        rocky = torch.sigmoid(surface[:, BEDROCK_OVER] / 0.006)
        weights = [(1 - sandy) * (1 - rocky), sandy * (1 - rocky), rocky]
        fine, broad = torch.zeros((len(u), 4), device=u.device), torch.zeros((len(u), 4), device=u.device)
        albedo = torch.zeros_like(view)
        c, s = 0.8, 0.6
        for material, (weight, colour) in enumerate(zip(weights, (soil, sand, bedrock))):
            index = (weight > 0.02).nonzero()[:, 0]
            if not len(index):
                continue
            w, uu, vv = weight[index, None], u[index], v[index]
            texels = size[index] / textures.CELL
            fine.index_add_(0, index, w * bank.sample(material, uu, vv, texels))
            bu, bv = (c * uu - s * vv) / 6.7, (s * uu + c * vv) / 6.7
            sample = bank.sample(material, bu, bv, texels / 6.7)
            turned = torch.stack([sample[:, 0], c * sample[:, 1] + s * sample[:, 2], c * sample[:, 2] - s * sample[:, 1],
                                  sample[:, 3]], 1)
            broad.index_add_(0, index, w * turned)
            albedo.index_add_(0, index, w * colour)
        tone = (1.0 + 0.07 * surface[:, TONE] + 0.12 * rocky * surface[:, SLAB_TONE]).clamp(0.6, 1.4)
        tone = tone * fine[:, 0].clamp(0.3, 2.0) * (0.4 + 0.6 * broad[:, 0]).clamp(0.5, 1.5)
        slope[:, 0] -= 1.1 * fine[:, 1] + 0.45 * broad[:, 1]
        slope[:, 1] -= 1.1 * fine[:, 2] + 0.45 * broad[:, 2]
        return albedo * tone[:, None], torch.nn.functional.normalize(slope, dim=1), fine[:, 3]

    def _rock(self, hits: Hits, footprint: Tensor) -> tuple[Tensor, Tensor]:
        """Rock seen from its dominant side: one texture, projected along that axis of the rock; dust on top."""
        world, rocks = self.world, self.world.rocks
        place = hits.local * rocks.axes.index_select(0, hits.rock)
        turn = rocks.turn.index_select(0, hits.rock)
        inner = (turn.transpose(1, 2) @ hits.normal[:, :, None])[:, :, 0]
        side = inner.abs().argmax(1)
        first, second = (side == 0).long(), torch.where(side == 2, 1, 2)
        scale = 1.0 / (textures.TILE * 0.45)
        shift = rocks.phase.index_select(0, hits.rock)
        u = place.gather(1, first[:, None])[:, 0] * scale + shift[:, 0] + 0.31 * side
        v = place.gather(1, second[:, None])[:, 0] * scale + shift[:, 1]
        sample = world.textures.sample(textures.ROCK, u, v, footprint * scale * textures.TEXELS)
        tilt = torch.zeros_like(place)
        tilt.scatter_(1, first[:, None], sample[:, 1:2]).scatter_(1, second[:, None], sample[:, 2:3])
        bent = torch.nn.functional.normalize(inner - 0.9 * tilt, dim=1)
        normal = (turn @ bent[:, :, None])[:, :, 0]
        layer = torch.sin(place[:, 2] * 90.0 + 3.0 * shift[:, 2] + 4.0 * place[:, 0]) * (rocks.kind[hits.rock] > 0.75)
        tone = (1.0 + rocks.tint[hits.rock]) * sample[:, 0].clamp(0.3, 1.8) * (1.0 + 0.06 * layer)
        dust = (world.dustiness * 1.5 * (normal[:, 2] - 0.45).clamp_min(0.0) / 0.55).clamp(0.0, 0.9)[:, None]
        albedo = torch.lerp(world._colours[3] * tone[:, None], world._colours[4] * sample[:, :1].clamp(0.6, 1.4), dust)
        return albedo, normal
