"""How long the odometry's metres are, kept near to those of whatever knows metres.

Matches alone know no scale. Within a key frame it is that of the estimated depths; from one key frame to the next it is
handed on by the points that both see, and wanders a little. A head's depth does not wander, but each frame's is off as a whole
by a few percent. A Kalman filter of one number, the logarithm of the odometry's metre over the true one, weighs both.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

OF_A_FRAME = 0.04
"""Relative error of the depth of one frame as a whole."""
WANDER = 0.01
"""Relative error that handing on adds."""
BIAS = {"depth": 0.05, "wheels": 0.02}
"""Relative error that all that one source says on a drive has in common; no filter sees it."""
OF_HEIGHT, OF_WHEELS = 0.07, 0.03
"""Relative error of what one look at the ground says by the camera's height, for ground is uneven, and of what wheels say of
one short stretch."""
WILD = 0.5
"""A ratio more than e to this off is not believed."""


@dataclass
class Scale:
    """`variance` of the logarithm of the scale, of what the filter can know; `source` is what tells it: "depth"
    or "wheels"."""

    variance: float = OF_A_FRAME**2
    source: str = "depth"
    count: int = 0
    """How often wheels have told it."""

    def handed_on(self) -> None:
        """A new key frame was begun."""
        self.variance += WANDER**2

    def measured(self, ratio: float | None, error: float = OF_A_FRAME) -> float:
        """By what to divide the odometry's metres, where the depth of a frame, or something of another relative `error`, says
        that they are `ratio` times as many as they should be."""
        if not _sane(ratio):
            return 1.0
        gain = self.variance / (self.variance + error**2)
        self.variance *= 1 - gain
        return math.exp(gain * math.log(ratio))

    def told(self, ratio: float | None) -> tuple[float, float] | None:
        """Where wheels say that the last stretch came out `ratio` times as long as it was: by what to divide the depth of the
        points that measured it, and by what that of points to come; None where they say nothing that can be believed."""
        if not _sane(ratio):
            return None
        self.source, self.count = "wheels", self.count + 1
        self.variance = OF_WHEELS**2 / min(self.count, 4)
        off = BIAS["depth"] ** 2 + OF_A_FRAME**2
        gain = off / (off + OF_WHEELS**2)
        learnt = gain * max(0.3, 1 / self.count)
        return math.exp(gain * math.log(ratio)), math.exp(learnt * math.log(ratio))

    @property
    def error(self) -> float:
        """Relative error (one standard deviation) of the length of the way."""
        return math.hypot(BIAS[self.source], math.sqrt(self.variance))


def _sane(ratio: float | None) -> bool:
    return ratio is not None and ratio > 0 and abs(math.log(ratio)) <= WILD
