"""Materials and their response to light: the colour of what each ray sees."""

from __future__ import annotations

import torch
from torch import Tensor

from dino_perception.training.terrain import textures
from dino_perception.training.terrain.ground import (
    BEDROCK_OVER,
    CELLS,
    NEAR_MEAN,
    SAND_OVER,
    SIZE,
    SLAB_TONE,
    TONE,
    WIDE_MEAN,
)
from dino_perception.training.terrain.noise import smoothstep
from dino_perception.training.terrain.rocks import Hits


def radiance(world, scene, focal: float) -> Tensor:
    """Radiance (R, 3) of every ray of `scene` (view.RaysSeen); `focal` in pixels gives a pixel's size."""
    light = world.light
    length = torch.linalg.vector_norm(scene.direction, dim=1)
    direction = scene.direction / length[:, None]
    out = torch.empty_like(direction)
    sky = torch.isinf(scene.t).nonzero()[:, 0]
    out[sky] = light.sky(direction[sky])
    view, distance = direction[scene.solid], (scene.t * length)[scene.solid]
    order = torch.full((len(scene.t),), -1, device=out.device)
    order[scene.solid] = torch.arange(len(scene.solid), device=out.device)
    on_rock = order[scene.rocks.ray]
    on_ground = torch.ones(len(scene.solid), dtype=torch.bool, device=out.device).index_fill(0, on_rock, False)
    on_ground = on_ground.nonzero()[:, 0]
    albedo, normal, fine_lit = torch.empty_like(view), torch.empty_like(view), torch.ones_like(distance)
    footprint = distance / focal
    albedo[on_ground], normal[on_ground], fine_lit[on_ground] = _ground(
        world, scene.point[on_ground], scene.surface[on_ground], footprint[on_ground], view[on_ground]
    )
    albedo[on_rock], normal[on_rock] = _rock(world, scene.rocks, footprint[on_rock])
    # A rock's shadow lookup is lifted off it by a cell: its own cells in the shadow grid would darken its sunny side.
    outside = scene.point[on_rock, :2].abs().amax(1, keepdim=True) > 0.45 * CELLS[0] * SIZE
    lift = torch.where(outside, 1.6 * CELLS[1], 1.2 * CELLS[0])
    lifted = scene.point.index_add(0, on_rock, scene.rocks.normal * lift)
    lit = world.shade.sunlit(lifted) * fine_lit
    low_near = (scene.surface[:, NEAR_MEAN] - scene.point[:, 2]).clamp_min(0.0)
    low_wide = (scene.surface[:, WIDE_MEAN] - scene.point[:, 2]).clamp_min(0.0)
    open_sky = torch.exp(-7.0 * low_near - 1.6 * low_wide).clamp_min(0.3)
    out[scene.solid] = light.through_air(_reflect(world, albedo, normal, view, lit, open_sky), view, distance)
    return out


def _reflect(world, albedo: Tensor, normal: Tensor, view: Tensor, lit: Tensor, open_sky: Tensor) -> Tensor:
    """Dusty ground: two thirds Lambert, one third Lommel-Seeliger (flat towards the limb); light of the sky from above
    and of the ground from below."""
    light, device = world.light, albedo.device
    sun = (normal * torch.tensor(light.sun, device=device)).sum(1).clamp_min(0.0)
    towards = -(normal * view).sum(1).clamp_max(-0.03)
    direct = (0.65 * sun + 0.35 * (2.0 * sun / (sun + towards + 0.05)).clamp_max(1.3) * light.sun[2] ** 0.5) * lit
    up = 0.5 + 0.5 * normal[:, 2]
    # The sky is brighter around the sun, which keeps relief visible in shadow.
    level = torch.tensor([light.sun[0], light.sun[1], 0.0], device=device)
    up = (up + 0.35 * (normal * level).sum(1)).clamp_min(0.05)
    sky = torch.tensor(light.zenith, device=device) * 0.5 + torch.tensor(light.horizon, device=device) * 0.5
    sky = (
        sky / sky.mean().clamp_min(1e-6) * light.ambient
        if float(sky.mean()) > 0
        else torch.full_like(sky, light.ambient)
    )
    bounce = world.colours[0] * (light.sun[2] + light.ambient) * 0.6
    below = (0.5 - 0.5 * normal[:, 2]) * (0.3 + 0.7 * open_sky)
    return albedo * (
        direct[:, None] * torch.tensor(light.sun_colour, device=device)
        + (up * open_sky)[:, None] * sky
        + below[:, None] * bounce
    )


def _ground(world, point: Tensor, surface: Tensor, footprint: Tensor, view: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    soil, sand, bedrock = world.colours[:3]
    bank = world.textures
    slope = torch.stack([-surface[:, 0], -surface[:, 1], torch.ones_like(footprint)], 1)
    normal = torch.nn.functional.normalize(slope, dim=1)
    facing = -(normal * view).sum(1).clamp_max(-0.06)
    # The footprint is longer along the view than across: between the two lies detail without much shimmer.
    size = 0.8 * footprint * facing**-0.35
    u, v = point[:, 0] / textures.TILE, point[:, 1] / textures.TILE
    texels = size / textures.CELL
    soily = bank.sample(textures.SOIL, u, v, texels)
    # The border between two materials follows the grains: stones stick out of the sand's edge.
    sandy = torch.sigmoid((surface[:, SAND_OVER] - 0.02 * (soily[:, 0] - 1.0)) / 0.004)
    rocky = torch.sigmoid(surface[:, BEDROCK_OVER] / 0.005)
    weights = [(1 - sandy) * (1 - rocky), sandy * (1 - rocky), rocky]
    fine, broad, albedo = weights[0][:, None] * soily, torch.zeros_like(soily), torch.zeros_like(view)
    c, s = 0.8, 0.6
    bu, bv = (c * u - s * v) / 6.7, (s * u + c * v) / 6.7
    for material, (weight, colour) in enumerate(zip(weights, (soil, sand, bedrock))):
        index = (weight > 0.02).nonzero()[:, 0]
        w = weight[index, None]
        if material != textures.SOIL:
            fine.index_add_(0, index, w * bank.sample(material, u[index], v[index], texels[index]))
        sample = bank.sample(material, bu[index], bv[index], texels[index] / 6.7)
        tone, sx, sy = sample[:, 0], sample[:, 1], sample[:, 2]
        turned = torch.stack([tone, c * sx + s * sy, c * sy - s * sx], 1)
        # Far away the broad texture's repeats would show: it fades into its mean.
        kept = torch.exp(-((size[index, None] / 0.12) ** 2))
        turned = torch.cat([1.0 + kept * (turned[:, :1] - 1.0), kept * turned[:, 1:]], 1)
        broad[:, :3].index_add_(0, index, w * turned)
        albedo.index_add_(0, index, w * colour)
    relief = 1.1 * fine[:, 1:3] + 0.45 * broad[:, 1:3]
    lit = fine[:, 3].clone()
    # On a steep face the texture hangs from the face, not from the sky: along the contour and down.
    incline = surface[:, :2].abs().amax(1)
    face = (incline > 0.6).nonzero()[:, 0]
    if len(face):
        blend = smoothstep(0.6, 1.1, incline[face])
        axis = surface[face, :2].abs().argmax(1)
        along = point[face].gather(1, (1 - axis)[:, None])[:, 0]
        material = torch.stack(weights, 1)[face].argmax(1)
        hung = bank.sample(material, along / textures.TILE, 1.4 * point[face, 2] / textures.TILE, texels[face])
        fine[face, 0] = torch.lerp(fine[face, 0], hung[:, 0], blend)
        lit[face] = torch.lerp(lit[face], torch.ones_like(blend), blend)
        relief[face] = relief[face] * (1.0 - blend)[:, None]
        push = (blend * incline[face])[:, None] * hung[:, 1:3]
        slope[face, 1 - axis] -= push[:, 0]
        slope[face, 2] -= push[:, 1]
    tone = (1.0 + 0.07 * surface[:, TONE] + 0.12 * rocky * surface[:, SLAB_TONE]).clamp(0.6, 1.4)
    tone = tone * fine[:, 0].clamp(0.3, 2.0) * (0.4 + 0.6 * broad[:, 0]).clamp(0.5, 1.5)
    slope[:, :2] -= relief
    return albedo * tone[:, None], torch.nn.functional.normalize(slope, dim=1), lit


def _rock(world, hits: Hits, footprint: Tensor) -> tuple[Tensor, Tensor]:
    """Rock seen from its dominant side: one texture, projected along that axis of the rock; dust on top."""
    rocks = world.rocks
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
    albedo = torch.lerp(world.colours[3] * tone[:, None], world.colours[4] * sample[:, :1].clamp(0.6, 1.4), dust)
    return albedo, normal
