"""Lens distortion and its inverse on normalised image coordinates.

The formulas are those of OpenCV's calib3d documentation, which sensor_msgs/CameraInfo refers to.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np

from dino_perception.perception.frame import CameraModel

COEFFICIENTS = {"plumb_bob": (0, 4, 5), "rational_polynomial": (0, 4, 5, 8, 12, 14), "equidistant": (0, 4)}
"""How many distortion coefficients each model may carry."""


class GeometryError(ValueError):
    """Sizes or a camera model that cannot be used; the message says which and why."""


def check_camera(camera: CameraModel) -> None:
    """Raises GeometryError when the model or its number of coefficients is not known, or K, D, R or P cannot be those of
    a camera: not finite, another shape than a pinhole's, a focal length or a centre beyond all reason."""
    if camera.model not in COEFFICIENTS:
        raise GeometryError(f"distortion model '{camera.model}' is not known; accepted are {', '.join(COEFFICIENTS)}")
    if len(camera.d) not in COEFFICIENTS[camera.model]:
        counts = ", ".join(map(str, COEFFICIENTS[camera.model]))
        raise GeometryError(f"{camera.model} has {len(camera.d)} distortion coefficients; accepted are {counts}")
    if not (_pinhole(camera.k, camera) and np.isfinite(camera.d).all()):
        raise GeometryError(f"K or D of the camera is not usable: K is {_listed(camera.k)}, D is {_listed(camera.d)}")
    if not (np.abs(camera.r) < 1.5).all() or np.abs(camera.r @ camera.r.T - np.eye(3)).max() > 0.1:
        raise GeometryError(f"R of the camera is no rotation: it is {_listed(camera.r)}")
    if camera.p is not None and not (np.isfinite(camera.p).all() and _pinhole(camera.p[:, :3], camera)):
        raise GeometryError(f"P of the camera is not usable: it is {_listed(camera.p)}")
    if not _has_rays(camera.width, camera.height, camera.model, *(_raw(a) for a in (camera.k, camera.d))):
        raise GeometryError(
            f"D of the camera is of no lens: it is {_listed(camera.d)}, which leaves hardly a pixel a ray"
        )


def _pinhole(k: np.ndarray, camera: CameraModel) -> bool:
    """Whether K (3, 3) is [[fx, 0, cx], [0, fy, cy], [0, 0, 1]] with lengths that a camera of that size can have: from a
    thousandth of the image to a hundred thousand times it (a small region of a telescope's sensor)."""
    size = max(camera.width, camera.height, 1)
    with np.errstate(all="ignore"):
        focal, centre = np.array([k[0, 0], k[1, 1]]) / size, np.abs(k[:2, 2]) / size
        rest = np.abs([k[0, 1] / k[0, 0], k[1, 0] / k[0, 0], k[2, 0], k[2, 1], k[2, 2] - 1])
        return bool(((focal > 1e-3) & (focal < 1e5) & (centre < 1e4)).all() and (rest < 1e-6).all())


def _listed(matrix: np.ndarray) -> str:
    return "[" + ", ".join(f"{value:.6g}" for value in np.ravel(matrix)) + "]"


def _raw(matrix: np.ndarray) -> bytes:
    return np.ascontiguousarray(matrix, np.float64).tobytes()


@functools.lru_cache(maxsize=64)
def _has_rays(width: int, height: int, model: str, k: bytes, d: bytes) -> bool:
    """Whether at least one in twenty pixels has a ray, by a sparse grid of them. Coefficients may be so large that their
    products overflow; then none has."""
    camera = CameraModel(width, height, np.frombuffer(k).reshape(3, 3), np.frombuffer(d), model)
    u, v = (part.ravel() for part in np.meshgrid(*(np.linspace(0, size - 1, 15) for size in (width, height))))
    try:
        with np.errstate(all="ignore"):
            x, y = (u - camera.k[0, 2]) / camera.k[0, 0], (v - camera.k[1, 2]) / camera.k[1, 1]
            x, y = undistort(camera, x, y)
    except (np.linalg.LinAlgError, ValueError):
        return False
    return bool((np.isfinite(x) & np.isfinite(y)).mean() >= 0.05)


def distort(camera: CameraModel, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distorted normalised coordinates of undistorted ones, all of one shape, float64."""
    if len(camera.d) == 0:
        return x, y
    return _lens(camera)(x, y)[:2]


def undistort(camera: CameraModel, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Undistorted normalised coordinates (ray x / z, y / z) of distorted ones, float64, by Newton's method.

    NaN where no ray in front of the camera arrives, or beyond the radius at which the calibration's polynomial folds
    back and so says nothing about the pixel.
    """
    if len(camera.d) == 0:
        return x, y
    if camera.model == "equidistant":
        return _undistort_equidistant(camera.d, x, y)
    return _undistort_polynomial(camera, x, y)


def _lens(camera: CameraModel) -> Callable:
    """The distortion as a function (x, y) -> (x_d, y_d, jacobian dx/dx, dx/dy, dy/dx, dy/dy) on normalised
    coordinates."""
    if camera.model == "equidistant":
        return lambda x, y: _equidistant(camera.d, x, y)
    d = np.zeros(14)
    d[: len(camera.d)] = camera.d
    k1, k2, p1, p2, k3, k4, k5, k6, s1, s2, s3, s4, tilt_x, tilt_y = d
    tilt = _tilt(tilt_x, tilt_y)

    def polynomial(x, y):
        r2 = x * x + y * y
        above, below = 1 + r2 * (k1 + r2 * (k2 + r2 * k3)), 1 + r2 * (k4 + r2 * (k5 + r2 * k6))
        radial = above / below
        slope = (k1 + r2 * (2 * k2 + r2 * 3 * k3) - radial * (k4 + r2 * (2 * k5 + r2 * 3 * k6))) / below  # d/d(r2)
        xd = x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x * x) + r2 * (s1 + r2 * s2)
        yd = y * radial + p1 * (r2 + 2 * y * y) + 2 * p2 * x * y + r2 * (s3 + r2 * s4)
        prism_x, prism_y = 2 * (s1 + 2 * r2 * s2), 2 * (s3 + 2 * r2 * s4)
        shear = 2 * x * y * slope + 2 * p1 * x + 2 * p2 * y
        xx = radial + 2 * x * x * slope + 2 * p1 * y + 6 * p2 * x + prism_x * x
        xy = shear + prism_x * y
        yx = shear + prism_y * x
        yy = radial + 2 * y * y * slope + 6 * p1 * y + 2 * p2 * x + prism_y * y
        if tilt is None:
            return xd, yd, xx, xy, yx, yy
        a, b, w = (row[0] * xd + row[1] * yd + row[2] for row in tilt)
        ax, bx, wx = (row[0] * xx + row[1] * yx for row in tilt)
        ay, by, wy = (row[0] * xy + row[1] * yy for row in tilt)
        x2, y2 = a / w, b / w
        return x2, y2, (ax - x2 * wx) / w, (ay - x2 * wy) / w, (bx - y2 * wx) / w, (by - y2 * wy) / w

    return polynomial


def _tilt(angle_x: float, angle_y: float) -> np.ndarray | None:
    """The homography of a tilted sensor (the last two of 14 coefficients), None when it is not tilted."""
    if angle_x == 0 and angle_y == 0:
        return None
    cx, sx, cy, sy = np.cos(angle_x), np.sin(angle_x), np.cos(angle_y), np.sin(angle_y)
    r = np.array([[cy, 0, -sy], [0, 1, 0], [sy, 0, cy]]) @ np.array([[1, 0, 0], [0, cx, sx], [0, -sx, cx]])
    return np.array([[r[2, 2], 0, -r[0, 2]], [0, r[2, 2], -r[1, 2]], [0, 0, 1]]) @ r


def _equidistant(d: np.ndarray, x, y):
    r = np.hypot(x, y)
    theta = np.arctan(r)
    bent, slope = _bent(d, theta)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(r > 1e-9, bent / r, 1.0)
    return x * ratio, y * ratio, slope


def _bent(d: np.ndarray, theta):
    """theta_d of Kannala-Brandt and its derivative."""
    t2 = theta * theta
    k1, k2, k3, k4 = d
    bent = theta * (1 + t2 * (k1 + t2 * (k2 + t2 * (k3 + t2 * k4))))
    return bent, 1 + t2 * (3 * k1 + t2 * (5 * k2 + t2 * (7 * k3 + t2 * 9 * k4)))


def _undistort_equidistant(d: np.ndarray, x, y):
    limit = _equidistant_limit(d)
    with np.errstate(all="ignore"):
        r = np.hypot(x, y)
        theta = np.minimum(r, limit)
        for _ in range(30):
            bent, slope = _bent(d, theta)
            step = (bent - r) / np.where(slope > 1e-3, slope, 1e-3)
            theta = np.clip(theta - step, 0, limit)
            if np.abs(step).max(initial=0) < 1e-12:
                break
        good = (np.abs(_bent(d, theta)[0] - r) < 1e-8) & (theta < limit) & (theta < np.pi / 2 - 1e-3)
        ratio = np.where(good, np.where(r > 1e-9, np.tan(theta) / r, 1.0), np.nan)
    return x * ratio, y * ratio


def _equidistant_limit(d: np.ndarray) -> float:
    """The angle up to which the image radius grows."""
    k1, k2, k3, k4 = (float(k) for k in d)  # Python's floats overflow without a warning
    return min(_first_root([1, 3 * k1, 5 * k2, 7 * k3, 9 * k4]) ** 0.5, np.pi / 2)


def _undistort_polynomial(camera: CameraModel, xd, yd):
    lens = _lens(camera)
    d = np.zeros(8)
    d[: min(len(camera.d), 8)] = camera.d[:8]
    limit = _radial_limit(d)
    with np.errstate(all="ignore"):
        r = np.hypot(xd, yd)
        shrink = np.minimum(1.0, 0.95 * limit / np.maximum(r, 1e-12))  # start on the branch that holds the centre
        x, y = xd * shrink, yd * shrink
        for _ in range(60):
            fx, fy, xx, xy, yx, yy = lens(x, y)
            ex, ey = fx - xd, fy - yd
            if max(np.nan_to_num(np.abs(ex)).max(initial=0), np.nan_to_num(np.abs(ey)).max(initial=0)) < 1e-12:
                break
            det = xx * yy - xy * yx
            det = np.where(np.abs(det) > 1e-6, det, 1e-6)
            dx, dy = (yy * ex - xy * ey) / det, (xx * ey - yx * ex) / det
            size = np.hypot(dx, dy)  # a bounded step keeps Newton from leaping over the fold
            damp = np.minimum(1.0, (0.1 + 0.5 * np.hypot(x, y)) / np.maximum(size, 1e-300))
            x, y = x - dx * damp, y - dy * damp
        fx, fy, xx, xy, yx, yy = lens(x, y)
        good = (np.hypot(fx - xd, fy - yd) < 1e-8) & (np.hypot(x, y) < limit) & (xx * yy - xy * yx > 0)
    return np.where(good, x, np.nan), np.where(good, y, np.nan)


def _radial_limit(d: np.ndarray) -> float:
    """The undistorted radius up to which the radial part grows: its first pole or fold."""
    k1, k2, _, _, k3, k4, k5, k6 = d
    above, below = np.array([1, k1, k2, k3]), np.array([1, k4, k5, k6])  # in r^2, lowest power first
    grow = 2 * np.arange(4)
    # d/dr [r a(r2) / b(r2)] has the numerator (a + r a') b - r a b', whose factors are again polynomials in r^2.
    slope = np.convolve(above * (1 + grow), below) - np.convolve(above, below * grow)
    return min(_first_root(slope), _first_root(below)) ** 0.5


def _first_root(coefficients) -> float:
    """The smallest positive real root of a polynomial, lowest power first; infinity without one."""
    roots = np.polynomial.polynomial.polyroots(np.trim_zeros(np.asarray(coefficients, np.float64), "b"))
    real = roots[(np.abs(roots.imag) < 1e-9 * np.maximum(1, np.abs(roots))) & (roots.real > 0)].real
    return float(real.min(initial=np.inf))
