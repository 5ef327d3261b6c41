"""A bag through the perceiver into another bag: every frame, in order, the same bytes every time.

Three stages overlap, joined by queues of bounded size: one thread reads the input and hands images to a few decoders,
the caller's thread perceives, one thread builds messages and writes.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from rosbags.serde import SerdeError

from dino_perception.bags.bounded import BoundedQueue, Closed
from dino_perception.bags.cameras import Calibrations, CameraTopics
from dino_perception.bags.problems import INTERRUPTED, NO_IMAGES, BagError, Problem, exit_code
from dino_perception.bags.reader import BagReader
from dino_perception.bags.state import State
from dino_perception.bags.topic import Record, Topic, qos
from dino_perception.bags.writer import BagWriter
from dino_perception.messages.images import ImageError, decode_compressed, decode_image
from dino_perception.messages.percepts import TOPICS, label_info, outputs
from dino_perception.messages.types import RosbagsTypes
from dino_perception.perception.frame import CameraModel, Frame, Percept
from dino_perception.perception.perceiver import FrameError
from dino_perception.perception.settings import Settings
from dino_perception.ros.demand import Demand

NODE = "/dino_perception"
"""The live node's name, below which its topics lie."""
_AHEAD = 6
"""Frames that may wait, decoded, before the perceiver; and percepts behind it."""
_HELD = 96 << 20
"""Bytes of messages that may wait on either side."""
_CHECKPOINT_S = 5.0


@dataclass(frozen=True)
class Options:
    """What of the bag to process: from `start_ns` to before `stop_ns` (record time), every `every`-th image of a camera,
    copying the topics `copy` and writing the outputs `topics` (relative names)."""

    start_ns: int | None = None
    stop_ns: int | None = None
    every: int = 1
    copy: Collection[str] = ()
    topics: Collection[str] = tuple(name for name in TOPICS if not name.endswith("/overlay"))


@dataclass
class Outcome:
    """How a replay went. `stopped` is None when it came to the end of its part of the bag, else one sentence."""

    frames_in: int = 0
    frames_out: int = 0
    seconds: float = 0.0
    perceive_seconds: float = 0.0
    stopped: str | None = None
    code: int = 0
    problems: list[Problem] = field(default_factory=list)


@dataclass
class _Work:
    """One input message on its way: whether to copy it, and the image in it."""

    record: Record
    copied: bool
    camera: str = ""
    stamp_ns: int = 0
    frame: Future | None = None


class Replay:
    """One bag, one perceiver, one output.

    `watch(percept, record_time_ns, ms)` is told every percept in order, from the writing thread; `progress(done, total)`
    every frame, from the caller's. `state` is where an earlier replay of the same bag stopped.
    """

    def __init__(self, bag: BagReader, cameras: Sequence[CameraTopics], perceiver: Any, settings: Settings, writer: BagWriter,
                 options: Options, *, state: State | None = None, watch: Sequence[Callable[[Percept, int, float], None]] = (),
                 progress: Callable[[int, int], None] | None = None, checkpoint: Callable[[State], None] | None = None):
        self._bag, self._perceiver, self._settings, self._writer, self._options = bag, perceiver, settings, writer, options
        self._cameras = {camera.image: camera for camera in cameras}
        self._watch, self._progress, self._checkpoint = watch, progress, checkpoint
        self._types = RosbagsTypes()
        self._topics = {camera.name: output_topics(self._types, camera.name, len(cameras), options.topics) for camera in cameras}
        own = {topic.name for topics in self._topics.values() for topic in topics.values()}
        self._copy = {name for name in options.copy if name not in own}
        for name in sorted(own & set(options.copy)):
            bag.note(Problem("", f"topic {name} of the input is not copied: the replay writes it anew"))
        self._state = state or State()
        self._demand = Demand()
        self._bad: dict[str, list[str]] = {}
        self._back: dict[str, list[float]] = {}
        self._perceive_s = 0.0

    def run(self) -> Outcome:
        """Process the bag's part. Ctrl-C ends it early and leaves a valid bag."""
        inbox, outbox = BoundedQueue(_HELD), BoundedQueue(_HELD)
        errors: list[BaseException] = []
        self._restore()
        with ThreadPoolExecutor(2, thread_name_prefix="decode") as pool:
            reader = _thread("read", self._read, errors, inbox, outbox, pool, inbox)
            writer = _thread("write", self._write, errors, inbox, outbox, outbox)
            begun = time.perf_counter()
            stopped = None
            try:
                self._perceive(inbox, outbox)
            except KeyboardInterrupt:
                stopped = "interrupted"
            except Closed:
                pass
            except Exception as error:
                errors.append(error)
            finally:
                inbox.close(drop=True)
                outbox.close()
                writer.join()
                reader.join()
        return self._outcome(time.perf_counter() - begun, stopped, errors)

    def _outcome(self, seconds: float, stopped: str | None, errors: list[BaseException]) -> Outcome:
        fatal = next((error for error in errors if not isinstance(error, Closed)), None)
        if fatal is not None and not isinstance(fatal, BagError):
            raise fatal
        try:
            self._writer.close()
        except BagError as error:
            fatal = fatal or error
        state = self._writer.mark or self._state
        for camera, sentences in self._bad.items():
            self._bag.note(Problem("images", f"{len(sentences)} image(s) of camera {camera} could not be used, the first because "
                                             f"{sentences[0]}", len(sentences)))
        for camera, jumps in self._back.items():
            self._bag.note(Problem("clock", f"the image stamps of camera {camera} jump back {len(jumps)} time(s), by up to "
                                            f"{max(jumps):.1f} s; its tracks start anew there"))
        outcome = Outcome(state.frames_in, state.frames_out, seconds, self._perceive_s, problems=list(self._bag.problems))
        outcome.code = exit_code({problem.kind for problem in self._bag.problems})
        if fatal is not None:
            outcome.stopped, outcome.code = str(fatal), fatal.code
        elif stopped:
            at = (state.time_ns - self._bag.start_ns) / 1e9 if state.records else 0.0
            outcome.stopped = f"{stopped} at {at:.1f} s of the bag, after {state.frames_out} percepts"
            outcome.code = INTERRUPTED
        elif not state.frames_in:
            outcome.stopped, outcome.code = "there is no image in this part of the bag", NO_IMAGES
        return outcome

    # Reading

    def _read(self, pool: ThreadPoolExecutor, inbox: BoundedQueue) -> None:
        options, state = self._options, self._state
        calibrations = {camera.info: Calibrations(self._bag, camera.info) for camera in self._cameras.values()}
        for info, raw in state.infos.items():
            calibrations[info].take(Record(self._bag.topics[info], 0, raw))
        names = {*self._copy, *self._cameras, *(info for info in calibrations if info)}
        seen = dict(state.images)
        for record in self._input(names):
            name = record.topic.name
            if name in calibrations:
                calibrations[name].take(record)
            work = _Work(record, name in self._copy)
            camera = self._cameras.get(name)
            if camera is not None:
                seen[camera.name] = seen.get(camera.name, 0) + 1
                if (seen[camera.name] - 1) % options.every == 0:
                    self._start_decoding(work, camera, calibrations[camera.info], pool)
            elif not work.copied and name not in calibrations:
                continue
            inbox.put(work, len(record.data) + 256 + (_HELD // _AHEAD if work.camera else 0))
        inbox.close()

    def _input(self, names: Collection[str]) -> Iterator[Record]:
        """The input from where the state left off. The last message of a latched topic before the start comes first."""
        options, state = self._options, self._state
        start = options.start_ns
        if start is not None and not state.records:
            latched = [name for name in self._copy if self._bag.topics[name].latched]
            last: dict[str, list[Record]] = {}
            for record in self._bag.messages(latched, stop=start) if latched else ():
                last.setdefault(record.topic.name, []).append(record)
            for name in sorted(last):
                keep = last[name] if name.endswith("/tf_static") else last[name][-1:]
                yield from (record._replace(time_ns=start) for record in keep)
        skip = state.records
        if state.records and state.ordered:
            start, skip = state.time_ns, state.at_time
        for record in self._bag.messages(names, start, options.stop_ns):
            if skip:
                skip -= 1
                continue
            yield record

    def _start_decoding(self, work: _Work, camera: CameraTopics, calibrations: Calibrations, pool: ThreadPoolExecutor) -> None:
        work.camera = camera.name
        work.frame = Future()
        try:
            message = self._bag.decode(work.record)
        except SerdeError as error:
            work.frame.set_exception(ImageError(f"its message is damaged: {error}"))
            return
        stamp = message.header.stamp
        work.stamp_ns = stamp.sec * 1_000_000_000 + stamp.nanosec
        models = calibrations.models()
        work.frame = pool.submit(_frame, message, camera, work.stamp_ns, models)

    # Perceiving

    def _perceive(self, inbox: BoundedQueue, outbox: BoundedQueue) -> None:
        total = self._expected()
        heads = {name: self._settings.head[name] for name in self._settings.heads}
        listened = [name for name in self._options.topics if TOPICS[name].qos == "data"]
        state = self._state
        while True:
            try:
                work = inbox.get()
            except Closed:
                return
            percept, topics, spent = None, (), 0.0
            if work.frame is not None:
                frames_in = state.frames_in + 1
                percept, topics, spent = self._look(work, listened, heads)
                state = state.after(work.record, frames_in=frames_in, frames_out=state.frames_out + (percept is not None),
                                    camera=work.camera, demand=self._demand.memory(), trackers=self._perceiver.memory())
                if self._progress:
                    self._progress(frames_in, total)
            else:
                state = state.after(work.record, camera=self._camera_of(work.record))
            if work.record.topic.name in {camera.info for camera in self._cameras.values()}:
                state = state.with_info(work.record)
            outbox.put((work, percept, topics, spent, state), len(work.record.data) + (_HELD // _AHEAD if percept else 256))

    def _look(self, work: _Work, listened: Collection[str], heads: Any) -> tuple[Percept | None, Collection[str], float]:
        """As the live node's worker does it, but for what depends on the clock on the wall."""
        camera = work.camera
        last = self._last_stamp.get(camera, work.stamp_ns)
        if work.stamp_ns:
            if work.stamp_ns < last:
                self._perceiver.reset_tracks(camera)
                self._back.setdefault(camera, []).append((last - work.stamp_ns) / 1e9)
            self._last_stamp[camera] = work.stamp_ns
        topics, wanted = self._demand.decide(camera, work.stamp_ns, listened, heads)
        begun = time.perf_counter()
        try:
            if not topics:
                return None, (), 0.0
            frame = work.frame.result()
            begun = time.perf_counter()
            percept = self._perceiver.perceive([frame], [wanted])[0]
        except (ImageError, FrameError) as error:
            self._bad.setdefault(camera, []).append(str(error))
            return None, (), 0.0
        spent = time.perf_counter() - begun
        self._perceive_s += spent
        return percept, topics, spent

    def _camera_of(self, record: Record) -> str:
        camera = self._cameras.get(record.topic.name)
        return camera.name if camera else ""

    def _expected(self) -> int:
        """How many frames there will be, as far as the bag says."""
        bag, options = self._bag, self._options
        span = max(bag.end_ns - bag.start_ns, 1)
        low = max(options.start_ns or bag.start_ns, bag.start_ns)
        high = min(options.stop_ns or bag.end_ns, bag.end_ns)
        share = min(1.0, max(0.0, (high - low) / span)) if bag.end_ns > bag.start_ns else 1.0
        return round(share * sum(-(-bag.topics[name].count // options.every) for name in self._cameras))

    # Writing

    def _write(self, outbox: BoundedQueue) -> None:
        checkpoint = time.monotonic()
        labelled = set(self._state.labelled)
        while True:
            try:
                work, percept, topics, spent, state = outbox.get()
            except Closed:
                return
            group = [work.record] if work.copied else []
            if percept is not None:
                group += self._messages(percept, topics, work, labelled)
            self._writer.write(group, state.with_labels(labelled))
            if percept is not None:
                for watch in self._watch:
                    watch(percept, work.record.time_ns, spent * 1e3)
            if self._checkpoint and time.monotonic() - checkpoint > _CHECKPOINT_S and self._writer.mark is not None:
                self._checkpoint(self._writer.mark)
                checkpoint = time.monotonic()

    def _messages(self, percept: Percept, topics: Collection[str], work: _Work, labelled: set[str]) -> list[Record]:
        camera, mine = work.camera, self._topics[work.camera]
        messages = outputs(self._types, percept, self._settings, self._perceiver.labels, topics)
        if camera not in labelled and "segmentation/label_info" in mine and self._perceiver.labels:
            messages["segmentation/label_info"] = label_info(self._types, self._perceiver.labels, percept.frame.stamp_ns)
            labelled.add(camera)
        return [Record(mine[name], work.record.time_ns, self._types.serialize(messages[name])) for name in mine if name in messages]

    def _restore(self) -> None:
        self._last_stamp = dict(self._state.demand.get("last", {}))
        self._demand.recall(self._state.demand)
        self._perceiver.recall(self._state.trackers)


def output_topics(types: RosbagsTypes, camera: str, cameras: int, wanted: Collection[str]) -> dict[str, Topic]:
    """Relative name -> the topic as the live node offers it."""
    prefix = f"{NODE}/" if cameras == 1 else f"{NODE}/{camera}/"
    return {name: Topic(prefix + name, TOPICS[name].type, types.typestore.generate_msgdef(TOPICS[name].type, ros_version=2)[0], "ros2msg",
                        types.typestore.hash_rihs01(TOPICS[name].type),
                        qos(1, durability="transient_local") if TOPICS[name].qos == "latched" else qos(2))
            for name in TOPICS if name in wanted}


def _frame(message: Any, camera: CameraTopics, stamp_ns: int, models: dict[tuple[int, int], CameraModel]) -> Frame:
    image: np.ndarray = decode_compressed(message) if camera.compressed else decode_image(message)
    height, width = image.shape[:2]
    return Frame(camera.name, stamp_ns, message.header.frame_id, image, models.get((width, height)))


def _thread(name: str, run: Callable, errors: list[BaseException], inbox: BoundedQueue, outbox: BoundedQueue, *arguments) -> threading.Thread:
    """A thread whose error ends the others."""
    def body() -> None:
        try:
            run(*arguments)
        except BaseException as error:
            errors.append(error)
            inbox.close(drop=True)
            outbox.close(drop=True)

    thread = threading.Thread(target=body, name=name, daemon=True)
    thread.start()
    return thread
