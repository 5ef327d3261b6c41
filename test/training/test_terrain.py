"""The rendered terrain: exact depth, honest classes, textures that stay where they are, and one world a seed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates, uniform_filter

from dino_perception.perception.frame import CameraModel
from dino_perception.training.terrain.ground import CELLS, SIZE, Ground
from dino_perception.training.terrain.ray_batch import RayBatch
from dino_perception.training.terrain.rocks import BALL, BUMPS
from dino_perception.training.terrain.world import (
    CLASSES,
    HELD_OUT_STYLES,
    STYLES,
    TRAIN_STYLES,
    PinholeCamera,
    World,
    camera_mount,
)

CAMERA = PinholeCamera.of(160, 120)
SEED = 45


@pytest.fixture(scope="module")
def world() -> World:
    return World(SEED, "mars")


@pytest.fixture(scope="module")
def poses(world) -> np.ndarray:
    return world.drive(60, 10.0, camera_height=1.1, camera_pitch=0.26)


@pytest.fixture(scope="module")
def frames(world, poses):
    return world.render(poses[[10, 13, 40]], CAMERA)


def rays(camera) -> np.ndarray:
    """(H, W, 3) unit-z rays, written here independently of the renderer."""
    v, u = np.mgrid[: camera.height, : camera.width].astype(np.float64)
    return np.stack([(u - camera.k[0, 2]) / camera.k[0, 0], (v - camera.k[1, 2]) / camera.k[1, 1], np.ones_like(u)], -1)


def seen_from(depth: np.ndarray, pose: np.ndarray, other: np.ndarray, camera) -> tuple[np.ndarray, np.ndarray]:
    """Pixel coordinates (H, W, 2) and depth (H, W) in the `other` view of every pixel's point."""
    points = rays(camera) * depth[..., None] @ pose[:3, :3].T + pose[:3, 3]
    local = (points - other[:3, 3]) @ other[:3, :3]
    z = local[..., 2]
    return np.stack(
        [local[..., 0] / z * camera.k[0, 0] + camera.k[0, 2], local[..., 1] / z * camera.k[1, 1] + camera.k[1, 2]], -1
    ), z


def test_depth_is_the_first_crossing_of_each_ray_with_the_ground(world, poses):
    """Against a plain march of 2 mm steps over scipy's bilinear interpolation of the same grid."""
    # A low camera looking along bumpy ground, where rays graze crests.
    pose = poses[10].copy()
    pose[2, 3] -= 0.6
    view = RayBatch(world, pose[None], PinholeCamera.of(160, 120))
    t = view.horizon.meet(view.scene.direction, view.frame).double().numpy()
    direction = (rays(CAMERA) @ pose[:3, :3].T).reshape(-1, 3)
    reach = t * np.hypot(direction[:, 0], direction[:, 1])
    chosen = np.random.default_rng(0).choice(np.flatnonzero(reach < 10.0), 250, replace=False)
    grid = world.ground.grid(0).double().numpy()
    steps = np.arange(0.0, 11.0, 0.002)[None, :]
    d = direction[chosen]
    level = np.hypot(d[:, 0], d[:, 1])[:, None]
    along = [pose[axis, 3] + steps * d[:, axis, None] / level for axis in range(3)]
    place = [along[axis] / CELLS[0] + (SIZE - 1) / 2 for axis in (1, 0)]
    ground = map_coordinates(grid, place, order=1)
    first = np.argmax(along[2] <= ground, axis=1)
    error = np.abs(reach[chosen] - steps[0, first])
    # What one step cannot tell apart; a ray that slips past a crest thinner than the table's spacing may differ more.
    assert np.mean(error < 0.0025) > 0.97
    assert np.median(error) < 0.002


def test_depth_on_a_tilted_plane_is_the_closed_form(world, poses):
    plane = np.array([0.08, -0.05, -1.0])
    flat = object.__new__(World)
    flat.__dict__ = dict(world.__dict__)
    flat.ground = object.__new__(Ground)
    flat.ground.__dict__ = dict(world.ground.__dict__)
    heights = []
    for cell in CELLS:
        axis = (torch.arange(SIZE, dtype=torch.float64) - (SIZE - 1) / 2) * cell
        heights.append((plane[0] * axis[None, :] + plane[1] * axis[:, None]).float().flatten())
    flat.ground.height = torch.cat(heights)
    pose = np.eye(4)
    pose[:3, :3] = poses[10, :3, :3]
    pose[2, 3] = 1.4
    view = RayBatch(flat, pose[None], CAMERA)
    t = view.horizon.meet(view.scene.direction, view.frame).double().numpy().reshape(120, 160)
    expected = (-(pose[:3, 3] @ plane)) / (rays(CAMERA) @ pose[:3, :3].T @ plane)
    near = (expected > 0) & (expected < 250.0)
    assert near.mean() > 0.5
    assert np.abs(t[near] / expected[near] - 1.0).max() < 2e-4


def test_rock_hits_lie_where_a_dense_search_finds_the_solid(world, poses):
    """The rock's solid, sampled every 0.2 % of its size along the ray: the first sample inside is the hit."""
    view = RayBatch(world, poses[[10]], PinholeCamera.of(320, 240))
    hits, rocks = view.scene.rocks, world.rocks
    chosen = torch.randperm(len(hits.ray), generator=torch.Generator().manual_seed(1))[:120]
    error = []
    for i in chosen.tolist():
        rock = int(hits.rock[i])
        matrix = rocks.to_local[rock].double().numpy()
        origin = matrix @ (poses[10, :3, 3] - rocks.centre[rock].double().numpy())
        direction = matrix @ view.scene.direction[hits.ray[i]].double().numpy()
        size = 1.0 / np.linalg.norm(direction)
        t = float(hits.t[i]) + np.arange(-3.0, 1.0, 0.002) * size
        p = torch.tensor(origin + t[:, None] * direction, dtype=torch.float32)
        inside = rocks._depth_of(p, rocks.offset[rock].expand(len(p), -1), torch.full((len(p),), rock)) <= 0
        first = t[int(inside.float().argmax())] if bool(inside.any()) else np.inf
        error.append(abs(first - float(hits.t[i])) / size)
    assert np.mean(np.array(error) < 0.03) > 0.95
    assert float(torch.linalg.vector_norm(hits.local, dim=1).max()) < BALL + 2 * BUMPS


def test_depth_agrees_between_frames(frames, poses):
    """A point of one frame, moved by the poses, has the depth the next frame gives its pixel, unless hidden there."""
    pixel, z = seen_from(frames.depth[0], poses[10], poses[13], CAMERA)
    near = 1.0 / np.nan_to_num(frames.depth[1], nan=np.inf)
    found = map_coordinates(near, [pixel[..., 1], pixel[..., 0]], order=1, cval=np.nan)
    inside = np.isfinite(found) & np.isfinite(z) & (z < 15.0)
    error = np.abs(found[inside] * z[inside] - 1.0)
    assert inside.mean() > 0.4
    assert np.mean(error < 0.01) > 0.93
    # Moving the wrong way must not agree: the test would see a pose error of one frame.
    wrong, z = seen_from(frames.depth[0], poses[13], poses[10], CAMERA)
    found = map_coordinates(near, [wrong[..., 1], wrong[..., 0]], order=1, cval=np.nan)
    assert np.nanmean(np.abs(found * z - 1.0)[inside] < 0.01) < 0.5


def test_texture_stays_on_the_ground(world, poses):
    """Warped by depth and pose, one picture correlates with another 3 frames later; shifted by 6 pixels it does not."""
    camera = PinholeCamera.of(320, 240)
    frames = world.render(poses[[10, 13]], camera)
    grey = frames.rgb.astype(np.float64).mean(-1)
    pixel, z = seen_from(frames.depth[0], poses[10], poses[13], camera)

    def correlation(shift: float) -> float:
        x, y = np.nan_to_num(pixel[..., 0] + shift, nan=-9.0), np.nan_to_num(pixel[..., 1], nan=-9.0)
        warped = map_coordinates(grey[1], [y, x], order=1, mode="nearest")
        detail = [image - uniform_filter(image, 9) for image in (grey[0], warped)]
        inside = (x > 0) & (x < camera.width - 1) & (y > 0) & (y < camera.height - 1) & (z < 6.0)
        return float(np.corrcoef(detail[0][inside], detail[1][inside])[0, 1])

    assert correlation(0.0) > 0.6
    assert correlation(6.0) < 0.3


def test_sky_is_where_there_is_no_depth_and_every_class_appears(world, frames):
    sky = CLASSES.index("sky")
    assert np.array_equal(frames.classes == sky, np.isnan(frames.depth))
    assert frames.rgb.dtype == np.uint8 and frames.depth.dtype == np.float32 and frames.classes.dtype == np.uint8
    # A turn on the spot sees all five kinds.
    look = [np.eye(4) for _ in range(8)]
    for i, pose in enumerate(look):
        a = i * np.pi / 4
        pose[:2, :2] = [[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]]
        pose[2, 3] = float(world.ground.height_at(torch.zeros(1), torch.zeros(1)))
    around = world.render(np.stack(look) @ camera_mount(2.0, 0.15), CAMERA, colour=False)
    assert around.rgb is None
    share = np.bincount(around.classes.ravel(), minlength=5) / around.classes.size
    assert (share > 0.002).all() and len(share) == len(CLASSES)


def test_classes_belong_to_places(world, poses):
    """The same place has the same class in both frames, and pale bedrock is brighter than dark basaltic sand."""
    camera = PinholeCamera.of(320, 240)
    found = {kind: [] for kind in ("bedrock", "sand")}
    for first, second in ((5, 8), (40, 43)):
        frames = world.render(poses[[first, second]], camera)
        pixel, z = seen_from(frames.depth[0], poses[first], poses[second], camera)
        x, y = (np.nan_to_num(np.round(pixel[..., axis]), nan=-1).astype(int) for axis in (0, 1))
        inside = (x >= 0) & (x < camera.width) & (y >= 0) & (y < camera.height) & (z < 15.0)
        visible = inside.copy()
        visible[inside] = np.abs(frames.depth[1][y[inside], x[inside]] / z[inside] - 1.0) < 0.02
        assert np.mean(frames.classes[1][y[visible], x[visible]] == frames.classes[0][visible]) > 0.97
        for kind, values in found.items():
            values.append(frames.rgb[frames.classes == CLASSES.index(kind)].mean(-1))
    assert np.concatenate(found["bedrock"]).mean() > np.concatenate(found["sand"]).mean() + 10


def test_only_rocks_of_30_cm_are_big_rocks(world, poses):
    scene = RayBatch(world, poses[[10]], PinholeCamera.of(320, 240)).scene
    diameter = world.rocks.diameter[scene.rocks.rock]
    big = scene.classes[scene.rocks.ray] == CLASSES.index("big_rock")
    assert torch.equal(big, diameter >= 0.3)
    assert int((scene.classes == CLASSES.index("big_rock")).sum()) == int(big.sum())


def test_one_seed_is_one_world_byte_for_byte(world, poses, frames):
    again = World(SEED, "mars")
    assert np.array_equal(again.drive(60, 10.0, camera_height=1.1, camera_pitch=0.26), poses)
    one = again.render(poses[[10, 13, 40]], CAMERA)
    assert one.rgb.tobytes() == frames.rgb.tobytes()
    assert one.depth.tobytes() == frames.depth.tobytes()
    assert one.classes.tobytes() == frames.classes.tobytes()
    again.relight(SEED + 1)
    other = again.render(poses[[10]], CAMERA)
    assert other.depth.tobytes() == frames.depth[:1].tobytes()
    assert np.abs(other.rgb.astype(int) - frames.rgb[:1]).mean() > 3


def test_frames_rendered_together_equal_frames_rendered_alone(world, poses, frames):
    together = world.render(poses[[10, 13, 40]], CAMERA, batch=3)
    same = np.isclose(together.depth, frames.depth, rtol=1e-4, equal_nan=True)
    assert same.mean() > 0.999
    assert np.mean(np.abs(together.rgb.astype(int) - frames.rgb) <= 1) > 0.995


def test_the_camera_rides_at_mast_height_above_the_ground(world, poses):
    ground = world.ground.height_at(*(torch.tensor(poses[:, i, 3], dtype=torch.float32) for i in (0, 1))).numpy()
    above = poses[:, 2, 3] - ground
    assert 0.7 < above.min() and above.max() < 1.5
    step = np.linalg.norm(np.diff(poses[:, :3, 3], axis=0), axis=1) * 10.0
    assert 0.2 < step.mean() < 0.8
    assert np.allclose(np.linalg.det(poses[:, :3, :3]), 1.0)
    # Forward is along the optical axis, mostly level; the image's down is down.
    motion = np.diff(poses[:, :3, 3], axis=0)
    forward = np.einsum("ni,ni->n", motion / np.linalg.norm(motion, axis=1)[:, None], poses[:-1, :3, 2])
    assert forward.mean() > 0.85 and (poses[:, 2, 1] < -0.8).all()


def test_a_camera_model_of_the_perception_room_is_accepted_and_distortion_refused(world, poses):
    model = CameraModel(width=160, height=120, k=CAMERA.k)
    assert np.array_equal(
        world.render(poses[[10]], model, colour=False).depth,
        world.render(poses[[10]], CAMERA, colour=False).depth,
        equal_nan=True,
    )
    with pytest.raises(ValueError, match="undistorted"):
        world.render(poses[[10]], CameraModel(width=160, height=120, k=CAMERA.k, d=np.array([0.1, 0, 0, 0, 0])))


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="'venus'.*mars"):
        World(1, "venus")


def test_held_out_styles_are_not_training_styles():
    assert set(TRAIN_STYLES) | set(HELD_OUT_STYLES) == set(STYLES)
    assert not set(TRAIN_STYLES) & set(HELD_OUT_STYLES)
