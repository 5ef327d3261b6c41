"""`dino-perception replay`: bags in, bags with percepts out, without a ROS installation."""

from __future__ import annotations

import argparse
import collections
import dataclasses
import functools
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dino_perception import results
from dino_perception.cli import configuration
from dino_perception.cli.argument_types import count, seconds, whole

HELP = "run the perception over recorded bags: every frame, the same bytes as live, no ROS needed"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "bags",
        nargs="*",
        type=Path,
        metavar="IN",
        help="a bag (rosbag2 folder, .mcap, .db3 or ROS 1 .bag), several, or a "
        "folder of bags; the last is OUT: a .mcap or .db3 file, a rosbag2 folder, or a folder of outputs for several "
        "bags",
    )
    configuration.add_arguments(parser)
    what = parser.add_argument_group("what is looked at")
    what.add_argument(
        "--camera",
        nargs="+",
        action="extend",
        default=[],
        metavar="[NAME=]TOPIC[,INFO]",
        help="image topics, each with its camera_info topic if that is not beside it (default: found by themselves)",
    )
    what.add_argument("--start", type=seconds, default=0.0, metavar="S", help="begin so many seconds into the bag")
    what.add_argument("--duration", type=seconds, metavar="S", help="end after so many seconds")
    what.add_argument("--every", type=whole, default=1, metavar="N", help="only every N-th image of a camera")
    out = parser.add_argument_group("what is written")
    out.add_argument(
        "--copy",
        nargs="+",
        default=["all"],
        metavar="TOPIC",
        help="topics of the input that the output keeps: all (default), none or names",
    )
    out.add_argument(
        "--outputs",
        nargs="+",
        default=[],
        metavar="NAME",
        help="only these outputs, such as segmentation/mask (default: all but overlays)",
    )
    out.add_argument("--overlays", action="store_true", help="write the drawn overlays too")
    out.add_argument("--compression", choices=("none", "zstd"), default="none", help="of the chunks of an mcap output")
    out.add_argument("--pictures", type=results.folder, metavar="DIR", help="a JPEG of every percept")
    out.add_argument(
        "--video", type=results.file, metavar="FILE", help="a video (.mp4 or .avi) of the first camera's percepts"
    )
    out.add_argument("--report", type=results.folder, metavar="DIR", help="one HTML page about the run")
    out.add_argument("--json", type=results.file, metavar="FILE", help="write the figures of the run")
    how = parser.add_argument_group("how")
    how.add_argument("--resume", action="store_true", help="go on where an earlier run of the same command stopped")
    how.add_argument("--force", action="store_true", help="replace an existing output")
    how.add_argument(
        "--workers",
        type=count,
        default=0,
        metavar="N",
        help="processes: for several bags by default as many as the machine has room for",
    )
    how.add_argument(
        "--ray", metavar="ADDRESS", help="a Ray cluster to spread the frames over: its address, auto, or local"
    )
    how.add_argument(
        "--alone",
        type=count,
        default=0,
        metavar="N",
        help="measure the perceiver alone on N frames afterwards, for the throughput ratio",
    )
    other = parser.add_argument_group("instead: compare two bags")
    other.add_argument(
        "--compare",
        nargs=2,
        type=Path,
        metavar=("A", "B"),
        help="do not replay: say how the percepts of two bags differ; exit code 1 when by more than --tolerance",
    )
    other.add_argument(
        "--tolerance",
        nargs="+",
        default=["exact"],
        metavar="NAME=X",
        help="exact (default), or limits such as mask=0.01 depth=0.02 (see docs/replay.md)",
    )
    parser.epilog = "Exit codes are listed in docs/replay.md."


def run(args: argparse.Namespace) -> int:
    from dino_perception.bags.storage.problems import USAGE, BagError
    from dino_perception.engines.base import EngineError
    from dino_perception.models.checkpoints import CheckpointError
    from dino_perception.models.heads.base import HeadError
    from dino_perception.perception.settings import SettingError

    try:
        _check_json(args)
    except BagError as error:
        _say(str(error))
        return error.code
    try:
        return _compare(args) if args.compare else _replay(args)
    except BagError as error:
        _say(str(error))
        _write_json(args.json, {"stopped": str(error), "exit_code": error.code})
        return error.code
    except (SettingError, CheckpointError, HeadError, EngineError) as error:
        _say(str(error))
        return USAGE


def _check_json(args: argparse.Namespace) -> None:
    """The figures are written whatever else goes wrong: never over a bag."""
    from dino_perception.bags.output_place import check_apart

    check_apart([path for path in (args.compare or args.bags) if path.exists()], [], {"--json": args.json})
    check_apart([], args.bags[-1:], {"--json": args.json})


def _replay(args: argparse.Namespace) -> int:
    from dino_perception.bags.job import Job
    from dino_perception.bags.output_place import check_apart
    from dino_perception.bags.several_bags import find_bags, outputs_for
    from dino_perception.bags.storage.problems import UNWRITABLE, USAGE, BagError

    if len(args.bags) < 2:
        raise BagError("give a bag to read and a bag to write: dino-perception replay IN OUT", USAGE)
    *sources, out = args.bags
    bags = find_bags(sources, out)
    several = len(bags) > 1 or (len(sources) == 1 and bags != sources)
    suffix = ".mcap"
    outputs = outputs_for(bags, out, suffix) if several else [out]
    others = {"--json": args.json, "--pictures": args.pictures, "--video": args.video, "--report": args.report}
    check_apart(bags, outputs, others)
    if sentences := list(filter(None, (results.refusal(output.parent, folder=True) for output in outputs))):
        raise BagError(sentences[0], UNWRITABLE)
    settings = configuration.settings_of(args)

    def place(folder: Path | None, output: Path, file: bool = False) -> Path | None:
        if folder is None or not several:
            return folder
        return folder.with_name(f"{folder.stem}_{output.stem}{folder.suffix}") if file else folder / output.stem

    jobs = [
        Job(
            bag,
            output,
            settings,
            tuple(args.camera),
            args.start,
            args.duration,
            args.every,
            tuple(args.copy),
            tuple(args.outputs),
            args.overlays,
            "" if args.compression == "none" else args.compression,
            place(args.pictures, output),
            place(args.video, output, file=True),
            place(args.report, output),
            args.resume,
            args.force,
            args.alone,
        )
        for bag, output in zip(bags, outputs)
    ]
    done = _many(jobs, args) if several and not args.ray else _one_by_one(jobs, args)
    return _tell(done, several, args)


def _one_by_one(jobs: Sequence[Any], args: argparse.Namespace) -> list[Any]:
    """The bags one after another, each in this process or by a farm of workers."""
    from dino_perception.bags.farm import Farm, LocalWorkers, RayWorkers
    from dino_perception.bags.job import Result, run
    from dino_perception.bags.storage.problems import INTERRUPTED, BagError
    from dino_perception.cli.progress import Stages, wide_console
    from dino_perception.perception.perceiver import Perceiver

    settings, done = jobs[0].settings, []
    with Stages(wide_console()) as stages:

        @functools.cache
        def perceiver() -> Any:
            if args.ray:
                return Farm(settings, RayWorkers(settings, args.ray, args.workers))
            if args.workers > 1:
                return Farm(settings, LocalWorkers(settings, args.workers))
            return Perceiver(settings, batch_sizes={1}, report=stages.say)

        try:
            for job in jobs:
                name = job.source.name or str(job.source)
                try:
                    done.append(run(job, perceiver, _Bar(stages, name)))
                except BagError as error:
                    if len(jobs) == 1:
                        raise
                    done.append(
                        Result(
                            error.code,
                            {"input": str(job.source), "stopped": str(error), "exit_code": error.code},
                            [f"{name}: {error}"],
                        )
                    )
                if done[-1].code == INTERRUPTED:
                    break
        finally:
            if perceiver.cache_info().currsize:
                perceiver().close()
    return done


def _many(jobs: Sequence[Any], args: argparse.Namespace) -> list[Any]:
    from dino_perception.bags.several_bags import run_many, sized_to_machine
    from dino_perception.cli.progress import Stages, wide_console

    count, threads = sized_to_machine(len(jobs), jobs[0].settings)
    if args.workers:
        count = min(args.workers, len(jobs))
    settings = jobs[0].settings.changed({"threads": threads})
    jobs = [dataclasses.replace(job, settings=settings) for job in jobs]
    with Stages(wide_console()) as stages:
        stages.say(f"{len(jobs)} bags, {count} processes of {threads} threads")
        bars = [_Bar(stages, job.source.name) for job in jobs]
        return run_many(jobs, count, lambda number, done, total: bars[number](done, total))


def _tell(done: Sequence[Any], several: bool, args: argparse.Namespace) -> int:
    from rich.table import Table

    from dino_perception.cli.progress import wide_console
    from dino_perception.messages.printable import printable

    code = next((result.code for result in done if result.code), 0)
    _write_json(
        args.json, {"bags": [result.figures for result in done], "exit_code": code} if several else done[0].figures
    )
    console = wide_console()
    table = Table("bag", "images", "percepts", "a second", "of the perceiver's", "peak memory", "exit code")
    for result in done:
        f = result.figures
        ratio = f.get("throughput_ratio")
        table.add_row(
            printable(Path(f.get("input", "")).name),
            *(str(f.get(key, "-")) for key in ("frames_in", "frames_out", "fps")),
            f"{100 * ratio:.0f} %" if ratio else "-",
            f"{f['rss_peak_mb']:.0f} MB" if "rss_peak_mb" in f else "-",
            str(result.code),
        )
        for line in result.lines:
            console.print(printable(line), highlight=False, soft_wrap=True)
    if several or "frames_in" in done[0].figures:
        console.print(table)
    return code


def _compare(args: argparse.Namespace) -> int:
    from rich.table import Table

    from dino_perception.bags.compare import compare, parse_tolerances
    from dino_perception.bags.storage.problems import DIFFERENT, DONE, USAGE, BagError
    from dino_perception.cli.progress import Stages, wide_console
    from dino_perception.messages.printable import printable

    first, second = args.compare
    if args.bags:
        raise BagError(f"--compare takes two bags and nothing else, but there is also {args.bags[0]}", USAGE)
    tolerances = parse_tolerances(args.tolerance)
    console = wide_console()
    with Stages(console) as stages:
        found = compare(first, second, tolerances, lambda done, total: stages("comparing", done, max(done, total)))
    table = Table("topic", "messages", "identical", "largest difference", "mean", "")
    for r in found:

        def figures(values: dict[str, float]) -> str:
            return ", ".join(f"{name} {value:.4g}" for name, value in values.items())

        counts = str(r.messages[0]) if r.messages[0] == r.messages[1] else f"{r.messages[0]} / {r.messages[1]}"
        verdict = (
            "same"
            if r.passes and r.identical == r.pairs
            else "within"
            if r.passes
            else r.note or f"{r.over + r.unpaired} differ"
        )
        table.add_row(printable(r.topic), counts, str(r.identical), figures(r.worst), figures(r.mean), verdict)
    console.print(table)
    equal = all(r.passes for r in found)
    console.print("equal within the tolerance" if equal else "different")
    code = DONE if equal else DIFFERENT
    _write_json(
        args.json,
        {
            "equal": equal,
            "exit_code": code,
            "tolerances": tolerances,
            "topics": [dataclasses.asdict(r) | {"passes": r.passes} for r in found],
        },
    )
    return code


class _Bar:
    """A bag's line of the progress display, with the frames a second over the last moments."""

    def __init__(self, stages: Any, name: str):
        self._stages, self._name = stages, name
        self._past: collections.deque[tuple[float, int]] = collections.deque(maxlen=50)

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        self._past.append((now, done))
        (_, before), span = self._past[0], now - self._past[0][0]
        self._stages(self._name, done, max(done, total), f"{(done - before) / span:.1f} frames/s" if span > 0 else "")


def _write_json(path: Path | None, figures: dict[str, Any]) -> None:
    results.keep_json(path, figures, indent=2, default=str)


def _say(sentence: str) -> None:
    from dino_perception.messages.printable import printable

    print(f"dino-perception replay: {printable(sentence, 4000)}", file=sys.stderr)
