"""Worlds of the procedural terrain by seed, rendered once and kept in the cache."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from dino_perception.training import terrain
from dino_perception.training.datasets.base import DataError, Dataset, text_key
from dino_perception.training.datasets.scenes import of_files
from dino_perception.training.pretraining.freed_memory import keep_freed_memory

FRAMES = (0, 1, 3, 10, 20, 21, 23, 30, 50)
"""The frames of a ten-per-second drive that are rendered: pairs 1, 3, 10 and 30 frames apart, two or more of each."""

PREFIX = "terrain:"


def fits(source: str) -> bool:
    return source.startswith(PREFIX)


def read(
    seeds: str,
    *,
    cache: Path,
    styles: Sequence[str] = (),
    size: tuple[int, int] = (480, 640),
    frames: Sequence[int] = FRAMES,
    progress: Callable[[str], None] | None = None,
    **_,
) -> Dataset:
    """One drive through the world of each seed ("9000-9019,9100"), styles taking turns; by default those that nothing
    is trained on. Cameras are drawn as those of the training scenes. Slow at first (on a CPU some 20 s a world); what
    is rendered is kept under `cache`. Raises DataError."""
    from dino_perception.training.terrain.world import HELD_OUT_STYLES, STYLES

    styles = tuple(styles) or HELD_OUT_STYLES
    if unknown := [style for style in styles if style not in STYLES]:
        raise DataError(f"there is no terrain style '{unknown[0]}'; accepted are {', '.join(STYLES)}")
    numbers = parse_seeds(seeds)
    folder = Path(cache) / "terrain" / f"{size[1]}x{size[0]}-{_version()}"
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for place, seed in enumerate(numbers):
        style = styles[place % len(styles)]
        path = folder / f"{style}-{seed}-{text_key(tuple(frames))[:8]}.npz"
        if not path.exists():
            if progress:
                progress(f"rendering world {place + 1} of {len(numbers)} (seed {seed}, {style})")
            _render(path, seed, style, size, frames)
        paths.append(path)
    return of_files(paths, f"terrain {seeds} ({', '.join(styles)})")


def parse_seeds(text: str) -> list[int]:
    """ "3,7-9" -> [3, 7, 8, 9]. Raises DataError."""
    seeds: list[int] = []
    for part in text.split(","):
        found = re.fullmatch(r"(\d+)(?:-(\d+))?", part.strip())
        first, last = (int(found[1]), int(found[2] or found[1])) if found else (1, 0)
        if last < first:
            seeds = []
            break
        seeds += range(first, last + 1)
    if not seeds or len(set(seeds)) < len(seeds):
        raise DataError(
            f"the terrain seeds are '{text}'; accepted are numbers and ranges, each seed once, such as 9000-9019,9100"
        )
    return seeds


def _render(path: Path, seed: int, style: str, size: tuple[int, int], frames: Sequence[int]) -> None:
    import torch

    from dino_perception.training.terrain.scenes import FIELD_OF_VIEW, HEIGHT, PITCH
    from dino_perception.training.terrain.world import PinholeCamera, World

    keep_freed_memory()
    rng = np.random.default_rng([seed, 1])
    world = World(seed, style, device="cuda" if torch.cuda.is_available() else "cpu")
    camera = PinholeCamera.of(size[1], size[0], rng.uniform(*FIELD_OF_VIEW))
    drive = world.drive(max(frames) + 1, 10.0, camera_height=rng.uniform(*HEIGHT), camera_pitch=rng.uniform(*PITCH))
    seen = [world.render(drive[i : i + 1], camera, first_frame=i) for i in frames]
    k, part = camera.k, path.with_suffix(f".{os.getpid()}.part")
    with part.open("wb") as file:
        np.savez(
            file,
            rgb=np.concatenate([s.rgb for s in seen]),
            depth=np.concatenate([s.depth for s in seen]),
            classes=np.concatenate([s.classes for s in seen]),
            pose=drive[list(frames)],
            rocks=np.concatenate([s.rocks + np.eye(1, 8) * i for i, s in enumerate(seen)]).astype(np.float32),
            number=np.array(frames),
            intrinsics=np.array([k[0, 0], k[1, 1], k[0, 2], k[1, 2]]),
        )
    os.replace(part, path)


def _version() -> str:
    """A version that changes with the renderer, so that another renderer's pictures are not taken for its own."""
    import torch

    digest = hashlib.sha256(str(torch.cuda.is_available()).encode())
    for path in sorted(Path(terrain.__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:10]
