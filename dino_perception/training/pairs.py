"""What pretraining sees: two frames of one rendered drive, and where each patch of the first is in the second."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from dino_perception.training.terrain_styles import BIG_ROCK, SKY

GAPS = (1, 2, 3, 5, 8)
ABOUT_ROCKS = 1 / 3


class Pairs:
    """Two frames of one drive, and where each patch centre of the first is seen in the second.

    Reads the folders of `training.scenes`; every scene is one world seen by one camera.
    """

    def __init__(self, folder: Path, patch: int, size: tuple[int, int] | None, seed: int,
                 crop: tuple[int, int] | None = None):
        """`size` (height, width) to shrink the scenes to, None leaves them. `crop` (height, width) of the part of each
        frame that is given, on the patch grid; None gives whole frames."""
        if crop and any(side % patch for side in crop):
            raise ValueError(f"the crop is {crop[0]}x{crop[1]} pixels; accepted are multiples of the patch, {patch}")
        self.folder, self.patch, self.size, self.crop = folder, patch, size, crop
        self.random = np.random.default_rng(seed)
        cv2.setRNGSeed(seed)
        self.cache: dict[Path, dict[str, np.ndarray]] = {}
        self.refresh()

    def refresh(self) -> None:
        """Take in the scenes that were rendered since."""
        self.scenes = sorted(self.folder.glob("*.npz"))
        if not self.scenes:
            raise SystemExit(f"{self.folder} holds no scenes; make some with python -m dino_perception.training.scenes")

    def batch(self, pairs: int) -> dict[str, Tensor]:
        """rgb (2P, H, W, 3) uint8, classes (2P, H, W) int64, depth (2P, H, W) float32 with NaN, target (P, N, 2)
        float32 patch-grid x, y of the second frame with NaN where the first's patch centre is not seen in it, corner
        (2P, 2) int64 row and column of the first patch in the grid of the whole frame. Frames 2p and 2p + 1 are pair p."""
        drawn = [self._pair() for _ in range(pairs)]
        return {key: torch.from_numpy(np.concatenate([d[key] for d in drawn])) for key in drawn[0]}

    def parts(self, count: int, size: tuple[int, int]) -> dict[str, Tensor]:
        """As `batch`, without target: `count` parts of `size` (height, width) pixels, each of a frame of its own. Small parts
        of many worlds say more about what kinds of ground look like than a few large pictures; one in three is about a
        place on a big rock, which are few."""
        drawn = [self._part(size) for _ in range(count)]
        return {key: torch.from_numpy(np.stack([d[key] for d in drawn])) for key in drawn[0]}

    def _part(self, size: tuple[int, int]) -> dict[str, np.ndarray]:
        scene = self._scene()
        frame = self.random.integers(len(scene["rgb"]))
        classes = scene["classes"][frame]
        room = np.array(classes.shape) // self.patch - np.array(size) // self.patch
        corner = self.random.integers(room + 1)
        if self.random.random() < ABOUT_ROCKS and len(rocks := np.argwhere(classes[::4, ::4] == BIG_ROCK)):
            place = 4 * rocks[self.random.integers(len(rocks))] // self.patch
            corner = np.clip(place - self.random.integers(np.array(size) // self.patch), 0, room)
        top, left = corner * self.patch
        pixels = slice(top, top + size[0]), slice(left, left + size[1])
        rgb, classes, depth = (scene[key][frame][pixels] for key in ("rgb", "classes", "depth"))
        rgb = self._photographed(recoloured(rgb, classes, self._tints()))
        if self.random.random() < 0.5:
            rgb, classes, depth = (np.ascontiguousarray(a[:, ::-1]) for a in (rgb, classes, depth))
            corner[1] = room[1] - corner[1]
        return dict(rgb=rgb, classes=classes.astype(np.int64), depth=depth.astype(np.float32), corner=corner.astype(np.int64))

    def whole(self) -> tuple[int, int]:
        """Height and width of the frames before they are cropped."""
        return self._scene()["rgb"].shape[1:3]

    def _scene(self) -> dict[str, np.ndarray]:
        path = self.scenes[self.random.integers(len(self.scenes))]
        if path not in self.cache:
            with np.load(path) as file:
                scene = {key: file[key] for key in file.files}
            self.cache[path] = shrunk(scene, self.size) if self.size else scene
        return self.cache[path]

    def _pair(self) -> dict[str, np.ndarray]:
        scene = self._scene()
        count = len(scene["rgb"])
        gap = min(int(self.random.choice(GAPS)), count - 1)
        first = int(self.random.integers(count - gap))
        order = [first, first + gap] if self.random.random() < 0.7 else [first + gap, first]
        depth = scene["depth"][order].astype(np.float32)
        x, y = seen(depth, scene["pose"][order], scene["intrinsics"], self.patch)
        rgb, classes = scene["rgb"][order], scene["classes"][order]
        corner = np.zeros(2, np.int64)
        if self.crop:
            (rgb, classes, depth, x, y), corner = self._cropped(rgb, classes, depth, x, y)
        tints = self._tints()
        rgb = np.stack([self._photographed(recoloured(*shown, tints)) for shown in zip(rgb, classes)])
        if self.random.random() < 0.5:
            rgb, depth, classes = (np.ascontiguousarray(a[:, :, ::-1]) for a in (rgb, depth, classes))
            columns = rgb.shape[2] // self.patch
            x = (columns - 1 - x)[:, ::-1]
            y = y[:, ::-1]
            corner[1] = scene["rgb"].shape[2] // self.patch - columns - corner[1]
        target = np.stack([x, y], axis=-1).reshape(1, -1, 2).astype(np.float32)
        return dict(rgb=rgb, depth=depth, classes=classes.astype(np.int64), target=target, corner=np.stack([corner] * 2))

    def _cropped(self, rgb, classes, depth, x, y) -> tuple[list[np.ndarray], np.ndarray]:
        """The same part of both frames, and its first patch's row and column; matches that leave it are none."""
        rows, columns = (side // self.patch for side in self.crop)
        row, column = corner = self.random.integers(np.array(x.shape) - (rows, columns) + 1)
        top, left = corner * self.patch
        pixels = slice(None), slice(top, top + self.crop[0]), slice(left, left + self.crop[1])
        patches = slice(row, row + rows), slice(column, column + columns)
        x, y = x[patches] - column, y[patches] - row
        with np.errstate(invalid="ignore"):
            inside = (x >= 0) & (x <= columns - 1) & (y >= 0) & (y <= rows - 1)
        x, y = (np.where(inside, c, np.nan) for c in (x, y))
        return [rgb[pixels], classes[pixels], depth[pixels], x, y], corner

    def _tints(self) -> np.ndarray:
        """(256, 3) float32: what each class's colour is multiplied by. Ground of another colour is still that ground: what
        is learned shall be its texture and shape, so that a style of terrain never seen is no riddle."""
        tints = np.ones((256, 3), np.float32)
        if self.random.random() < 0.7:
            ground = slice(0, SKY)  # the classes before it
            tints[ground] = np.exp(self.random.normal(0, 0.2, (SKY, 1)) + self.random.normal(0, 0.06, (SKY, 3)))
        return tints

    def _photographed(self, rgb: np.ndarray) -> np.ndarray:
        """Another exposure, white balance, contrast, gamma and noise."""
        r = self.random
        level = (np.arange(256) / 255) ** np.exp(r.normal(0, 0.15))
        gain = np.exp(r.normal(0, 0.2)) * np.exp(r.normal(0, 0.06, (3, 1)))
        level = (level * gain - 0.45) * np.exp(r.normal(0, 0.15)) + 0.45
        table = (np.clip(level, 0, 1) * 255 + 0.5).astype(np.uint8).T.reshape(1, 256, 3)
        rgb = cv2.LUT(rgb, np.ascontiguousarray(table))
        if r.random() < 0.15:
            rgb = cv2.cvtColor(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
        noise = cv2.randn(np.empty(rgb.shape, np.int16), 0, 255 * r.uniform(0, 0.02))
        return cv2.add(rgb, noise, dtype=cv2.CV_8U)


def recoloured(rgb: np.ndarray, classes: np.ndarray, tints: np.ndarray) -> np.ndarray:
    """The picture (H, W, 3) uint8 with each class's pixels multiplied by its tint (256, 3), softly across borders."""
    if (tints == 1).all():
        return rgb
    factor = cv2.blur(tints[classes], (5, 5))
    return cv2.multiply(rgb, factor, dtype=cv2.CV_8U)


def shrunk(scene: dict[str, np.ndarray], size: tuple[int, int]) -> dict[str, np.ndarray]:
    """The scene as a camera of fewer pixels sees it: colours averaged, depth and classes of the nearest pixel."""
    height, width = scene["rgb"].shape[1:3]
    if (height, width) == size:
        return scene
    rows, columns = ((np.arange(n) * m + m // 2) // n for n, m in zip(size, (height, width)))
    fx, fy, cx, cy = scene["intrinsics"]
    x, y = size[1] / width, size[0] / height
    rgb = np.stack([cv2.resize(f, size[::-1], interpolation=cv2.INTER_AREA) for f in scene["rgb"]])
    return {**scene, "rgb": rgb, "depth": scene["depth"][:, rows][:, :, columns],
            "classes": scene["classes"][:, rows][:, :, columns],
            "intrinsics": np.array([fx * x, fy * y, (cx + 0.5) * x - 0.5, (cy + 0.5) * y - 0.5])}


def seen(depth: np.ndarray, pose: np.ndarray, intrinsics: np.ndarray, patch: int) -> tuple[np.ndarray, np.ndarray]:
    """Where the first frame's patch centres lie in the second's patch grid, (rows, columns) float64 x and y.

    `depth` (2, H, W) metres, `pose` (2, 4, 4) camera to world, `intrinsics` (fx, fy, cx, cy). NaN where the first has
    no depth, the point leaves the second image, or something nearer hides it there.
    """
    height, width = depth.shape[1:]
    fx, fy, cx, cy = intrinsics
    v, u = np.meshgrid(np.arange(patch // 2, height, patch), np.arange(patch // 2, width, patch), indexing="ij")
    z = depth[0, v, u].astype(np.float64)
    ray = np.stack([(u - cx) / fx, (v - cy) / fy, np.ones_like(z)], axis=-1)
    world = (ray * z[..., None]) @ pose[0, :3, :3].T + pose[0, :3, 3]
    camera = (world - pose[1, :3, 3]) @ pose[1, :3, :3]
    with np.errstate(invalid="ignore", divide="ignore"):
        x = camera[..., 0] / camera[..., 2] * fx + cx
        y = camera[..., 1] / camera[..., 2] * fy + cy
        inside = (camera[..., 2] > 0.05) & (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
        there = depth[1, np.where(inside, y, 0).round().astype(int), np.where(inside, x, 0).round().astype(int)]
        visible = inside & (np.abs(there - camera[..., 2]) < 0.05 * camera[..., 2] + 0.02)
    shift = patch // 2  # the pixel that stands for a patch's centre
    return tuple(np.where(visible, (c - shift) / patch, np.nan) for c in (x, y))
