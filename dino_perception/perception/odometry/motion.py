"""How a camera moved, from points whose depth is known only roughly.

A point lies in the reference at the ray u = (x, y, 1) and at the inverse depth q, which has an error of its own (a head
guesses it). The camera moves by X' = R u + q t (the point over its depth, so that q = 0 is a point at infinity), and sees it at
h = X'_xy / X'_z. An error of q moves h along the epipolar line alone, by g = dh/dq, so that what is seen differs from h by

    S = sigma^2 I + g g^T var(q)

and the motion is the one that makes sum r^T S^-1 r small: with good depth that is PnP, without any it is the epipolar
constraint of two views, and in between each point has its say where it knows something. It is bundle adjustment of two views
with the depths eliminated (the Schur complement, Triggs et al. 2000, sec. 6.1), at the cost of 6 unknowns.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

SURE = 9.21
"""Chi-square of two degrees of freedom that 99 % of true matches stay below."""
CAUCHY = 5.99
"""The same for 95 %: where weights begin to fall."""
WORSE = 1.3
"""Variance of what is left over its expectation, from which it is no chance."""
ROUNDS, ENOUGH = 12, 1e-5
"""Most steps, and a step (radians, and baselines over depth) below which there is no other."""
FARTHEST = 1e-4
"""Inverse depth below which a point might as well be at infinity."""
FEWEST = 8
"""Points below which there is no answer."""


@dataclass(frozen=True)
class Rays:
    """Points of a reference view: `xy` (N, 2) on the plane z = 1, `inverse` (N,) depths in 1/metres with `variance` (N,)."""

    xy: np.ndarray
    inverse: np.ndarray
    variance: np.ndarray

    def __len__(self) -> int:
        return len(self.xy)

    def __getitem__(self, which: np.ndarray) -> Rays:
        return Rays(self.xy[which], self.inverse[which], self.variance[which])

    @property
    def directions(self) -> np.ndarray:
        """(N, 3), z = 1."""
        return np.column_stack([self.xy, np.ones(len(self.xy))])


@dataclass(frozen=True)
class Motion:
    """X' = `rotation` X + `translation` from the reference to the view. `covariance` (6, 6) is that of a small rotation
    (applied after `rotation`, about the view's axes) and of the translation, in this order; `inliers` (N,) bool agree."""

    rotation: np.ndarray
    translation: np.ndarray
    covariance: np.ndarray
    inliers: np.ndarray

    @property
    def share(self) -> float:
        return float(self.inliers.mean()) if len(self.inliers) else 0.0


def refine(rays: Rays, seen: np.ndarray, sigma: float, rotation: np.ndarray, translation: np.ndarray) -> Motion | None:
    """The motion near a first guess that explains where the points are `seen` (N, 2), on the plane z = 1 of the view, with
    an error of `sigma` (in that plane: pixels over the focal length). None where it does not settle.

    Gauss-Newton with Cauchy's weights, which start wide enough for half of the points to count.
    """
    if len(rays) < FEWEST:
        return None
    rotation, translation, inverse = rotation.copy(), translation.copy(), rays.inverse.copy()
    reach = 3 * np.sqrt(rays.variance)  # a wrong match would put its point right before the camera
    low, high = np.maximum(rays.inverse - reach, FARTHEST), rays.inverse + reach
    usual, wide = float(np.median(rays.inverse)), np.inf
    for number in range(ROUNDS):
        look = _look(rays, inverse, seen, sigma, rotation, translation)
        if look is None:
            return None
        residual, jacobian, half, square, before, deeper = look
        wide = min(wide, max(1.0, float(np.median(square[before])) / 1.386))  # 1.386: the median of chi-square with 2
        weight = before / (1 + square / (CAUCHY * wide))
        rows = (jacobian * (half * weight[:, None])[..., None]).reshape(-1, 6)
        normal = rows.T @ (jacobian * half[..., None]).reshape(-1, 6)
        try:
            step = np.linalg.solve(normal + 1e-12 * np.trace(normal) * np.eye(6), rows.T @ (residual * half).ravel())
        except np.linalg.LinAlgError:
            return None
        if not np.isfinite(step).all() or np.abs(step[:3]).max() > 0.7:
            return None
        inverse = np.clip(rays.inverse + deeper * (residual[:, 1] - jacobian[:, 1] @ step), low, high)
        rotation = turn(step[:3]) @ rotation
        translation = translation + step[3:]
        wide = max(1.0, wide * 0.5)
        if number >= 2 and np.abs(step[:3]).max() < ENOUGH and np.abs(step[3:]).max() * usual < ENOUGH:
            break
    return _judged(rays, inverse, seen, sigma, rotation, translation)


def _judged(rays, inverse, seen, sigma, rotation, translation) -> Motion | None:
    look = _look(rays, inverse, seen, sigma, rotation, translation)
    if look is None:
        return None
    _, jacobian, half, square, before, _ = look
    inliers = before & (square < SURE)
    if inliers.sum() < FEWEST:
        return None
    whole = (jacobian * half[..., None])[inliers].reshape(-1, 6)
    normal = whole.T @ whole
    # Where matches are clearly worse than they are taken to be, the answer is too.
    excess = float(np.median(square[inliers])) / 1.386
    excess = excess if excess > WORSE else 1.0
    covariance = excess * np.linalg.pinv(normal, 1e-14, hermitian=True)
    return Motion(rotation, translation, covariance, inliers)


def _look(
    rays: Rays, inverse: np.ndarray, seen: np.ndarray, sigma: float, rotation: np.ndarray, translation: np.ndarray
):
    """In coordinates in which S is diagonal (across and along the epipolar line), all taken where the depths are `inverse`:
    residuals (N, 2) to what the first depths say, their derivatives (N, 2, 6) by rotation and translation, the roots (N, 2)
    of their weights, r^T S^-1 r (N,), which points lie before the camera (N,), and by how much what is left of a residual
    along the line moves its depth (N,). None where hardly any point lies before the camera."""
    turned = rays.directions @ rotation.T
    at = turned + inverse[:, None] * translation
    before = at[:, 2] > 0.05
    if before.sum() < FEWEST:
        return None
    depth = np.where(before, at[:, 2], 1.0)
    x, y = at[:, 0] / depth, at[:, 1] / depth
    residual = seen - np.column_stack([x, y])
    ax, ay, az = turned.T
    jacobian = np.empty((len(rays), 2, 6))
    jacobian[:, 0, 0], jacobian[:, 1, 0] = -x * ay, -az - y * ay
    jacobian[:, 0, 1], jacobian[:, 1, 1] = az + x * ax, y * ax
    jacobian[:, 0, 2], jacobian[:, 1, 2] = -ay, ax
    q = inverse
    jacobian[:, 0, 3], jacobian[:, 1, 3] = q, 0.0
    jacobian[:, 0, 4], jacobian[:, 1, 4] = 0.0, q
    jacobian[:, 0, 5], jacobian[:, 1, 5] = -x * q, -y * q
    jacobian /= depth[:, None, None]
    g = np.column_stack([translation[0] - x * translation[2], translation[1] - y * translation[2]]) / depth[:, None]
    size = np.hypot(g[:, 0], g[:, 1])
    along = np.where((size > 1e-9)[:, None], g / np.maximum(size, 1e-9)[:, None], [1.0, 0.0])
    turned_frame = np.stack([np.column_stack([-along[:, 1], along[:, 0]]), along], axis=1)  # (N, 2, 2)
    residual = np.einsum("nij,nj->ni", turned_frame, residual)
    residual[:, 1] -= size * (rays.inverse - inverse)
    jacobian = turned_frame @ jacobian
    half = np.column_stack([np.full(len(rays), 1 / sigma), 1 / np.sqrt(sigma**2 + size**2 * rays.variance)])
    square = ((residual * half) ** 2).sum(1)
    return residual, jacobian, half, square, before, rays.variance * size * half[:, 1] ** 2


def deepen(rays: Rays, seen: np.ndarray, sigma: float, motion: Motion) -> Rays:
    """The points with the depth that two views and the first guess agree on: q by least squares along the epipolar line."""
    turned = rays.directions @ motion.rotation.T
    t = motion.translation
    inverse = rays.inverse.copy()
    information = np.zeros(len(rays))
    for _ in range(2):
        at = turned + inverse[:, None] * t
        depth = np.maximum(at[:, 2], 0.05)
        h = at[:, :2] / depth[:, None]
        g = (t[:2] - h * t[2]) / depth[:, None]
        information = (g**2).sum(1) / sigma**2
        pull = (g * (seen - h)).sum(1) / sigma**2 + (rays.inverse - inverse) / rays.variance
        inverse = np.maximum(inverse + pull / (information + 1 / rays.variance), 1e-4)
    return Rays(rays.xy, inverse, 1 / (information + 1 / rays.variance))


def turn(vector: np.ndarray) -> np.ndarray:
    """(3, 3) of a rotation vector in radians (Rodrigues' formula)."""
    angle = float(np.linalg.norm(vector))
    x, y, z = vector
    skew = np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
    if angle < 1e-8:
        return np.eye(3) + skew
    return np.eye(3) + np.sin(angle) / angle * skew + (1 - np.cos(angle)) / angle**2 * (skew @ skew)


def turned_by(rotation: np.ndarray) -> np.ndarray:
    """The rotation vector (3,) of a rotation of less than half a turn."""
    axis = np.array([rotation[2, 1] - rotation[1, 2], rotation[0, 2] - rotation[2, 0], rotation[1, 0] - rotation[0, 1]])
    sine, cosine = np.linalg.norm(axis) / 2, (np.trace(rotation) - 1) / 2
    angle = np.arctan2(sine, cosine)
    return axis / 2 if sine < 1e-8 else axis * (angle / (2 * sine))
