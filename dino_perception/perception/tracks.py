"""Points that keep their identity: what is matched in a frame is looked for again in the next."""

from __future__ import annotations

import numpy as np
import torch

from dino_perception.perception import matching
from dino_perception.perception.frame import Correspondences, Frame
from dino_perception.perception.geometry import Letterbox
from dino_perception.perception.matching import Field, Picture, View
from dino_perception.perception.refine import Refiner
from dino_perception.perception.settings import CorrespondenceSettings

ALIKE = 0.85
"""Least correlation of the two windows of a match."""
DOUBT = 0.35
"""Most pixels that the middle of a window may want to move where the whole is aligned; it does at depth edges."""
NOISE = 10.0
"""Corner strength (8-bit grey levels squared, Sobel-weighted) that sensor noise in an empty sky stays below."""
LOST = 0.3
"""Share of the points that must be found where the features say; below, the features are not believed."""
SPARE = 1.15
"""Points looked for per match that a message may carry: some leave the image, some fail. In a frame that is to be matched
with the next one."""
SPARE_FAR = 4.6
"""The same in a frame that later ones are matched with, or where it is not known which will be: after a metre of
driving half of the points have left the image, and half of the others look too different. They are looked for in turns
of SPARE, as many turns as it takes."""


class Tracker:
    """The points of one camera. `update` takes its frames in order; so do `match`, which gives the matches sooner, and
    `prepare` after it, which makes ready for the next frame what need not wait for it.

    Points are chosen in the reference frame and matched from there directly, so that positions do not drift along a
    chain of frames; features matched from the frame before say where to look. The reference is that frame itself, or a
    key frame for as long as enough of its points are found again. The same frames give the same tracks, bit for bit.
    """

    def __init__(self) -> None:
        self._next_id = 1
        self._refiner = Refiner()
        self._ahead: tuple | None = None  # what `prepare` has to do
        self._previous: View | None = None
        self.reset()

    def reset(self) -> None:
        """Forget the frames. Ids go on counting, so that an old id never means a new point."""
        self.prepare()  # so that ids are given out alike, whether it was done before or not
        self._reference: View | None = None
        self._previous = None
        self._flow: Field | None = None  # from the reference to the frame before
        self._ids = np.zeros(0, np.uint64)
        self._xy = np.zeros((0, 2))  # in the reference
        self._last = np.zeros((0, 2))  # in the frame before, predicted where not found

    def update(self, *arguments, **options) -> Correspondences:
        """`match`, then `prepare`."""
        found = self.match(*arguments, **options)
        self.prepare()
        return found

    def prepare(self) -> None:
        """Choose the points to look for in the next frame. `match` does it first where it is still to be done."""
        if self._ahead is not None:
            self._start(*self._ahead)
            self._ahead = None
        if self._previous is not None:
            self._make_ready(self._previous)

    @torch.inference_mode()
    def match(
        self,
        frame: Frame,
        box: Letterbox,
        descriptors: torch.Tensor,
        stride: int,
        settings: CorrespondenceSettings,
        picture: Picture | None = None,
    ) -> Correspondences:
        """The matches of this frame with the reference frame; none for the first frame, one of another size, or one
        that lies before the last in time: then tracking starts anew.

        `descriptors` (N, D) are unit vectors, one for each `stride` x `stride` patch of the network's input. `picture`
        is given where it was taken ahead.
        """
        self.prepare()
        view = self._view(frame, box, descriptors, stride, picture)
        reference, previous = self._reference, self._previous
        if previous is None or not _follows(previous, view):
            self.reset()
            self._ahead = view, settings, np.zeros(0, np.uint64), np.zeros((0, 2)), SPARE_FAR
            nothing = np.zeros(0, np.float32)
            return Correspondences(view.stamp_ns, view.frame_id, view.width, view.height, np.zeros(0, np.uint64),
                                   nothing, nothing, nothing, nothing, nothing)  # fmt: skip
        position, alike, doubt, asked = self._match(reference, previous, view, settings.max_matches)
        score = np.zeros(len(alike), np.float32)
        found = np.flatnonzero(alike > ALIKE)
        score[found] = self._similarity(reference, view, found, position)
        found = found[score[found] >= settings.min_score]
        # A point in doubt is not reported, but may be clear again in the next frame.
        chosen = _even(found[doubt[found] < DOUBT], position, alike, self._ids, view, settings.max_matches)
        x, y, reference_x, reference_y = (a[chosen].astype(np.float32) for a in (*position.T, *self._xy.T))
        result = Correspondences(reference.stamp_ns, reference.frame_id, view.width, view.height, self._ids[chosen],
                                 x, y, reference_x, reference_y, score[chosen])  # fmt: skip
        enough = len(found) >= settings.keyframe_overlap * max(1, asked)
        if settings.reference == "keyframe" and enough:
            self._previous, self._last = view, position
        else:
            spare = SPARE if settings.reference == "previous" else SPARE_FAR
            others = np.setdiff1d(found, chosen)[: max(0, round(spare * settings.max_matches) - len(chosen))]
            kept = np.union1d(chosen, others)
            self._ahead = view, settings, self._ids[kept], position[kept], spare
        return result

    def _make_ready(self, view: View) -> None:
        _ = view.asking  # computed now rather than when the next frame waits for it

    def _view(self, frame, box, descriptors, stride, picture) -> View:
        return View.of(frame, box, descriptors, stride, picture)

    def _corners(self, view: View, cells: int) -> tuple[np.ndarray, np.ndarray]:
        return matching.corners(view, cells)

    def _similarity(self, reference: View, view: View, found: np.ndarray, position: np.ndarray) -> np.ndarray:
        return matching.similarity(reference, self._xy[found], view, position[found])

    def _match(
        self, reference: View, previous: View, view: View, most: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
        """Where the points are in `view`: positions (N, 2), the correlation (N,) there and the doubt (N,) in pixels, for as
        many turns of points as it takes to find `most`; and how many points had their turn.

        Sets the flow from the reference; a point that is not found is predicted by it.
        """
        step = matching.motion(previous, view) or Field.still(view)
        seed, shape = step.at(self._last)
        if self._flow is not None:
            shape = shape @ self._flow.at(self._xy)[1]
        position, alike, doubt = seed.copy(), np.full(len(seed), -1.0, np.float32), np.zeros(len(seed), np.float32)
        # Points take turns evenly, so that each turn covers the whole image.
        turns = max(1, round(len(seed) / max(1.0, SPARE * most)))
        turn = np.arange(len(seed)) % turns
        asked = turn == 0
        within = np.flatnonzero(asked & _inside(seed, view))
        self._try(reference, view, within, seed, shape, 1.0, position, alike, doubt)
        share = (alike[within] > ALIKE).sum() / max(1, len(within))
        if share < LOST:  # search wide from where the image as a whole went
            seed = self._last + matching.shift(previous, view)
            self._try(
                reference, view, np.flatnonzero(asked & _inside(seed, view)), seed, shape, 3.0, position, alike, doubt
            )
        self._flow = None
        if share < 0.85 or reference is not previous:
            agreed = self._agree(reference, view, share < 0.85, asked, position, alike, doubt)
            if agreed is None and share < LOST:
                alike[:] = -1  # chance finds, no motion
                return position, alike, doubt, asked.sum()
            seed, shape = agreed or (seed, shape)
        for number in range(1, turns):
            if ((alike > ALIKE) & (doubt < DOUBT)).sum() >= most:
                break
            now = turn == number
            asked |= now
            self._try(
                reference, view, np.flatnonzero(now & _inside(seed, view)), seed, shape, 1.0, position, alike, doubt
            )
            _drop_strays(reference, now, seed, position, alike)
        return position, alike, doubt, asked.sum()

    def _agree(
        self, reference: View, view: View, again: bool, asked, position, alike, doubt
    ) -> tuple[np.ndarray, np.ndarray] | None:
        """Fits the flow to what was found, drops what contradicts it, and with `again` looks where it says for the rest of
        those `asked` for. Returns where the flow puts every point and the local shape there, None when there is no flow."""
        good = np.flatnonzero(alike > ALIKE)
        voters = good[:: max(1, len(good) // 256)]
        self._flow = matching.field(reference, self._xy[voters], position[voters])
        if self._flow is None:
            return None
        seed, shape = self._flow.at(self._xy)
        _drop_strays(reference, asked, seed, position, alike)
        failed = alike <= ALIKE
        position[failed] = seed[failed]
        if again:
            which = np.flatnonzero(failed & asked & _inside(seed, view))
            self._try(reference, view, which, seed, shape, 1.0, position, alike, doubt)
        return seed, shape

    def _try(self, reference, view, which, seed, shape, reach, position, alike, doubt) -> None:
        """Refines the points `which`, whose seeds may be `reach` patches off, and keeps what is better than what
        `position`, `alike` and `doubt` hold."""
        new, score, unsure = self._refiner.refine(
            reference.levels, view.levels, self._xy[which], seed[which], shape[which], reach * max(reference.patch)
        )
        better = score > np.maximum(alike[which], ALIKE)
        position[which[better]] = new[better]
        alike[which[better]] = score[better]
        doubt[which[better]] = unsure[better]

    def _start(
        self, view: View, settings: CorrespondenceSettings, ids: np.ndarray, xy: np.ndarray, spare: float
    ) -> None:
        """Make `view` the reference: keep the points that were found in it, fill the gaps between with new corners."""
        wanted = round(spare * settings.max_matches)
        cell = (view.width * view.height / (1.5 * wanted)) ** 0.5
        order = np.argsort(ids, kind="stable")  # where two points have run together, the older stays
        _, first = np.unique(_cells(xy[order], 0.5 * cell, view), return_index=True)
        keep = np.sort(order[first])
        ids, xy = ids[keep], xy[keep]
        corner, strength = self._corners(view, round(1.5 * wanted))
        free = (strength > NOISE) & ~np.isin(_cells(corner, cell, view), _cells(xy, cell, view))
        corner = corner[free]
        room = max(0, min(len(corner), wanted - len(ids)))
        corner = corner[np.unique(np.linspace(0, len(corner) - 1, room).round().astype(int))] if room else corner[:0]
        new = np.arange(self._next_id, self._next_id + len(corner), dtype=np.uint64)
        self._next_id += len(corner)
        self._reference = self._previous = view
        self._flow = None
        self._ids = np.concatenate([ids, new])
        self._xy = self._last = np.concatenate([xy, corner])


def _drop_strays(reference: View, which: np.ndarray, seed: np.ndarray, position: np.ndarray, alike: np.ndarray) -> None:
    """Takes back those of the points `which` (N,) bool that were found more than half a patch from where they were expected."""
    found = np.flatnonzero(which & (alike > ALIKE))
    stray = found[np.linalg.norm((position - seed)[found] / reference.patch, axis=1) > 0.5]
    alike[stray] = -1
    position[stray] = seed[stray]


def _follows(a: View, b: View) -> bool:
    """Whether `b` can be matched with `a`: a later frame of the same size (a bag that starts again goes back in time)."""
    return (a.width, a.height, a.descriptors.shape) == (
        b.width,
        b.height,
        b.descriptors.shape,
    ) and b.stamp_ns >= a.stamp_ns


def _inside(xy: np.ndarray, view: View) -> np.ndarray:
    """Whether points lie in the view, a patch more all round allowed: a seed is not exact."""
    return ((xy > -np.array(view.patch)) & (xy < np.array([view.width, view.height]) + view.patch)).all(axis=1)


def _cells(xy: np.ndarray, cell: float, view: View) -> np.ndarray:
    """The number of the square that each point lies in."""
    x, y = ((xy + 0.5) / cell).astype(np.int64).T
    return y * (int(view.width / cell) + 2) + x


def _even(found: np.ndarray, position, alike, ids, view: View, most: int) -> np.ndarray:
    """At most `most` of the found points, taken in turns from equal parts of the image, about four from each; from each
    part the well aligned first, and among these the older. In the order of their ids."""
    if len(found) > most:
        size = (4 * view.width * view.height / most) ** 0.5
        part = _cells(position[found], size, view)
        order = np.lexsort((ids[found], alike[found] < 0.9, part))
        found, part = found[order], part[order]
        starts = np.flatnonzero(np.r_[True, part[1:] != part[:-1]])
        turn = np.arange(len(part)) - np.repeat(starts, np.diff(np.r_[starts, len(part)]))
        scattered = part * 2654435761 % 2**32  # the last turn is not complete: its parts come from all over the image
        found = found[np.lexsort((scattered, turn))][:most]
    return found[np.argsort(ids[found], kind="stable")]
