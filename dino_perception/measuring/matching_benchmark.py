"""What matching costs, part by part, and how right it is; beside another checkout's matching where one is named.

    python -m dino_perception.measuring.matching_benchmark --terrain 9000-9002 --photographs PICTURES --against CHECKOUT

Times are of `Tracker.match` on one core over the sample drive, the checkouts in turn within each round. Both are given the
same images and the same descriptors. Truth for rendered drives is depth and poses, for photographs the homography that a
picture is warped by.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from dino_perception import results
from dino_perception.measuring import core_benchmark, matching_worker
from dino_perception.measuring.markdown_tables import check, fill
from dino_perception.perception.frame import Correspondences, Frame
from dino_perception.perception.perceiver import Perceiver
from dino_perception.perception.settings import Settings
from dino_perception.share import share
from dino_perception.training.datasets import Dataset, open_dataset
from dino_perception.training.evaluation.evaluate import GAPS, pairs_at, spread
from dino_perception.training.evaluation.metrics import MatchScore
from dino_perception.training.evaluation.reprojection import end_point_errors

PAIRS = 24
"""Most frame pairs a gap of one source."""
MOST_PICTURES = 12
ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Clip:
    """Frames as matching takes them (a file), and which are to be matched with the truth for it: source, gap or warp, the
    two frames, and how far each match is off."""

    path: Path
    cases: list[tuple[str, str, int, int, Any]]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--against", type=Path, metavar="CHECKOUT", help="a checkout whose matching is measured beside it"
    )
    parser.add_argument("--terrain", default="", metavar="SEEDS", help="rendered worlds to match in, such as 9000-9002")
    parser.add_argument("--photographs", type=Path, metavar="FOLDER", help="pictures to warp and match")
    parser.add_argument("--backbone", default="rover-tiny", help="whose descriptors are matched (default: rover-tiny)")
    parser.add_argument("--engine", default="auto", help="what computes them (default: auto)")
    parser.add_argument(
        "--frames", type=int, default=60, help="frames of the sample drive that are timed (default: 60)"
    )
    parser.add_argument("--rounds", type=int, default=5, help="times that each checkout matches them (default: 5)")
    parser.add_argument(
        "--cache", type=results.folder, help="folder of engines and rendered worlds (default: the usual one)"
    )
    parser.add_argument("--page", type=results.page, metavar="FILE", help="put the tables into this Markdown page")
    args = parser.parse_args()
    check(args.page, "matching")
    checkouts = {"here": ROOT, **({"before": args.against.resolve()} if args.against else {})}
    with tempfile.TemporaryDirectory() as folder:
        eye = Eye(Settings(heads=["correspondences"], backbone=args.backbone, engine=args.engine), args.cache)
        timed = eye.clip(Path(folder) / "timed.npz", core_benchmark.frames(None, args.frames))
        clips = list(_clips(args, eye, Path(folder)))
        workers = {name: MatchingProcess(checkout) for name, checkout in checkouts.items()}
        lines = [*times(workers, timed, args.rounds), "", *accuracy(workers, clips)]
        for worker in workers.values():
            worker.close()
    lines += ["", f"{args.backbone}, {eye.engine}; {core_benchmark.about(core_benchmark.machine())}."]
    print("\n".join(lines))
    if args.page:
        fill(args.page, "matching", lines)
    return results.code(0)


class Eye:
    """Gives frames their descriptors, once for every checkout."""

    def __init__(self, settings: Settings, cache: Path | None):
        self.settings = settings
        self._perceiver = Perceiver(settings, cache=cache and cache / "engines", report=lambda line: None)
        about = self._perceiver.describe()
        self.engine = f"{about['engine']} {about['precision']}"

    def clip(self, path: Path, images: Sequence[np.ndarray]) -> Path:
        """Writes images with their descriptors."""
        recorder = self._perceiver.trackers["camera"] = _Recorder()
        for i, image in enumerate(images):
            self._perceiver.perceive([Frame("camera", i, "camera", image)])
        size = (self.settings.input_height, self.settings.input_width)
        np.savez(path, images=np.stack(images), descriptors=np.stack(recorder.seen), input=size, stride=recorder.stride)
        return path


class _Recorder:
    """Stands where a camera's tracker does and keeps what it is given."""

    def __init__(self) -> None:
        self.seen: list[np.ndarray] = []

    def match(self, frame, box, descriptors, stride, settings, picture=None) -> Correspondences:
        self.seen.append(descriptors.float().cpu().numpy().copy())
        self.stride = stride
        nothing = np.zeros(0, np.float32)
        return Correspondences(frame.stamp_ns, frame.frame_id, 0, 0, np.zeros(0, np.uint64), *5 * [nothing])


class MatchingProcess:
    """A checkout's matching in a process of its own, on one core."""

    def __init__(self, checkout: Path):
        environment = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, str(Path(matching_worker.__file__))], env=environment, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip

    def __call__(self, do: str, **order) -> dict[str, Any]:
        self._process.stdin.write(json.dumps({"do": do, **order}) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("a checkout's matching has stopped; what it said stands above")
        return json.loads(line)

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()


def times(workers: dict[str, MatchingProcess], clip: Path, rounds: int) -> list[str]:
    """A table of median milliseconds, the parts from rounds of their own."""
    whole: dict[str, dict[str, list[float]]] = {name: {} for name in workers}
    for parts in (False, True):
        for round_ in range(-1, rounds):
            for name, worker in workers.items():
                took = worker("drive", clip=str(clip), parts=parts)
                for part, ms in took.items() if round_ >= 0 else ():
                    if parts != (part in ("match", "prepare")):
                        whole[name].setdefault(part, []).extend(ms)
    rows = list(dict.fromkeys(part for parts in whole.values() for part in parts))
    lines = [f"| median ms, one core | {' | '.join(workers)} |", "|---|" + "---:|" * len(workers)]
    for row in rows:
        cells = [f"{statistics.median(ms[row]):.2f}" if row in ms else "" for ms in whole.values()]
        lines.append(f"| {'all of ' if row == 'match' else ''}{row} | {' | '.join(cells)} |")
    return lines


def accuracy(workers: dict[str, MatchingProcess], clips: Sequence[Clip]) -> list[str]:
    """A table of how right matches are."""
    scores: dict[tuple[str, str], dict[str, MatchScore]] = {}
    for clip in clips:
        first, second = ([case[i] for case in clip.cases] for i in (2, 3))
        for name, worker in workers.items():
            found = worker("pairs", clip=str(clip.path), first=first, second=second)["matches"]
            for (source, what, _, _, off), (x, y, reference_x, reference_y) in zip(clip.cases, found):
                errors = off(np.array([reference_x, reference_y]).T, np.array([x, y]).T)
                score = scores.setdefault((source, what), {}).setdefault(name, MatchScore())
                score.add(errors[~np.isnan(errors)], len(errors))
    if not scores:
        return []
    lines = [
        "| frames | apart by | matching | pairs | matches | PCK@1 | PCK@4 | median px |",
        "|---|---|---|" + "---:|" * 5,
    ]
    for (source, what), by_name in scores.items():
        for name, score in by_name.items():
            n = score.numbers()
            lines.append(
                f"| {source} | {what} | {name} | {len(score.errors)} | {n['matches']:.1f} | {n['pck1']:.4f} "
                f"| {n['pck4']:.4f} | {n['median_px']:.4f} |"
            )
    return lines


def _clips(args: argparse.Namespace, eye: Eye, folder: Path):
    cache = args.cache or Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "dino_perception"
    sources = {"sample drive": share("data", "sample_drive")}
    sources |= {"held-out worlds": f"terrain:{args.terrain}"} if args.terrain else {}
    for number, (name, source) in enumerate(sources.items()):
        yield _rendered(name, open_dataset(source, cache=cache), eye, folder / f"drive{number}.npz")
    if args.photographs:
        yield _warped(args.photographs, eye, folder / "photographs.npz")


def _rendered(name: str, data: Dataset, eye: Eye, path: Path) -> Clip:
    usable = [s for s in data.samples if s.pose is not None and s.camera is not None and s.read_depth]
    chosen = [(gap, pair) for gap in GAPS for pair in spread(pairs_at(usable, gap), PAIRS)]
    frames = list({id(s): s for _, pair in chosen for s in pair}.values())
    place = {id(s): i for i, s in enumerate(frames)}
    cases = []
    for gap, (a, b) in chosen:
        off = lambda start, end, a=a, b=b: end_point_errors(
            start, end, a.truth("depth", a.read_image()), a.camera, a.pose, b.camera, b.pose
        )
        cases.append((name, f"{gap} frames", place[id(a)], place[id(b)], off))
    return Clip(eye.clip(path, [s.read_image() for s in frames]), cases)


WARPS: dict[str, dict[str, float]] = {
    "nothing": {}, "turn of 10 degrees": {"turn": 10}, "turn of 20 degrees": {"turn": 20}, "turn of 30 degrees": {"turn": 30},
    "zoom by 1.25": {"zoom": 1.25}, "zoom by 1.5": {"zoom": 1.5}, "tilt": {"tilt": 3e-4, "turn": 5, "zoom": 1.1},
    "light": {"gain": 0.65, "offset": 18, "turn": 3}, "blur": {"blur": 1.5, "turn": 3},
}  # fmt: skip
"""What photographs are warped by: degrees, factors, grey levels, standard deviation in pixels."""


def _warped(folder: Path, eye: Eye, path: Path) -> Clip:
    names = sorted(p for p in folder.rglob("*") if p.suffix.lower() in (".png", ".jpg", ".jpeg"))
    pictures = [picture for name in names if (picture := cv2.imread(str(name))) is not None]
    images, cases = [], []
    for picture in [np.ascontiguousarray(p[:, :, ::-1]) for p in spread(pictures, MOST_PICTURES)]:
        picture = cv2.resize(picture, (640, 480), interpolation=cv2.INTER_AREA)
        images.append(picture)
        here = len(images) - 1
        for name, warp in WARPS.items():
            homography, other = warped(picture, **warp)
            images.append(other)
            off = lambda start, end, h=homography: np.linalg.norm(
                cv2.perspectiveTransform(start[None], h)[0] - end if len(start) else start, axis=-1
            )
            cases.append((f"photographs ({folder.name})", name, here, len(images) - 1, off))
    return Clip(eye.clip(path, images), cases)


def warped(
    picture: np.ndarray,
    turn: float = 0,
    zoom: float = 1,
    tilt: float = 0,
    gain: float = 1,
    offset: float = 0,
    blur: float = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """A homography (3, 3) about the middle of a picture, and the picture (H, W, 3) uint8 warped by it and lit anew."""
    height, width = picture.shape[:2]
    angle = np.deg2rad(turn)
    c, s = zoom * np.cos(angle), zoom * np.sin(angle)
    middle = np.array([[1, 0, (width - 1) / 2], [0, 1, (height - 1) / 2], [0, 0, 1]])
    h = middle @ np.array([[c, -s, 6], [s, c, -4], [tilt, 0.5 * tilt, 1]]) @ np.linalg.inv(middle)
    out = cv2.warpPerspective(picture, h, (width, height), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT)
    out = cv2.GaussianBlur(out, (0, 0), blur) if blur else out
    return h, np.clip(out * gain + offset, 0, 255).round().astype(np.uint8)


if __name__ == "__main__":
    sys.exit(main())
