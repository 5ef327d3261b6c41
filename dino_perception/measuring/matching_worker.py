"""The half of the matching benchmark that matches: a process of its own, so that another checkout's matching can be measured
by the same commands. It takes commands as JSON lines and answers each with one.

Only what every checkout has is used here: `Tracker.match`, `prepare`, `Picture`, `Frame`, `letterbox`.
"""

from __future__ import annotations

import functools
import json
import sys
import time
from pathlib import Path

PARTS = {
    "picture: grey pyramid, gradients": ("matching.Picture", "of"),
    "view: descriptors, codes": ("matching.View", "of"),
    "nearest neighbours": ("matching", "_mutual"),
    "motion field": ("matching", "field"),
    "refinement": ("refine.Refiner", "refine"),
    "similarity": ("matching", "similarity"),
    "even choice": ("tracks", "_even"),
}
"""What is timed apart: name -> where it stands below dino_perception.perception. What a checkout has not is left out."""


def main() -> None:
    sys.path[:] = [path for path in sys.path if Path(path).name != "measuring"]  # this file's own folder
    import cv2
    import torch

    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    for line in sys.stdin:
        order = json.loads(line)
        print(json.dumps({"drive": drive, "pairs": pairs}[order.pop("do")](**order)), flush=True)


def drive(clip: str, parts: bool = False) -> dict:
    """Milliseconds of `match` and of `prepare` over a clip's frames, the first frame of all left out, what is taken from the
    picture alone done before, as a pipeline does it while the network runs; with `parts` those of
    each part, which takes longer."""
    from dino_perception.perception import matching
    from dino_perception.perception.tracks import Tracker

    times: dict[str, list[float]] = {}
    arguments = _arguments(clip)
    undo = [_timed(where, name, times.setdefault(part, [])) for part, (where, name) in PARTS.items()] if parts else []
    tracker, sums = Tracker(), {}
    for number, (frame, box, features, stride, settings) in enumerate(arguments):
        before = {part: sum(ms) for part, ms in times.items()}
        picture = matching.Picture.of(frame, box, stride)
        start = time.thread_time()
        tracker.match(frame, box, features, stride, settings, picture)
        matched = time.thread_time()
        tracker.prepare()
        took = {"match": (matched - start) * 1e3, "prepare": (time.thread_time() - matched) * 1e3}
        took |= {part: sum(ms) - before[part] for part, ms in times.items() if ms}
        if number:
            for part, ms in took.items():
                sums.setdefault(part, []).append(ms)
    for put_back in undo:
        put_back()
    return sums


def pairs(clip: str, first: list[int], second: list[int]) -> dict:
    """The matches of each frame `second[i]` with `first[i]`: [x, y, reference_x, reference_y] lists."""
    import numpy as np

    from dino_perception.perception.tracks import Tracker

    arguments, out = _arguments(clip), []
    for a, b in zip(first, second):
        tracker = Tracker()
        tracker.update(*arguments[a])
        found = tracker.update(*arguments[b])
        columns = (found.x, found.y, found.reference_x, found.reference_y)
        out.append([np.asarray(column, np.float64).tolist() for column in columns])
    return {"matches": out}


@functools.lru_cache(maxsize=2)
def _arguments(clip: str) -> list[tuple]:
    """What `Tracker.match` takes for each frame of a clip."""
    import numpy as np
    import torch

    from dino_perception.perception.frame import Frame
    from dino_perception.perception.geometry import letterbox
    from dino_perception.perception.settings import CorrespondenceSettings

    with np.load(clip) as file:
        images, descriptors, size, stride = (file[name] for name in ("images", "descriptors", "input", "stride"))
    box = letterbox(*images.shape[1:3], int(size[0]), int(size[1]), int(size[0]) // 2, int(size[1]) // 2)
    settings = CorrespondenceSettings()
    return [
        (Frame("camera", i * 10**8, "camera", image), box, torch.from_numpy(features), int(stride), settings)
        for i, (image, features) in enumerate(zip(images, descriptors))
    ]


def _timed(where: str, name: str, into: list[float]):
    """Times the calls of a function or method; returns what puts it back."""
    import importlib

    module, _, cls = where.partition(".")
    owner = importlib.import_module(f"dino_perception.perception.{module}")
    owner = getattr(owner, cls, None) if cls else owner
    if not hasattr(owner, name):
        return lambda: None
    original, plain = vars(owner)[name], getattr(owner, name)
    bound = cls and not isinstance(original, (classmethod, staticmethod))

    def call(*arguments, **options):
        start = time.thread_time()
        try:
            return plain(*arguments, **options)
        finally:
            into.append((time.thread_time() - start) * 1e3)

    setattr(owner, name, call if bound or not cls else staticmethod(call))
    return lambda: setattr(owner, name, original)


if __name__ == "__main__":
    main()
