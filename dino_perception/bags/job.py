"""One bag in, one bag out: everything around a replay, from the settings to the report."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dino_perception import process_memory
from dino_perception.bags.cameras import CameraTopics, choose_cameras
from dino_perception.bags.feed import Part, frames
from dino_perception.bags.fingerprint import fingerprint
from dino_perception.bags.outcome import Outcome
from dino_perception.bags.output_place import OutputPlace, check_apart
from dino_perception.bags.output_topics import NODE
from dino_perception.bags.replay import Replay
from dino_perception.bags.report.frame_log import FrameLog
from dino_perception.bags.report.page import write_report
from dino_perception.bags.report.pictures import PictureFolder, Video
from dino_perception.bags.state import State
from dino_perception.bags.storage.problems import CODES, DONE, UNREADABLE, UNWRITABLE, USAGE, BagError
from dino_perception.bags.storage.reader import BagReader
from dino_perception.bags.storage.writer import BagWriter, NotContinued
from dino_perception.messages.topics import TOPICS, of_kind
from dino_perception.perception.settings import Settings

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Job:
    """What to do with one bag, as the command line says it. `copy` is "all", "none" or topic names; `outputs` relative
    names, empty for all but the overlays; times in seconds from the bag's start."""

    source: Path
    output: Path
    settings: Settings
    cameras: tuple[str, ...] = ()
    start: float = 0.0
    duration: float | None = None
    every: int = 1
    copy: tuple[str, ...] = ("all",)
    outputs: tuple[str, ...] = ()
    overlays: bool = False
    compression: str = ""
    pictures: Path | None = None
    video: Path | None = None
    report: Path | None = None
    resume: bool = False
    force: bool = False
    alone: int = 0


@dataclass
class Result:
    """What came of a job. `figures` is what `--json` writes, `lines` what a person wants to read."""

    code: int = DONE
    figures: dict[str, Any] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)


def run(job: Job, perceiver_of: Callable[[], Any], progress: Progress | None = None) -> Result:
    """Do it with a perceiver, or a farm, that has the job's settings; it is asked for once it is clear that there is
    something to do. Raises BagError when nothing could be done at all."""
    topics = _topics(job)
    check_apart([job.source], [job.output])
    with BagReader(job.source) as bag:
        own = [name for name in bag.topics if name.startswith(f"{NODE}/")]
        settings = job.settings
        cameras = choose_cameras(bag, job.cameras, settings.cameras, own, settings.max_megapixels)
        limits = (settings.max_megapixels, settings.image_bits)
        part = Part(*_span(job, bag), job.every, _copied(job, bag), *limits)
        place = OutputPlace(job.output, _fingerprint(job, bag))
        place.prepare(resume=job.resume, force=job.force)
        if place.done:
            about = {"input": str(job.source), "output": str(job.output), "stopped": None, "exit_code": DONE}
            return Result(DONE, about, [f"{job.output} is complete; there is nothing to resume"])
        perceiver = perceiver_of()
        writer = _writer(job, place)
        before = place.checkpoint
        log = FrameLog(job.settings, perceiver.labels, pictures=job.report is not None)
        shown: list[Any] = []
        if job.pictures:
            shown.append(PictureFolder(job.pictures, job.settings))
        if job.video:
            shown.append(Video(job.video, job.settings, _rate(bag, cameras[0]) / job.every, cameras[0].name))

        def save(state: State) -> None:
            place.save(state, writer.end, writer.topics)

        first = before.state if before else State()
        replay = Replay(
            bag,
            cameras,
            perceiver,
            job.settings,
            writer,
            part,
            topics,
            state=first,
            watch=[*([log] if job.report else []), *shown],
            progress=progress,
            checkpoint=save,
        )
        outcome = replay.run()
        for one in shown:
            one.close()
        place.release()
        if outcome.complete:
            place.finish()
        alone = _alone(bag, cameras, perceiver, part, job.alone) if job.alone and outcome.stopped is None else None
        result = _result(job, bag, cameras, perceiver, writer, outcome, first, alone)
        if place.note:
            result.lines.insert(0, place.note)
        if place.beside and not outcome.complete:
            result.figures["unfinished_output"] = str(place.working)
            result.lines.append(
                f"{job.output} is what it was before; the new output is {place.working} until it is complete"
            )
        if job.report:
            title = f"{job.source.name} → {job.output.name}"
            page = write_report(
                job.report, title, _summary(result, perceiver, writer, bag), log.rows, log.pictures, perceiver.labels
            )
            result.lines.append(f"report: {page or 'not written'}")
        notes = [note for one in shown for note in one.notes]
        result.lines += notes
        if notes or (job.report and page != job.report / "index.html"):
            result.code = result.figures["exit_code"] = result.code or UNWRITABLE
        return result


def _topics(job: Job) -> tuple[str, ...]:
    unknown = [name for name in job.outputs if name not in TOPICS]
    if unknown:
        raise BagError(f"there is no output {unknown[0]}; they are {', '.join(TOPICS)}", USAGE)
    chosen = job.outputs or tuple(name for name in TOPICS if name not in of_kind("picture"))
    if job.overlays:
        chosen = tuple(dict.fromkeys([*chosen, *of_kind("picture")]))
    return tuple(name for name in chosen if TOPICS[name].fits(job.settings.heads))


def _span(job: Job, bag: BagReader) -> tuple[int | None, int | None]:
    start = bag.start_ns + round(job.start * 1e9) if job.start else None
    stop = (start or bag.start_ns) + round(job.duration * 1e9) if job.duration is not None else None
    if start is not None and start > bag.end_ns:
        raise BagError(
            f"--start {job.start:g} lies behind the end of {bag.path.name}, "
            f"which is {(bag.end_ns - bag.start_ns) / 1e9:.1f} s long",
            USAGE,
        )
    return start, stop


def _copied(job: Job, bag: BagReader) -> tuple[str, ...]:
    if job.copy in (("all",), ("none",)):
        return tuple(bag.topics) if job.copy == ("all",) else ()
    missing = [name for name in job.copy if name not in bag.topics]
    if missing:
        raise BagError(
            f"--copy names {missing[0]}, which is not in {bag.path.name}; its topics are {', '.join(bag.topics)}", USAGE
        )
    return job.copy


def _writer(job: Job, place: OutputPlace) -> BagWriter:
    """The output, continued where that is possible. From here on there is a checkpoint beside it."""
    found = place.checkpoint
    if found is not None:
        place.hold()
        try:
            return BagWriter(place.working, compression=job.compression, keep=(found.end, found.topics))
        except NotContinued:
            place.begin_again()
    place.save(State(), 0, [])
    writer = BagWriter(place.working, compression=job.compression, job=place.brief)
    place.hold()
    return writer


def _fingerprint(job: Job, bag: BagReader) -> dict[str, Any]:
    """What must be the same for a replay to go on: the input, the weights, the settings and what is written."""
    about = {
        name: getattr(job, name)
        for name in ("cameras", "start", "duration", "every", "copy", "outputs", "overlays", "compression")
    }
    try:
        return fingerprint(bag, job.settings, about)
    except OSError as error:
        raise BagError(f"{error.filename or job.source} cannot be read: {error.strerror}", UNREADABLE) from None


def _rate(bag: BagReader, camera: CameraTopics) -> float:
    count = bag.topics[camera.image].count
    span = (bag.end_ns - bag.start_ns) / 1e9
    return min(120.0, max(1.0, (count - 1) / span)) if count > 1 and span > 0 else 10.0


def _alone(bag: BagReader, cameras: list[CameraTopics], perceiver: Any, part: Part, count: int) -> float:
    """Frames a second of the perceiver alone, on the first `count` frames of the replay, decoded beforehand."""
    kept = frames(bag, cameras, part, count)
    perceiver.reset_tracks()
    perceiver.perceive(kept[:1])
    perceiver.reset_tracks()
    begun = time.perf_counter()
    for frame in kept:
        perceiver.perceive([frame])
    return len(kept) / (time.perf_counter() - begun) if kept else 0.0


def _result(
    job: Job,
    bag: BagReader,
    cameras: list[CameraTopics],
    perceiver: Any,
    writer: BagWriter,
    outcome: Outcome,
    first: State,
    alone: float | None,
) -> Result:
    done = outcome.frames_out - first.frames_out
    fps = done / outcome.seconds if outcome.seconds else 0.0
    inside = done / outcome.perceive_seconds if outcome.perceive_seconds else 0.0
    about = perceiver.describe()
    figures = {
        "frames_in": outcome.frames_in,
        "frames_out": outcome.frames_out,
        "fps": round(fps, 3),
        "perceiver_fps": round(alone or inside, 3),
        "perceiver_measured": "alone" if alone else "within the replay",
        "throughput_ratio": round(fps / (alone or inside), 4) if alone or inside else None,
        "rss_peak_mb": round((process_memory.peak() or 0) / 2**20, 1),
        "output_sha256": writer.sha256,
        "stopped": outcome.stopped,
        "exit_code": outcome.code,
        "problems": [{"kind": p.kind, "sentence": p.sentence} for p in outcome.problems],
        "input": str(job.source),
        "output": str(job.output),
        "seconds": round(outcome.seconds, 3),
        "resumed_at": first.frames_in,
        "cameras": [dataclasses.asdict(camera) for camera in cameras],
        "topics": writer.counts,
        "engine": about.get("engine"),
        "precision": about.get("precision"),
        "weights_trained": perceiver.trained,
    }
    lines = [problem.sentence for problem in outcome.problems]
    if outcome.stopped:
        lines.append(f"stopped: {outcome.stopped}")
    if not perceiver.trained:
        lines.append("the weights are untrained: what is in the output means nothing yet")
    return Result(outcome.code, figures, lines)


def _summary(result: Result, perceiver: Any, writer: BagWriter, bag: BagReader) -> Mapping[str, Any]:
    f, about = result.figures, perceiver.describe()
    figures = {
        "images": f["frames_in"],
        "percepts": f["frames_out"],
        "percepts a second": f["fps"],
        "of the perceiver's own rate": f"{100 * (f['throughput_ratio'] or 0):.0f} %",
        "engine": f"{f['engine']} {f['precision']}",
        "peak memory": f"{f['rss_peak_mb']:.0f} MB",
        "of the bag": f"{(bag.end_ns - bag.start_ns) / 1e9:.1f} s",
        "ended": CODES[f["exit_code"]] if f["exit_code"] else "complete",
    }
    parts = {name: json.dumps(value) for name, value in about.get("parts", {}).items()}
    return {
        "figures": figures,
        "notes": result.lines,
        "tables": {
            "Messages written": {**writer.counts, "SHA-256 over topics, times and bytes": f["output_sha256"]},
            "Weights": parts,
            "Perceiver": {k: v for k, v in about.items() if k != "parts"},
        },
    }
