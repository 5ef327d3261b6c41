"""The frame that motion is measured from, and the points in it whose depth is known, well or badly."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from dino_perception.models.label_sets import group
from dino_perception.perception.frame import CameraModel, Correspondences, Percept
from dino_perception.perception.geometry import resized
from dino_perception.perception.ground_plane import GROUND, fit
from dino_perception.perception.lens import distort, undistort
from dino_perception.perception.odometry.motion import SURE, Motion, Rays, deepen

SPREAD = 0.12
"""Relative error that a single estimated depth is taken to have where the head does not say, and the least where it does."""
HANDED_ON = 0.01
"""Relative error that a depth gains each time it is handed to a new key frame."""
EDGE = 1.1
"""Ratio of neighbouring depths from which there is an edge between them."""
MOST = 200
"""Points of a key frame; more cost time and say the same."""
NEAR, WELL, FEWEST_ON_GROUND = 5.0, 0.05, 25
"""Metres within which ground is that on which the robot stands, the relative error up to which its depth tells a height,
and how many such points there must be."""
FEWEST_RATIOS = 12
"""Points known both ways below which nothing is said of the scale."""


@dataclass(frozen=True, eq=False)
class View:
    """A frame that was placed: `pose` (4, 4) odom from its optical frame with `covariance` (6, 6); `metres` (h, w) and
    `confidence` (h, w) of its depth, None where there was none; `camera` and `scale` (x, y) of its output; `ground` (h, w)
    what one drives on, None where that is not known or not asked for."""

    stamp_ns: int
    pose: np.ndarray
    covariance: np.ndarray
    camera: CameraModel
    scale: tuple[float, float]
    metres: np.ndarray | None = None
    confidence: np.ndarray | None = None
    ground: np.ndarray | None = None

    @classmethod
    def of(cls, percept: Percept, pose: np.ndarray, covariance: np.ndarray, with_ground: bool = False) -> View:
        """The percept must have a camera."""
        depth = percept.depth
        ground = ground_mask(percept) if with_ground else None
        return cls(
            percept.frame.stamp_ns, pose, covariance, percept.output_camera, percept.output_scale,
            *((None, None) if depth is None else (depth.metres, depth.confidence)), ground,
        )  # fmt: skip

    def rays(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Image pixels as points (N, 2) on the plane z = 1, float64; NaN where the lens has no ray."""
        return on_plane(self.camera, self.scale, x, y)

    def inverse_depths(self, x: np.ndarray, y: np.ndarray, factor: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
        """Inverse depth (N,) at image pixels and its variance, by the head times `factor`; NaN where it does not say."""
        if self.metres is None:
            return np.full(len(x), np.nan), np.full(len(x), np.nan)
        height, width = self.metres.shape
        u, v = resized(np.column_stack([x, y]), self.scale).T
        column, row = np.clip(np.rint(u), 0, width - 1).astype(int), np.clip(np.rint(v), 0, height - 1).astype(int)
        left, top = np.clip(np.floor(u), 0, width - 2).astype(int), np.clip(np.floor(v), 0, height - 2).astype(int)
        across, down = np.clip(u - left, 0, 1), np.clip(v - top, 0, 1)
        with np.errstate(invalid="ignore", divide="ignore"):
            # Between pixels inverse depth is the exact thing to interpolate on a plane; not across an edge.
            corners = [1 / self.metres[top + i, left + j].astype(np.float64) for i in (0, 1) for j in (0, 1)]
            smooth = np.max(corners, axis=0) < EDGE * np.min(corners, axis=0)
            upper, lower = (a + across * (b - a) for a, b in (corners[:2], corners[2:]))
            inverse = np.where(smooth, upper + down * (lower - upper), 1 / self.metres[row, column].astype(np.float64))
            inside = (u > -1) & (v > -1) & (u < width) & (v < height)
            inverse = np.where(inside & (inverse > 0) & (inverse < 20), inverse / factor, np.nan)
        spread = np.full(len(x), SPREAD)
        if self.confidence is not None:
            spread = np.maximum(spread, 1 - self.confidence[row, column] / 255.0)
        return inverse, (spread * inverse) ** 2


def on_plane(camera: CameraModel, scale: tuple[float, float], x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Image pixels on the plane z = 1 (N, 2); `camera` is that of the output, `scale` output pixels per image pixel."""
    u, v = resized(np.column_stack([x, y]).astype(np.float64), scale).T
    k = camera.k
    return np.column_stack(undistort(camera, (u - k[0, 2]) / k[0, 0], (v - k[1, 2]) / k[1, 1]))


@dataclass(frozen=True, eq=False)
class Keyframe:
    """`view` with its points: `ids` (N,) uint64 of their tracks, sorted, and where they are."""

    view: View
    ids: np.ndarray
    rays: Rays
    known: float
    """Share of the points whose depth was measured or estimated, not made up."""

    def __len__(self) -> int:
        return len(self.ids)

    def find(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Places of the shared ids: in `ids` and in this key frame."""
        _, theirs, own = np.intersect1d(ids, self.ids, return_indices=True)
        return theirs, own

    def extended(self, matches: Correspondences) -> Keyframe:
        """With the points of matches against this very frame that it does not have yet."""
        if matches.reference_stamp_ns != self.view.stamp_ns or len(self) >= MOST:
            return self
        new = spread(np.flatnonzero(~np.isin(matches.track_id, self.ids)), MOST - len(self))
        if not len(new):
            return self
        more = begun(self.view, matches, new)
        return _joined(self, more)


def spread(items: np.ndarray, most: int) -> np.ndarray:
    """At most `most` of them, evenly spaced."""
    if len(items) <= most:
        return items
    return items[np.linspace(0, len(items) - 1, max(0, most)).round().astype(int)]


def begun(view: View, matches: Correspondences, which: np.ndarray, factor: float = 1.0) -> Keyframe:
    """A key frame of those of the matches against `view` that are asked for, at the depths that were estimated there times
    `factor`. Where nothing was, a point may be anywhere: it tells directions alone."""
    x, y = matches.reference_x[which], matches.reference_y[which]
    xy = view.rays(x, y)
    inverse, variance = view.inverse_depths(x, y, factor)
    known = np.isfinite(inverse)
    usual = float(np.median(inverse[known])) if known.any() else 0.2
    inverse = np.where(known, inverse, usual)
    variance = np.where(known, variance, (2 * usual) ** 2)
    fine = np.isfinite(xy).all(1)
    order = np.argsort(matches.track_id[which][fine], kind="stable")
    ids = matches.track_id[which][fine][order]
    rays = Rays(xy[fine][order], inverse[fine][order], variance[fine][order])
    return Keyframe(view, ids, rays, float(known.mean()) if len(which) else 0.0)


def handed_over(
    old: Keyframe, view: View, matches: Correspondences, sigma: float, divided: float = 1.0, factor: float | None = None
) -> tuple[Keyframe, float | None]:
    """The key frame at `view`, with the points of `matches` against it: those of the old one with the depth that both views
    give, the others as estimated. Also the median of a depth as known from before over that estimated here, None where
    too few say. `sigma` is the error of a match on the plane z = 1; the depth of old points is `divided`, that of new ones is
    what was estimated times `factor`, by default as many times as the old ones say."""
    theirs, own = old.find(matches.track_id)
    motion = between(old.view.pose, view.pose)
    seen = view.rays(matches.reference_x[theirs], matches.reference_y[theirs])
    rays = deepen(old.rays[own], seen, sigma, motion)
    moved = rays.directions @ motion.rotation.T + rays.inverse[:, None] * motion.translation
    miss = np.linalg.norm(moved[:, :2] / np.maximum(moved[:, 2:], 0.05) - seen, axis=1)
    with np.errstate(invalid="ignore"):
        fine = (moved[:, 2] > 0.05) & (miss**2 < SURE * sigma**2) & np.isfinite(seen).all(1)
    theirs, rays, moved, seen = theirs[fine], rays[fine], moved[fine], seen[fine]
    inverse = rays.inverse / moved[:, 2]
    turned = moved[:, 2] - rays.inverse * motion.translation[2]
    variance = rays.variance * (turned / moved[:, 2] ** 2) ** 2 + (HANDED_ON * inverse) ** 2
    there, _ = view.inverse_depths(matches.reference_x[theirs], matches.reference_y[theirs])
    sure = np.isfinite(there) & (variance < (2 * SPREAD * inverse) ** 2)
    ratio = float(np.median(there[sure] / inverse[sure])) if sure.sum() >= FEWEST_RATIOS else None
    ids = matches.track_id[theirs]
    order = spread(np.argsort(ids, kind="stable"), MOST)
    kept = Keyframe(view, ids[order], Rays(seen[order], inverse[order], variance[order]), 1.0)
    kept = rescaled(kept, 1 / divided)
    rest = spread(np.setdiff1d(np.arange(len(matches.track_id)), theirs), MOST - len(kept))
    fresh = begun(view, matches, rest, factor or ratio or 1.0)
    return _joined(kept, fresh), ratio


def camera_height(view: View, rays: Rays) -> float | None:
    """How high the camera of a view stands over the ground by its points, in the odometry's own metres; None where too few of
    them lie on ground nearby and are known well."""
    if view.ground is None or not len(rays):
        return None
    k = view.camera.k
    x, y = distort(view.camera, *rays.xy.T)
    column = np.rint(x * k[0, 0] + k[0, 2]).astype(int).clip(0, view.ground.shape[1] - 1)
    row = np.rint(y * k[1, 1] + k[1, 2]).astype(int).clip(0, view.ground.shape[0] - 1)
    on_ground = view.ground[row, column] & (np.sqrt(rays.variance) < WELL * rays.inverse) & (rays.inverse > 1 / NEAR)
    points = rays.directions / rays.inverse[:, None]
    plane = fit(points[None], on_ground[None], fewest=FEWEST_ON_GROUND)
    return None if plane is None else plane.height


def ground_mask(percept: Percept) -> np.ndarray | None:
    """(h, w) bool: what the classes say one drives on."""
    if percept.segmentation is None:
        return None
    names = {label.name for label in percept.segmentation.labels if group(label.name) == "traversable"}
    known = [label.id for label in percept.segmentation.labels if label.name in names | set(GROUND)]
    return np.isin(percept.segmentation.mask, known)


def rescaled(keyframe: Keyframe, factor: float) -> Keyframe:
    """With every depth times `factor`."""
    rays = keyframe.rays
    return dataclasses.replace(keyframe, rays=Rays(rays.xy, rays.inverse / factor, rays.variance / factor**2))


def between(reference: np.ndarray, view: np.ndarray) -> Motion:
    """The motion from a view at pose `reference` (4, 4) to one at `view`, as if it were known."""
    step = np.linalg.inv(view) @ reference
    return Motion(step[:3, :3], step[:3, 3], np.zeros((6, 6)), np.zeros(0, bool))


def _joined(a: Keyframe, b: Keyframe) -> Keyframe:
    ids = np.concatenate([a.ids, b.ids])
    order = np.argsort(ids, kind="stable")
    pairs = ((a.rays.xy, b.rays.xy), (a.rays.inverse, b.rays.inverse), (a.rays.variance, b.rays.variance))
    rays = Rays(*(np.concatenate(pair)[order] for pair in pairs))
    share = (a.known * len(a) + b.known * len(b)) / max(1, len(ids))
    return Keyframe(a.view, ids[order], rays, share)
