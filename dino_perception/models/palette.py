"""Every colour with a meaning, once: Okabe and Ito's, which people with any colour vision tell apart. RGB, 0 to 255.

Head files name no colour for the classes of `CLASSES`, so that a change here is a change everywhere.
"""

from __future__ import annotations

ORANGE, SKY_BLUE, GREEN = (230, 159, 0), (86, 180, 233), (0, 158, 115)
YELLOW, BLUE, VERMILION, PURPLE = (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167)

CLASSES = {"soil": ORANGE, "bedrock": GREEN, "sand": YELLOW, "big_rock": PURPLE, "sky": SKY_BLUE}
"""The classes of the ground that ship with the package."""
OTHERS = (ORANGE, SKY_BLUE, GREEN, YELLOW, BLUE, VERMILION, PURPLE)
"""For classes without a colour of their own, in this order."""
CURVES = (BLUE, ORANGE, GREEN, PURPLE, SKY_BLUE, VERMILION, (143, 127, 0))
"""Of charts, in this order."""
GOOD, BAD, UNKNOWN = SKY_BLUE, VERMILION, YELLOW


def as_hex(colour: tuple[int, int, int]) -> str:
    """#rrggbb, as web pages and Matplotlib take it."""
    return "#%02x%02x%02x" % colour
