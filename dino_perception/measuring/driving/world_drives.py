"""The drives of one world: blind, by perfect perception and by what is perceived, with their picture and video."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import cv2
import numpy as np

from dino_perception import results
from dino_perception.measuring.driving import score
from dino_perception.measuring.driving.course import Course
from dino_perception.measuring.driving.doors import Ask
from dino_perception.measuring.driving.drive import Moment, Record, drive
from dino_perception.measuring.driving.obstacles import Finder
from dino_perception.measuring.driving.pictures import Video, overview
from dino_perception.measuring.driving.senses import Blind, Perceived, Perfect

PERCEPTION, PERFECT, BLIND = "the perception", "perfect perception", "blind"


def drive_world(
    course: Course,
    door: Callable[[], AbstractContextManager[Ask]],
    finder: Finder,
    out: Path,
    *,
    video: bool = True,
    most_frames: int | None = None,
    say: Callable[[str, int], None] = lambda name, frames: None,
) -> dict[str, Any]:
    """Drives a course in all three ways and returns the figures by way of driving, and the course. The picture, and the
    `video`, go to `out`, by the world's seed. `say` is told how many frames a way has come to. Raises what the door
    raises."""
    records: dict[str, Record] = {}
    for name, sense in ((BLIND, Blind()), (PERFECT, Perfect(course))):
        say(name, 0)
        records[name] = drive(course, sense, lambda moment, name=name: say(name, moment.view.number + 1), most_frames)
    ever = np.zeros_like(course.closed)
    seed = course.world.seed
    with door() as ask, TemporaryDirectory() as folder:
        sense, film = Perceived(course, ask, finder), Path(folder, "drive.mp4")
        shown = Video(film, course, sense) if video else None

        def watch(moment: Moment) -> None:
            nonlocal ever
            ever |= moment.closed
            if shown:
                shown(moment)
            say(PERCEPTION, moment.view.number + 1)

        records[PERCEPTION] = drive(course, sense, watch, most_frames)
        if shown:
            shown.close()
            results.keep(out / f"{seed}.mp4", film.read_bytes(), within=out)
    ways = {name: records[name] for name in (PERFECT, PERCEPTION)}
    _, png = cv2.imencode(".png", cv2.cvtColor(overview(course, ways, ever), cv2.COLOR_RGB2BGR))
    results.keep(out / f"{seed}.png", png.tobytes(), within=out)
    return {
        "seed": seed,
        "style": course.world.style_name,
        "way_metres": float(np.linalg.norm(np.diff(course.way, axis=0), axis=1).sum()),
        "drives": {name: score.of_drive(records[name]) for name in (PERCEPTION, PERFECT, BLIND)},
    }
