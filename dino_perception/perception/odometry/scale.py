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
BIAS = 0.04
"""Relative error that all estimated depth of a drive has in common; no filter sees it."""
TOLD = 0.02
"""The same of a camera's given height or of wheel odometry."""
WILD = 0.5
"""A ratio more than e to this off is not believed."""


@dataclass
class Scale:
    """`variance` of the logarithm of the scale, of what the filter can know; `told` where something but depth sets it."""

    variance: float = OF_A_FRAME**2
    told: bool = False

    def handed_on(self) -> None:
        """A new key frame was begun."""
        self.variance += WANDER**2

    def measured(self, ratio: float | None, error: float = OF_A_FRAME) -> float:
        """By what to divide the odometry's metres, where something with a relative `error` says that they are `ratio` times as
        many as they should be."""
        if ratio is None or not ratio > 0 or abs(math.log(ratio)) > WILD:
            return 1.0
        gain = self.variance / (self.variance + error**2)
        self.variance *= 1 - gain
        return math.exp(gain * math.log(ratio))

    @property
    def error(self) -> float:
        """Relative error (one standard deviation) of the length of the way."""
        return math.hypot(TOLD if self.told else BIAS, math.sqrt(self.variance))
