"""What pretraining sees: two frames of one rendered drive, and where each patch of the first is in the second.

Scenes are kept on the device that trains, and everything after the choice of frames happens there, a batch at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dino_perception.perception.geometry import pixels_under
from dino_perception.training.terrain.styles import BIG_ROCK, SKY

GAPS = (1, 2, 3, 5, 8)
ABOUT_ROCKS = 1 / 3
GREY = 0.299, 0.587, 0.114


@dataclass(frozen=True)
class RenderedScene:
    """A file of `training.scenes`: `rgb` (K, H, W, 3) uint8, `depth` (K, H, W) float16, `classes` (K, H, W) uint8, `pose`
    (K, 4, 4) and `intrinsics` (4,) float64; `rocks`, for each frame, rows and columns (N, 2) of some pixels of big rocks."""

    rgb: Tensor
    depth: Tensor
    classes: Tensor
    pose: Tensor
    intrinsics: Tensor
    rocks: tuple[np.ndarray, ...]


@dataclass(frozen=True)
class ScenePart:
    """What is shown of a scene: `frames`, and in each of them the pixels from row `top` and column `left` on."""

    scene: RenderedScene
    frames: Sequence[int]
    top: int
    left: int


class Pairs:
    """Two frames of one drive, and where each patch centre of the first is seen in the second.

    Reads the folders of `training.scenes`; every scene is one world seen by one camera.
    """

    def __init__(
        self,
        folder: Path,
        patch: int,
        size: tuple[int, int] | None,
        seed: int,
        crop: tuple[int, int] | None = None,
        device: torch.device | str = "cpu",
    ):
        """`size` (height, width) to shrink the scenes to, None leaves them. `crop` (height, width) of the part of each
        frame that is given, on the patch grid; None gives whole frames. `device` holds the scenes and makes the batches."""
        if crop and any(side % patch for side in crop):
            raise ValueError(f"the crop is {crop[0]}x{crop[1]} pixels; accepted are multiples of the patch, {patch}")
        self.folder, self.patch, self.size, self.crop = folder, patch, size, crop
        self.device = torch.device(device)
        self.random = np.random.default_rng(seed)
        self.light = torch.Generator(self.device).manual_seed(seed)
        self.cache: dict[Path, RenderedScene] = {}
        self.refresh()

    def refresh(self) -> None:
        """Take in the scenes that were rendered since."""
        self.scenes = sorted(self.folder.glob("*.npz"))
        if not self.scenes:
            raise SystemExit(
                f"{self.folder} holds no scenes; make some with python -m dino_perception.training.terrain.scenes"
            )

    def whole(self) -> tuple[int, int]:
        """Height and width of the frames before they are cropped."""
        return tuple(self._scene().classes.shape[1:])

    def batch(self, pairs: int) -> dict[str, Tensor]:
        """rgb (2P, H, W, 3) uint8, classes (2P, H, W) int64, depth (2P, H, W) float32 with NaN, target (P, N, 2)
        float32 patch-grid x, y of the second frame with NaN where the first's patch centre is not seen in it, corner
        (2P, 2) int64 row and column of the first patch in the grid of the whole frame. Frames 2p and 2p + 1 are pair p."""
        drawn = [self._pair() for _ in range(pairs)]
        whole = drawn[0].scene.classes.shape[1:]
        height, width = size = self.crop or whole
        flip = self._flips(pairs)
        batch = self._shown(drawn, size, flip)
        depth = torch.stack([p.scene.depth[f] for p in drawn for f in p.frames]).view(pairs, 2, *whole)
        poses = torch.stack([p.scene.pose[f] for p in drawn for f in p.frames]).view(pairs, 2, 4, 4)
        places = seen(depth, poses, torch.stack([p.scene.intrinsics for p in drawn]), self.patch)
        rows, columns = height // self.patch, width // self.patch
        if self.crop:  # matches that leave the crop are none
            start = [(p.top // self.patch, p.left // self.patch) for p in drawn]
            places = torch.stack([p[r : r + rows, c : c + columns] for p, (r, c) in zip(places, start)])
            places = places - self._tensor(start).flip(1)[:, None, None]
            last = self._tensor([columns - 1, rows - 1])
            inside = ((places >= 0) & (places <= last)).all(dim=-1, keepdim=True)
            places = torch.where(inside, places, torch.nan)
        mirrored = torch.stack([columns - 1 - places[..., 0], places[..., 1]], dim=-1).flip(2)
        places = torch.where(flip[:, None, None, None], mirrored, places)
        return {**batch, "target": places.flatten(1, 2).float()}

    def parts(self, count: int, size: tuple[int, int]) -> dict[str, Tensor]:
        """As `batch`, without target: `count` parts of `size` (height, width) pixels, each of a frame of its own. Small parts
        of many worlds say more about what kinds of ground look like than a few large pictures; one in three is about a
        place on a big rock, which are few."""
        return self._shown([self._part(size) for _ in range(count)], size, self._flips(count))

    def _part(self, size: tuple[int, int]) -> ScenePart:
        scene = self._scene()
        frame = int(self.random.integers(len(scene.rgb)))
        room = np.array(scene.classes.shape[1:]) // self.patch - np.array(size) // self.patch
        corner = self.random.integers(room + 1)
        if self.random.random() < ABOUT_ROCKS and len(rocks := scene.rocks[frame]):
            place = rocks[self.random.integers(len(rocks))] // self.patch
            corner = np.clip(place - self.random.integers(np.array(size) // self.patch), 0, room)
        return ScenePart(scene, [frame], *(self.patch * corner).tolist())

    def _pair(self) -> ScenePart:
        scene = self._scene()
        count = len(scene.rgb)
        gap = min(int(self.random.choice(GAPS)), count - 1)
        first = int(self.random.integers(count - gap))
        order = [first, first + gap] if self.random.random() < 0.7 else [first + gap, first]
        if not self.crop:
            return ScenePart(scene, order, 0, 0)
        room = (np.array(scene.classes.shape[1:]) - self.crop) // self.patch
        return ScenePart(scene, order, *(self.patch * self.random.integers(room + 1)).tolist())

    def _scene(self) -> RenderedScene:
        path = self.scenes[self.random.integers(len(self.scenes))]
        if path not in self.cache:
            with np.load(path) as file:
                arrays = {key: file[key] for key in file.files}
            if self.size:
                arrays = shrunk(arrays, self.size)
            rocks = tuple(4 * np.argwhere(frame[::4, ::4] == BIG_ROCK) for frame in arrays["classes"])
            self.cache[path] = RenderedScene(
                **{k: torch.from_numpy(np.ascontiguousarray(v)).to(self.device) for k, v in arrays.items()}, rocks=rocks
            )
        return self.cache[path]

    def _flips(self, count: int) -> Tensor:
        """(count,) bool: which are mirrored."""
        return self._tensor(self.random.random(count) < 0.5)

    def _shown(self, parts: Sequence[ScenePart], size: tuple[int, int], flip: Tensor) -> dict[str, Tensor]:
        """The frames of all parts, `size` pixels of each, as they are or mirrored, in other light; frames of one part share
        its tints. `corner` says where they are in the whole frame as it is shown, mirrored or not."""
        frames = len(parts[0].frames)

        def cut(of: str) -> Tensor:
            return torch.stack(
                [
                    getattr(p.scene, of)[f, p.top : p.top + size[0], p.left : p.left + size[1]]
                    for p in parts
                    for f in p.frames
                ]
            )

        rgb, classes, depth = cut("rgb"), cut("classes"), cut("depth")
        rgb = self._lit(rgb, classes, frames)
        corner = self._tensor([(p.top // self.patch, p.left // self.patch) for p in parts])
        columns = (parts[0].scene.classes.shape[2] - size[1]) // self.patch
        corner[:, 1] = torch.where(flip, columns - corner[:, 1], corner[:, 1])
        flip, corner = flip.repeat_interleave(frames), corner.repeat_interleave(frames, dim=0)
        rgb = torch.where(flip[:, None, None, None], rgb.flip(2), rgb)
        classes, depth = (torch.where(flip[:, None, None], x.flip(2), x) for x in (classes, depth))
        return dict(rgb=rgb, classes=classes.long(), depth=depth.float(), corner=corner)

    def _lit(self, rgb: Tensor, classes: Tensor, frames: int) -> Tensor:
        """The pictures with ground of other colours, a draw for every `frames` pictures, in other light."""
        return self._photographed(
            recoloured(rgb, classes, self._tints(len(rgb) // frames).repeat_interleave(frames, dim=0))
        )

    def _tints(self, count: int) -> Tensor:
        """(count, 256, 3) float32: what each class's colour is multiplied by. Ground of another colour is still that ground:
        what is learned shall be its texture and shape, so that a style of terrain never seen is no riddle."""
        tints = torch.zeros(count, 256, 3, device=self.device)
        drawn = self._normal(count, SKY, 1) * 0.2 + self._normal(count, SKY, 3) * 0.06  # the classes before the sky
        tints[:, :SKY] = drawn * (self._uniform(count, 1, 1) < 0.7)
        return tints.exp()

    def _photographed(self, rgb: Tensor) -> Tensor:
        """(B, H, W, 3), 0 to 255, at another exposure, white balance, contrast and gamma, with noise: uint8."""
        count = len(rgb)
        gamma, exposure, contrast = (
            self._normal(3, count, 1, 1, 1) * self._tensor([0.15, 0.2, 0.15]).view(3, 1, 1, 1, 1)
        ).exp()
        gain = exposure * (self._normal(count, 1, 1, 3) * 0.06).exp()
        level = (
            rgb.float().div_(255).clamp_(0, 1).pow_(gamma).mul_(gain).sub_(0.45).mul_(contrast).add_(0.45).clamp_(0, 1)
        )
        grey = self._uniform(count, 1, 1, 1) < 0.15
        level = torch.where(grey, (level @ self._tensor(GREY))[..., None], level)
        noise = torch.randn(level.shape, generator=self.light, device=self.device)
        level.add_(noise.mul_(self._uniform(count, 1, 1, 1) * 0.02))
        return level.clamp_(0, 1).mul_(255).round_().to(torch.uint8)

    def _normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.light, device=self.device)

    def _uniform(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.light, device=self.device)

    def _tensor(self, values) -> Tensor:
        """Numbers drawn on the CPU, float32 where they are fractions, sent without waiting for the device."""
        tensor = torch.as_tensor(values)
        return tensor.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else tensor


def recoloured(rgb: Tensor, classes: Tensor, tints: Tensor) -> Tensor:
    """The pictures (B, H, W, 3) uint8 with each class's pixels multiplied by its tint (B, 256, 3), softly across borders:
    float32, 0 to 255 and beyond."""
    first = 256 * torch.arange(len(tints), device=tints.device)[:, None, None]
    factor = F.embedding(classes.int() + first, tints.flatten(0, 1)).permute(0, 3, 1, 2).contiguous()
    return rgb * F.avg_pool2d(factor, 5, 1, 2, count_include_pad=False).permute(0, 2, 3, 1)


def shrunk(scene: dict[str, np.ndarray], size: tuple[int, int]) -> dict[str, np.ndarray]:
    """The scene as a camera of fewer pixels sees it: colours averaged, depth and classes of the nearest pixel."""
    height, width = scene["rgb"].shape[1:3]
    if (height, width) == size:
        return scene
    rows, columns = (pixels_under(n, m, m, n) for n, m in zip(size, (height, width)))
    fx, fy, cx, cy = scene["intrinsics"]
    x, y = size[1] / width, size[0] / height
    rgb = np.stack([cv2.resize(f, size[::-1], interpolation=cv2.INTER_AREA) for f in scene["rgb"]])
    return {
        **scene,
        "rgb": rgb,
        "depth": scene["depth"][:, rows][:, :, columns],
        "classes": scene["classes"][:, rows][:, :, columns],
        "intrinsics": np.array([fx * x, fy * y, (cx + 0.5) * x - 0.5, (cy + 0.5) * y - 0.5]),
    }


def seen(depth: Tensor, pose: Tensor, intrinsics: Tensor, patch: int) -> Tensor:
    """Where the first frame's patch centres lie in the second's patch grid: (P, rows, columns, 2) float64 x, y.

    `depth` (P, 2, H, W) metres, `pose` (P, 2, 4, 4) float64 camera to world, `intrinsics` (P, 4) float64 fx, fy, cx, cy.
    NaN where the first has no depth, the point leaves the second image, or something nearer hides it there.
    """
    height, width = depth.shape[2:]
    middle, device = patch // 2, depth.device  # the pixel that stands for a patch's centre
    v, u = (torch.arange(middle, side, patch, device=device) for side in (height, width))
    z = depth[:, 0, middle::patch, middle::patch].double()
    fx, fy, cx, cy = intrinsics[:, :, None, None].unbind(1)
    ray = torch.stack([((u - cx) / fx).expand_as(z), ((v[:, None] - cy) / fy).expand_as(z), torch.ones_like(z)], dim=-1)
    turn, shift = pose[:, :, None, :3, :3], pose[:, :, None, None, :3, 3]
    world = (ray * z[..., None]) @ turn[:, 0].transpose(-1, -2) + shift[:, 0]
    x, y, ahead = ((world - shift[:, 1]) @ turn[:, 1]).unbind(-1)
    x, y = x / ahead * fx + cx, y / ahead * fy + cy
    inside = (ahead > 0.05) & (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
    pixel = torch.where(inside, y.round() * width + x.round(), 0).long()
    there = depth[:, 1].flatten(1).gather(1, pixel.flatten(1)).view_as(z).double()
    visible = inside & ((there - ahead).abs() < 0.05 * ahead + 0.02)
    return torch.where(visible[..., None], (torch.stack([x, y], dim=-1) - middle) / patch, torch.nan)
