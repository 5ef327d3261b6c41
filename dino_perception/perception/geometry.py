"""Every size, pixel and intrinsics mapping, in one place.

Pixel centres are at integers and resizing keeps pixel edges, so a pixel x of an image resized by s lies at
x' = (x + 0.5) s - 0.5. What lenses do on top is in lens.py.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from dataclasses import dataclass

import numpy as np

from dino_perception.perception.frame import CameraModel, Frame, Percept
from dino_perception.perception.lens import GeometryError, check_camera, distort, undistort


@dataclass(frozen=True)
class Letterbox:
    """How an image lies in the network's input, and what part of the output grid it fills.

    The image keeps its aspect, touches the top left corner of the `input_height` x `input_width` pixels that the
    backbone sees, and the rest (right or below) is padding. Heads answer for the whole padded input on a grid of
    `grid_height` x `grid_width`; the image's own part is its first `output_height` rows and `output_width` columns.
    """

    image_height: int
    image_width: int
    input_height: int
    input_width: int
    content_height: int
    content_width: int
    grid_height: int
    grid_width: int
    output_height: int
    output_width: int

    @property
    def input_scale(self) -> tuple[float, float]:
        """(x, y): network pixels per image pixel."""
        return self.content_width / self.image_width, self.content_height / self.image_height

    @property
    def output_scale(self) -> tuple[float, float]:
        """(x, y): output pixels per image pixel."""
        x, y = self.input_scale
        return x * self.grid_width / self.input_width, y * self.grid_height / self.input_height

    def to_input(self, xy: np.ndarray) -> np.ndarray:
        """Image pixels (..., 2) as pixels of the network's input."""
        return resized(xy, self.input_scale)

    def from_input(self, xy: np.ndarray) -> np.ndarray:
        """Pixels (..., 2) of the network's input as image pixels."""
        x, y = self.input_scale
        return resized(xy, (1 / x, 1 / y))

    def to_output(self, xy: np.ndarray) -> np.ndarray:
        """Image pixels (..., 2) as pixels of mask, depth and points."""
        return resized(xy, self.output_scale)

    def from_output(self, xy: np.ndarray) -> np.ndarray:
        """Pixels (..., 2) of mask, depth and points as image pixels."""
        x, y = self.output_scale
        return resized(xy, (1 / x, 1 / y))

    def output_camera(self, camera: CameraModel) -> CameraModel:
        """The camera model of the image, for the output arrays."""
        return scale_camera(camera, self.output_scale, self.output_width, self.output_height)

    def crop(self, grid: np.ndarray) -> np.ndarray:
        """The image's part of arrays (..., grid_height, grid_width): a view (..., output_height, output_width)."""
        return grid[..., : self.output_height, : self.output_width]


def letterbox(
    image_height: int, image_width: int, input_height: int, input_width: int, grid_height: int, grid_width: int
) -> Letterbox:
    """Fits an image into the network's input, as large as it goes without changing its aspect.

    The content's size is rounded to whole network pixels, and, where an output pixel is two to four of them, to whole
    output pixels, so that the outputs cover the image to its edge; the scale of each axis is then exactly content /
    image, at most half an output pixel off the common one. Where the two grids do not divide, the last broken output
    row or column is left out. Raises GeometryError when the image is empty or so thin that no output pixel is left.
    """
    if min(image_height, image_width) < 1:
        raise GeometryError(f"the image is {image_width}x{image_height} pixels; at least 1x1 is needed")
    scale = min(input_height / image_height, input_width / image_width)
    content_height = _fitted(image_height * scale, input_height, grid_height)
    content_width = _fitted(image_width * scale, input_width, grid_width)
    output_height = content_height * grid_height // input_height
    output_width = content_width * grid_width // input_width
    if min(content_height, content_width, output_height, output_width) < 1:
        raise GeometryError(
            f"an image of {image_width}x{image_height} pixels is too thin: fitted into the network's "
            f"{input_width}x{input_height} it leaves no pixel of the output"
        )
    return Letterbox(
        image_height, image_width, input_height, input_width, content_height, content_width,
        grid_height, grid_width, output_height, output_width,
    )  # fmt: skip


def _fitted(length: float, whole: int, grid: int) -> int:
    step = whole // math.gcd(whole, grid)  # the fewest network pixels that are a whole number of output pixels
    if step > 4:
        step = 1
    return min(whole, step * round(length / step))


def pixels_under(count: int, size: int, source: float, target: float) -> np.ndarray:
    """For each of `count` pixels in a row, which of `size` other pixels its centre lies in, where `source` of these span
    `target` of those: (count,) int. Nearest neighbour, so that nothing is mixed; between two pixels, the later one counts."""
    return np.minimum(((np.arange(count) + 0.5) * source / target).astype(int), size - 1)


def whole_patches(box: Letterbox, rows: int, columns: int) -> tuple[int, int]:
    """How many rows and columns of a map that covers the network's input see nothing but the image, at least one each."""
    return (
        max(1, box.content_height * rows // box.input_height),
        max(1, box.content_width * columns // box.input_width),
    )


def touched_patches(box: Letterbox, rows: int, columns: int) -> tuple[int, int]:
    """How many rows and columns of such a map see some of the image."""
    return -(-box.content_height * rows // box.input_height), -(-box.content_width * columns // box.input_width)


def image_shares(box: Letterbox, rows: int, columns: int) -> np.ndarray:
    """(rows, columns) float32: the share of each patch of such a map that is image and not padding."""
    down = np.clip(box.content_height * rows / box.input_height - np.arange(rows), 0, 1)
    across = np.clip(box.content_width * columns / box.input_width - np.arange(columns), 0, 1)
    return np.outer(down, across).astype(np.float32)


def patch_matrix(box: Letterbox, rows: int, columns: int, scale: tuple[float, float]) -> np.ndarray:
    """(2, 3) float64: where a pixel (x, y, 1) of the image resized by `scale` (x, y) lies on such a map, its patches'
    centres at integers."""
    x, y = box.input_scale
    x, y = x * columns / box.input_width / scale[0], y * rows / box.input_height / scale[1]
    return np.array([[x, 0, 0.5 * x - 0.5], [0, y, 0.5 * y - 0.5]])


def resized(xy: np.ndarray, scale: tuple[float, float]) -> np.ndarray:
    """Pixel positions (..., 2) after a resize by `scale` (x, y), pixel centres at integers."""
    return (np.asarray(xy) + 0.5) * np.asarray(scale) - 0.5


def scale_camera(camera: CameraModel, scale: tuple[float, float], width: int, height: int) -> CameraModel:
    """The camera model of an image resized by `scale` (x, y) and cut to its first `width` x `height` pixels.

    Exact for a resize that keeps pixel edges: f' = f s, c' = (c + 0.5) s - 0.5, in K and in P; P's fourth column,
    a baseline times f, scales with f. Distortion acts on normalised coordinates and stays.
    """
    matrix = np.array([[scale[0], 0, 0.5 * scale[0] - 0.5], [0, scale[1], 0.5 * scale[1] - 0.5], [0, 0, 1]])
    k = matrix @ camera.k
    p = None
    if camera.p is not None:
        p = camera.p * np.array([[scale[0]], [scale[1]], [1.0]])
        p[:2, :3] = (matrix @ camera.p[:, :3])[:2]
    return dataclasses.replace(camera, width=width, height=height, k=k, p=p)


def rectified(camera: CameraModel) -> CameraModel:
    """The camera model of the rectified image (`image_rect`): K is P's left part, no distortion, no rotation left.

    P is kept; without a P the image was undistorted to K itself.
    """
    k = camera.k if camera.p is None or camera.p[0, 0] == 0 else camera.p[:, :3]
    return dataclasses.replace(camera, k=np.array(k, np.float64), d=np.zeros(0), model="plumb_bob", r=np.eye(3))


def usable_camera(frame: Frame, is_rectified: bool) -> tuple[CameraModel | None, str]:
    """The camera model to use for a frame's image and, when there is none, one sentence why."""
    camera = frame.camera_model
    if camera is None:
        return None, "no camera_info, or one without calibration (K is all zero)"
    height, width = frame.image.shape[:2]
    if (camera.height, camera.width) != (height, width):
        return None, f"camera_info is for {camera.width}x{camera.height} pixels and the image has {width}x{height}"
    if is_rectified:
        camera = rectified(camera)
    try:
        check_camera(camera)
    except GeometryError as error:
        return None, str(error)
    return camera, ""


def focal_scale(percept: Percept, input_height: int, input_width: int, focal_length: float) -> float:
    """The camera's focal length in pixels of the network's input (the mean of x and y), over `focal_length`; NaN where the
    percept has no usable camera."""
    if percept.output_camera is None:
        return math.nan
    height, width = percept.frame.image.shape[:2]
    x, y = letterbox(height, width, input_height, input_width, input_height, input_width).input_scale
    out = percept.output_scale
    k = percept.output_camera.k
    return (k[0, 0] / out[0] * x + k[1, 1] / out[1] * y) / 2 / focal_length


def project(camera: CameraModel, points: np.ndarray) -> np.ndarray:
    """Pixels (..., 2) float64 of points (..., 3) in the camera's optical frame (x right, y down, z forward).

    With distortion, through K and D. Points with z <= 0 give NaN.
    """
    check_camera(camera)
    points = np.asarray(points, np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        xy = points[..., :2] / np.where(points[..., 2:] > 0, points[..., 2:], np.nan)
    xy = np.stack(distort(camera, xy[..., 0], xy[..., 1]), axis=-1)
    return xy * [camera.k[0, 0], camera.k[1, 1]] + [camera.k[0, 2], camera.k[1, 2]]


def rays(camera: CameraModel) -> np.ndarray:
    """Undistorted rays of every pixel centre: (height, width, 3) float32, z = 1, so that depth * ray is the point.

    Newton's method on the lens formula. A pixel that no ray in front of the camera reaches, or that lies beyond the
    radius where the calibration's polynomial folds back (it then says nothing about that pixel), is NaN.
    Computed once for a camera model and kept (read-only). Raises GeometryError for one that cannot be used.
    """
    check_camera(camera)
    return _rays(*_key(camera))


def reach(camera: CameraModel, distance: float) -> np.ndarray:
    """The depth (height, width) float32 at which each pixel's ray has gone `distance` metres from the camera; NaN where
    there is no ray. Kept as `rays` are, and raises as it does."""
    check_camera(camera)
    return _reach(*_key(camera), distance)


def _key(camera: CameraModel) -> tuple[int, int, str, bytes, bytes]:
    k, d = (np.ascontiguousarray(a, np.float64).tobytes() for a in (camera.k, camera.d))
    return camera.width, camera.height, camera.model, k, d


@functools.lru_cache(maxsize=32)
def _rays(width: int, height: int, model: str, k: bytes, d: bytes) -> np.ndarray:
    camera = CameraModel(width, height, np.frombuffer(k).reshape(3, 3), np.frombuffer(d), model)
    v, u = np.mgrid[: camera.height, : camera.width].astype(np.float64)
    x = (u - camera.k[0, 2]) / camera.k[0, 0]
    y = (v - camera.k[1, 2]) / camera.k[1, 1]
    x, y = undistort(camera, x, y)
    out = np.stack([x, y, np.ones_like(x)], axis=-1)
    out[~np.isfinite(out).all(axis=-1)] = np.nan
    out = out.astype(np.float32)
    out.flags.writeable = False
    return out


@functools.lru_cache(maxsize=32)
def _reach(*key_and_distance) -> np.ndarray:
    *key, distance = key_and_distance
    out = (distance / np.linalg.norm(_rays(*key).astype(np.float64), axis=-1)).astype(np.float32)
    out.flags.writeable = False
    return out


def points(depth: np.ndarray, ray: np.ndarray) -> np.ndarray:
    """Points (h, w, 3) float32 in the optical frame of depth (h, w) metres along the optical axis; NaN stays NaN."""
    return depth[..., None].astype(np.float32, copy=False) * ray
