"""What can be wrong with a bag, and the exit code that says so."""

from __future__ import annotations

from typing import NamedTuple

DONE, DIFFERENT, USAGE, UNREADABLE, EMPTY, NO_IMAGES, UNWRITABLE, FAILED = range(8)
INTERRUPTED = 130

PROBLEMS = {
    "truncated": (10, "The recording is cut off; what there is was processed."),
    "damaged": (11, "Parts of the file are damaged and were left out."),
    "images": (12, "Some images could not be used and have no percept."),
    "unknown": (13, "Some topics are of an unknown type or encoding."),
    "clock": (14, "The clock jumps back within the bag."),
    "unindexed": (15, "The file has no index; everything in it was found by walking through it."),
}
"""Kind of a problem -> (exit code of a replay that is complete but for it, what it means). With several kinds the first
of this list decides."""

CODES = {
    DONE: "Everything was processed.",
    DIFFERENT: "--compare: the bags differ by more than the tolerance.",
    USAGE: "The command line, a setting or a weights file cannot be used; nothing was written.",
    UNREADABLE: "The input is no bag, or nothing of it can be read.",
    EMPTY: "The bag holds no message.",
    NO_IMAGES: "The bag holds no topic with camera images, or not the one that was asked for.",
    UNWRITABLE: "The output cannot be written, or the disk is full; what was written until then is readable. Or the output is "
    "whole, but its report, pictures, video or figures are elsewhere, as a sentence says.",
    FAILED: "The engine failed while running; what was written until then is readable and --resume goes on.",
    **{code: meaning for code, meaning in PROBLEMS.values()},
    INTERRUPTED: "Interrupted; the output is readable and --resume goes on.",
}
"""Every exit code of `replay`."""


class Problem(NamedTuple):
    """One finding: its kind, a sentence, and what it is about when it may come up again (a topic, a number)."""

    kind: str
    sentence: str
    about: object = None


class BagError(Exception):
    """A bag that cannot be processed at all: one sentence, and the exit code for it."""

    def __init__(self, sentence: str, code: int):
        super().__init__(" ".join(sentence.split()))
        self.code = code


class ChangedError(ValueError):
    """A file that is not as a checkpoint left it; the message says how."""


def exit_code(kinds) -> int:
    """The exit code of a replay that met these kinds of problems and no other end."""
    return next((code for kind, (code, _) in PROBLEMS.items() if kind in kinds), DONE)
