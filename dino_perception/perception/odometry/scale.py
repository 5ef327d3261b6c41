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
SOURCES = ("depth", "height", "wheels")
"""From the worst to the best."""
BIAS = {"depth": 0.05, "height": 0.04, "wheels": 0.02}
"""Relative error that all that one source says on a drive has in common; no filter sees it."""
ERROR = {"depth": OF_A_FRAME, "height": 0.06, "wheels": 0.03}
"""Relative error of one ratio: of a frame's depth as a whole, of uneven ground, of a short way between key frames."""
WILD = 0.5
"""A ratio more than e to this off is not believed."""


@dataclass
class Scale:
    """`variance` of the logarithm of the scale, of what the filter can know; `source` is the best that has told it."""

    variance: float = OF_A_FRAME**2
    source: str = "depth"

    def handed_on(self) -> None:
        """A new key frame was begun."""
        self.variance += WANDER**2

    def measured(self, ratio: float | None, source: str) -> float:
        """By what to divide the odometry's metres, where a source says that they are `ratio` times as many as they should be.
        Depth counts less once the height of the camera is known, and not at all beside wheels."""
        if ratio is None or not ratio > 0 or abs(math.log(ratio)) > WILD or SOURCES.index(source) < self._ignored():
            return 1.0
        if SOURCES.index(source) > SOURCES.index(self.source):
            self.variance += BIAS[self.source] ** 2  # what it began with
            self.source = source
        error = ERROR[source] if source == self.source else math.hypot(ERROR[source], BIAS[source])
        gain = self.variance / (self.variance + error**2)
        self.variance *= 1 - gain
        return math.exp(gain * math.log(ratio))

    def _ignored(self) -> int:
        return SOURCES.index("wheels") if self.source == "wheels" else 0

    @property
    def error(self) -> float:
        """Relative error (one standard deviation) of the length of the way."""
        return math.hypot(BIAS[self.source], math.sqrt(self.variance))
