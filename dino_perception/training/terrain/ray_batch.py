"""The rays of a batch of frames: what each sees, and the picture that makes, smooth at outlines."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dino_perception.training.terrain.ground import BEDROCK_OVER, SAND_OVER
from dino_perception.training.terrain.rays import Horizon
from dino_perception.training.terrain.rocks import Hits
from dino_perception.training.terrain.shading import radiance
from dino_perception.training.terrain.styles import BEDROCK, BIG_ROCK, SAND, SKY, SOIL

SUBPIXELS = ((0.125, 0.375), (-0.375, 0.125), (0.375, -0.125), (-0.125, -0.375))
"""Where outlines are sampled again, in pixels from the centre."""


@dataclass
class RaysSeen:
    """What rays (R) see. `direction` (R, 3) with unit z in the camera's frame, so that `t` (R,) is depth, inf in the
    sky; `classes` (R,) uint8; `rocks` the rock hits; `solid` (S,) the rays that end on something, at `point` (S, 3),
    where the ground's `surface` is (S, 8)."""

    direction: Tensor
    t: Tensor
    classes: Tensor
    rocks: Hits
    solid: Tensor
    point: Tensor
    surface: Tensor


class RayBatch:
    """A batch of frames of one world; `scene` holds a ray a pixel, frame after frame, row after row."""

    def __init__(self, world, poses: np.ndarray, camera):
        self.world, self.width, self.height = world, camera.width, camera.height
        device, batch = world.device, len(poses)
        k = np.asarray(camera.k, np.float64)
        self.focal = (float(k[0, 0]), float(k[1, 1]))
        self.origin = torch.tensor(poses[:, :3, 3], dtype=torch.float32, device=device)
        self.rotation = torch.tensor(poses[:, :3, :3], dtype=torch.float32, device=device)
        x = (torch.arange(self.width, device=device, dtype=torch.float32) - k[0, 2]) / k[0, 0]
        y = (torch.arange(self.height, device=device, dtype=torch.float32) - k[1, 2]) / k[1, 1]
        rays = torch.stack(
            [
                x.expand(self.height, -1),
                y[:, None].expand(-1, self.width),
                torch.ones((self.height, self.width), device=device),
            ],
            -1,
        )
        direction = rays.view(1, -1, 3) @ self.rotation.transpose(1, 2)
        self.horizon = Horizon(world.ground, self.origin, direction, max(64, self.width // 2))
        self.frame = torch.arange(batch, device=device).repeat_interleave(self.width * self.height)
        self.pairs = world.rocks.in_view(
            self.rotation.transpose(1, 2), self.origin, (*self.focal, k[0, 2], k[1, 2]), self.width, self.height
        )
        self.scene = self._trace(direction.reshape(-1, 3), self.frame, *self.pairs)

    def picture(self) -> Tensor:
        """Radiance (R, 3) of every pixel; those on an outline are the mean of four rays through them."""
        colour = radiance(self.world, self.scene, self.focal[0])
        edge = self._outlines().nonzero()[:, 0]
        if len(edge):
            right, down = self.rotation[:, :, 0] / self.focal[0], self.rotation[:, :, 1] / self.focal[1]
            frame = self.frame[edge]
            shifts = torch.stack([a * right + b * down for a, b in SUBPIXELS], 1)
            direction = (self.scene.direction[edge][:, None] + shifts[frame]).reshape(-1, 3)
            pixel, pair_frame, rock = self.pairs
            place = torch.full((len(self.frame),), -1, device=edge.device).index_copy(
                0, edge, torch.arange(len(edge), device=edge.device)
            )[pixel]
            kept = (place >= 0).nonzero()[:, 0]
            ray = (place[kept][:, None] * 4 + torch.arange(4, device=edge.device)).flatten()
            scene = self._trace(
                direction,
                frame.repeat_interleave(4),
                ray,
                pair_frame[kept].repeat_interleave(4),
                rock[kept].repeat_interleave(4),
            )
            colour[edge] = radiance(self.world, scene, self.focal[0]).clamp_max(4.0).view(-1, 4, 3).mean(1)
        return colour

    def _trace(self, direction: Tensor, frame: Tensor, ray: Tensor, pair_frame: Tensor, rock: Tensor) -> RaysSeen:
        world = self.world
        t = self.horizon.meet(direction, frame)
        rocks = world.rocks.nearest(ray, pair_frame, rock, self.origin, direction, t)
        t = t.index_copy(0, rocks.ray, rocks.t)
        solid = torch.isfinite(t).nonzero()[:, 0]
        point = self.origin.index_select(0, frame[solid]) + t[solid, None] * direction[solid]
        surface = world.ground.surface_at(point[:, 0], point[:, 1])
        kind = torch.full((len(solid),), SOIL, dtype=torch.uint8, device=t.device)
        kind[surface[:, SAND_OVER] > 0] = SAND
        kind[surface[:, BEDROCK_OVER] > 0] = BEDROCK
        classes = torch.full_like(t, SKY, dtype=torch.uint8)
        classes[solid] = kind
        classes[rocks.ray[world.rocks.big[rocks.rock]]] = BIG_ROCK
        return RaysSeen(direction, t, classes, rocks, solid, point, surface)

    def _outlines(self) -> Tensor:
        """(R,) bool: pixels where nearness bends sharply (it is linear in the image of a plane) or the rock changes."""
        shape = (-1, self.height, self.width)
        near = (1.0 / self.scene.t).view(shape)
        rock = torch.full_like(self.scene.t, -1.0)
        rock[self.scene.rocks.ray] = self.scene.rocks.rock.float()
        rock = rock.view(shape)
        edge = torch.zeros_like(near, dtype=torch.bool)
        for dim in (1, 2):
            n = near.shape[dim]
            a, b, c = near.narrow(dim, 0, n - 2), near.narrow(dim, 1, n - 2), near.narrow(dim, 2, n - 2)
            edge.narrow(dim, 1, n - 2).logical_or_((a + c - 2 * b).abs() > 0.06 * torch.maximum(torch.maximum(a, c), b))
            change = rock.narrow(dim, 0, n - 1) != rock.narrow(dim, 1, n - 1)
            edge.narrow(dim, 0, n - 1).logical_or_(change)
            edge.narrow(dim, 1, n - 1).logical_or_(change)
        return edge.flatten()
