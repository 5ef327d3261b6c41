"""How a replay went: its figures, what was wrong on the way, and the exit code that says so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from dino_perception.bags.state import State
from dino_perception.bags.storage.problems import FAILED, INTERRUPTED, NO_IMAGES, BagError, Problem, exit_code
from dino_perception.bags.storage.reader import BagReader


@dataclass
class Outcome:
    """How a replay went. `stopped` is None when it came to the end of its part of the bag, else one sentence; `code` is
    the exit code; `complete` says that nothing is left to go on with."""

    complete: bool = False
    frames_in: int = 0
    frames_out: int = 0
    seconds: float = 0.0
    perceive_seconds: float = 0.0
    stopped: str | None = None
    code: int = 0
    problems: list[Problem] = field(default_factory=list)


def note_troubles(bag: BagReader, bad: Mapping[str, Sequence[str]], back: Mapping[str, Sequence[float]]) -> None:
    """Add to the bag's problems what was met while perceiving, by camera: `bad` why images could not be used, `back` by how
    many seconds stamps jumped back."""
    for camera, sentences in bad.items():
        bag.note(
            Problem(
                "images",
                f"{len(sentences)} image(s) of camera {camera} could not be used, the first because {sentences[0]}",
                len(sentences),
            )
        )
    for camera, jumps in back.items():
        bag.note(
            Problem(
                "clock",
                f"the image stamps of camera {camera} jump back {len(jumps)} time(s), by up to "
                f"{max(jumps):.1f} s; its tracks start anew there",
            )
        )


def outcome(
    bag: BagReader,
    state: State,
    seconds: float,
    perceive_seconds: float,
    *,
    complete: bool,
    interrupted: bool,
    fatal: BaseException | None,
) -> Outcome:
    """The outcome of a replay that stands at `state`: safe in the output, whatever came after. `fatal` is the error that
    ended it."""
    result = Outcome(
        complete and fatal is None,
        state.frames_in,
        state.frames_out,
        seconds,
        perceive_seconds,
        problems=list(bag.problems),
    )
    result.code = exit_code({problem.kind for problem in bag.problems})
    at = (state.time_ns - bag.start_ns) / 1e9 if state.records else 0.0
    where = f"at {at:.1f} s of the bag, after {state.frames_out} percepts"
    if isinstance(fatal, BagError):
        result.stopped, result.code = f"{fatal}; stopped {where}", fatal.code
    elif fatal is not None:
        result.stopped, result.code = f"{type(fatal).__name__}: {fatal}; stopped {where}", FAILED
    elif interrupted:
        result.stopped, result.code = f"interrupted {where}", INTERRUPTED
    elif not state.frames_in:
        result.stopped, result.code = "there is no image in this part of the bag", NO_IMAGES
    return result
