"""Where a frame of reference was at a time, from the transforms of a bag or of a robot (REP 105's tree)."""

from __future__ import annotations

from bisect import bisect_left
from typing import Any

import numpy as np

GAP_NS = 1_000_000_000
"""Two transforms further apart than this are not interpolated between."""


class TransformTree:
    """Transforms by frame. A transform brings points of the child frame into its parent (tf2's convention)."""

    def __init__(self):
        self._edges: dict[str, _Edge] = {}
        self._heard = 0

    def add(self, parent: str, child: str, stamp_ns: int, translation, rotation_xyzw, *, static: bool = False) -> None:
        """One transform: `translation` (3,) metres, `rotation_xyzw` a quaternion. One of another parent replaces what
        was known of the child."""
        parent, child = parent.lstrip("/"), child.lstrip("/")
        edge = self._edges.get(child)
        if edge is None or edge.parent != parent:
            edge = self._edges[child] = _Edge(parent, static)
        edge.add(stamp_ns, np.asarray(translation, np.float64), np.asarray(rotation_xyzw, np.float64))

    def add_fixed(self, message: Any) -> None:
        """What a tf2_msgs/TFMessage of /tf_static says. Fixed transforms have no time: the one that came last is right."""
        self._heard += 1
        for one in message.transforms:
            move, turn = one.transform.translation, one.transform.rotation
            self.add(
                one.header.frame_id, one.child_frame_id, self._heard,
                (move.x, move.y, move.z), (turn.x, turn.y, turn.z, turn.w), static=True,
            )  # fmt: skip

    def knows(self, child: str) -> bool:
        return child.lstrip("/") in self._edges

    def moving(self, frame: str) -> bool:
        """Whether anything between the frame and the root of its tree moves."""
        return any(not edge.static for edge in self._chain(frame))

    def pose(self, frame: str, stamp_ns: int) -> np.ndarray | None:
        """(4, 4) from the frame to the root of its tree at that time, None when it is not known then."""
        pose = np.eye(4)
        for edge in self._chain(frame):
            step = edge.at(stamp_ns)
            if step is None:
                return None
            pose = step @ pose
        return pose

    def root(self, frame: str) -> str:
        """The frame that stands at the top of this one's tree."""
        chain = self._chain(frame)
        return chain[-1].parent if chain else frame.lstrip("/")

    def height(self, frame: str, ground: str) -> float | None:
        """Metres of a frame's origin over that of the frame `ground`, along the latter's z; None when no fixed transforms
        lead from the one to the other."""
        if not (frame and self.knows(frame)) or self.root(frame) != self.root(ground):
            return None
        if self.moving(frame) or self.moving(ground):
            return None
        camera, base = (self.pose(name, 0) for name in (frame, ground))
        return float(base[:3, 2] @ (camera[:3, 3] - base[:3, 3]))

    def _chain(self, frame: str) -> list[_Edge]:
        frame, chain, seen = frame.lstrip("/"), [], set()
        while frame in self._edges and frame not in seen:
            seen.add(frame)
            chain.append(self._edges[frame])
            frame = self._edges[frame].parent
        return chain


class _Edge:
    def __init__(self, parent: str, static: bool):
        self.parent, self.static = parent, static
        self.stamps: list[int] = []
        self.translations: list[np.ndarray] = []
        self.rotations: list[np.ndarray] = []

    def add(self, stamp_ns: int, translation: np.ndarray, rotation: np.ndarray) -> None:
        index = bisect_left(self.stamps, stamp_ns)
        if index < len(self.stamps) and self.stamps[index] == stamp_ns:
            return
        self.stamps.insert(index, stamp_ns)
        self.translations.insert(index, translation)
        self.rotations.insert(index, rotation / max(np.linalg.norm(rotation), 1e-12))

    def at(self, stamp_ns: int) -> np.ndarray | None:
        if self.static:
            return matrix(self.translations[-1], self.rotations[-1])
        index = bisect_left(self.stamps, stamp_ns)
        if index < len(self.stamps) and self.stamps[index] == stamp_ns:
            return matrix(self.translations[index], self.rotations[index])
        if index == 0 or index == len(self.stamps):
            return None
        before, after = self.stamps[index - 1], self.stamps[index]
        if after - before > GAP_NS:
            return None
        share = (stamp_ns - before) / (after - before)
        translation = (1 - share) * self.translations[index - 1] + share * self.translations[index]
        return matrix(translation, slerp(self.rotations[index - 1], self.rotations[index], share))


def slerp(a: np.ndarray, b: np.ndarray, share: float) -> np.ndarray:
    """The unit quaternion between `a` and `b`, on the shorter arc (Shoemake 1985)."""
    cosine = float(a @ b)
    if cosine < 0:
        b, cosine = -b, -cosine
    if cosine > 0.9995:
        mixed = (1 - share) * a + share * b
        return mixed / np.linalg.norm(mixed)
    angle = np.arccos(cosine)
    return (np.sin((1 - share) * angle) * a + np.sin(share * angle) * b) / np.sin(angle)


def matrix(translation: np.ndarray, rotation_xyzw: np.ndarray) -> np.ndarray:
    """(4, 4) of a translation and a unit quaternion."""
    x, y, z, w = rotation_xyzw
    pose = np.eye(4)
    pose[:3, :3] = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    pose[:3, 3] = translation
    return pose
