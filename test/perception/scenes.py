"""Pictures with known motion, and descriptors that need no network."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from scipy.ndimage import map_coordinates

from dino_perception.perception import geometry
from dino_perception.perception.frame import CameraModel, Frame

EXACT_OPENCV = int(cv2.__version__.split(".")[0]) >= 5
"""Before version 5, OpenCV samples pictures at steps of 1/32 of a pixel."""


def texture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """(H, W) uint8 with structure at every scale."""
    rng = np.random.default_rng(seed)
    image = np.zeros((height, width), np.float32)
    for sigma in (1, 2, 4, 8, 16, 32):
        image += cv2.GaussianBlur(rng.normal(size=(height, width)).astype(np.float32), (0, 0), sigma) * sigma
    return np.clip((image - image.mean()) / image.std() * 40 + 128, 0, 255).astype(np.uint8)


def moved(
    image: np.ndarray, affine: np.ndarray, gain: float = 1.0, offset: float = 0.0, noise: float = 0.0
) -> np.ndarray:
    """The image with each point x at `affine` (2, 3) x, and another exposure."""
    if EXACT_OPENCV:
        out = cv2.warpAffine(image, affine, image.shape[1::-1], flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT)
    else:
        (x, y), (height, width) = np.linalg.inv(affine[:, :2]), image.shape
        at = np.stack(np.meshgrid(np.arange(width), np.arange(height)), axis=-1) - affine[:, 2]
        out = map_coordinates(image.astype(np.float64), [at @ y, at @ x], order=3, mode="reflect")
    out = out * gain + offset + np.random.default_rng(1).normal(0, noise, out.shape)
    return np.clip(out, 0, 255).round().astype(np.uint8)


def sift(image: np.ndarray, box: geometry.Letterbox, stride: int = 16) -> torch.Tensor:
    """OpenCV's SIFT around every patch centre of the network's input: (N, 128) unit vectors, row by row. It stands for
    a backbone here: descriptors that change smoothly and know a place again."""
    rows, columns = box.input_height // stride, box.input_width // stride
    x, y = np.meshgrid(np.arange(columns), np.arange(rows))
    at = box.from_input((np.stack([x, y], axis=-1).reshape(-1, 2) + 0.5) * stride - 0.5)
    size = 14.0 / box.input_scale[0]
    inside = (at >= 0).all(axis=1) & (at <= [image.shape[1] - 1, image.shape[0] - 1]).all(axis=1)
    points = [cv2.KeyPoint(float(a), float(b), size, 0.0) for a, b in at[inside]]
    _, found = cv2.SIFT_create().compute(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), points)
    out = np.random.default_rng(0).normal(size=(len(at), 128)).astype(np.float32)  # padding: anything
    out[inside] = np.sqrt(found / np.maximum(found.sum(axis=1, keepdims=True), 1e-6))
    return torch.from_numpy(out / np.maximum(np.linalg.norm(out, axis=1, keepdims=True), 1e-6))


@dataclass
class Drive:
    """Frames of the rendered terrain with their truth."""

    images: np.ndarray
    depth: np.ndarray
    poses: np.ndarray
    camera: CameraModel

    def frame(self, index: int, name: str = "camera") -> Frame:
        return Frame(name, index * 100_000_000, "optical", self.images[index], self.camera)

    def truth(self, a: int, b: int, xy: np.ndarray) -> np.ndarray:
        """Where points (N, 2) of frame a are in frame b; NaN in the sky, at depth edges, out of sight or hidden."""
        height, width = self.depth.shape[1:]
        x0, y0 = np.clip(xy.astype(int), 0, [width - 2, height - 2]).T
        four = np.stack([self.depth[a][y0 + j, x0 + i] for j in (0, 1) for i in (0, 1)], axis=1)
        fx, fy = xy[:, 0] - x0, xy[:, 1] - y0
        z = 1 / ((1 / four) * np.stack([(1 - fx) * (1 - fy), fx * (1 - fy), (1 - fx) * fy, fx * fy], axis=1)).sum(
            axis=1
        )
        k = self.camera.k
        point = np.concatenate([(xy - k[:2, 2]) / [k[0, 0], k[1, 1]], np.ones((len(xy), 1))], axis=1) * z[:, None]
        world = point @ self.poses[a][:3, :3].T + self.poses[a][:3, 3]
        there = (world - self.poses[b][:3, 3]) @ self.poses[b][:3, :3]
        to = geometry.project(self.camera, there)
        pixel = np.clip(np.nan_to_num(to).round().astype(int), 0, [width - 1, height - 1])
        seen = np.abs(self.depth[b][pixel[:, 1], pixel[:, 0]] - there[:, 2]) < 0.03 * there[:, 2]
        inside = (to >= 0).all(axis=1) & (to <= [width - 1, height - 1]).all(axis=1)
        smooth = four.max(axis=1) < 1.05 * four.min(axis=1)
        return np.where((seen & inside & smooth)[:, None], to, np.nan)
