"""A bag through the perceiver into another bag: every frame, in order, the same bytes every time.

Three stages overlap, joined by queues of bounded size: one thread reads the input and hands images to a few decoders,
the caller's thread perceives, one thread builds messages and writes.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from dino_perception.bags.camera_height import height_in
from dino_perception.bags.cameras import CameraTopics
from dino_perception.bags.farm import Farm
from dino_perception.bags.feed import Feed, Part, Work
from dino_perception.bags.outcome import Outcome, note_troubles, outcome
from dino_perception.bags.output_topics import output_topics, transforms_topic
from dino_perception.bags.replay_threads import BoundedQueue, Closed, Stopper, started
from dino_perception.bags.robot import told_by_robot
from dino_perception.bags.state import State
from dino_perception.bags.storage.problems import BagError, Problem
from dino_perception.bags.storage.reader import BagReader
from dino_perception.bags.storage.topic import Record
from dino_perception.bags.storage.writer import BagWriter
from dino_perception.messages.images import ImageError
from dino_perception.messages.intake import Intake
from dino_perception.messages.odometry import TF
from dino_perception.messages.topics import TOPICS
from dino_perception.messages.types import RosbagsTypes
from dino_perception.perception.frame import Percept
from dino_perception.perception.perceiver import FrameError, Perceiver
from dino_perception.perception.settings import Settings
from dino_perception.perception.track_memory import recall, remember

log = logging.getLogger(__name__)

CHECKPOINT = 50
"""A checkpoint is taken each time this many frames have been processed."""
_AHEAD = 6
"""Frames that may wait before the perceiver, and percepts behind it."""
_HELD = 48 << 20
"""Bytes of messages that may wait on either side."""

Watch = Callable[[Percept, int, float], None]
"""Told every percept in order with its record time in ns and the milliseconds it took."""


@dataclass
class _Done:
    """One input message that was processed, and the state after it; `captured` when that has all a checkpoint needs."""

    work: Work
    percept: Percept | None
    topics: Collection[str]
    seconds: float
    state: State
    captured: bool


@dataclass
class _End:
    """Nothing more comes."""

    state: State


class Replay:
    """One bag, one perceiver, one output, with the outputs `topics` (relative names).

    `watch` are told every percept, from the writing thread; `progress(done, total)` every frame, from the caller's.
    `state` is where an earlier replay of the same part stopped; `checkpoint` is given every state that can be gone on
    from, once the output up to there is safe.
    """

    def __init__(
        self,
        bag: BagReader,
        cameras: Sequence[CameraTopics],
        perceiver: Perceiver | Farm,
        settings: Settings,
        writer: BagWriter,
        part: Part,
        topics: Collection[str],
        *,
        state: State | None = None,
        watch: Sequence[Watch] = (),
        progress: Callable[[int, int], None] | None = None,
        checkpoint: Callable[[State], None] | None = None,
    ):
        self._bag, self._perceiver, self._settings, self._writer = bag, perceiver, settings, writer
        self._cameras = {camera.image: camera for camera in cameras}
        self._watch, self._progress, self._checkpoint = watch, progress, checkpoint
        self._types = RosbagsTypes()
        self._topics = {
            camera.name: output_topics(self._types, camera.name, len(cameras), topics) for camera in cameras
        }
        self._listened = [name for name in topics if not TOPICS[name].latched]
        own = {topic.name for mine in self._topics.values() for topic in mine.values()}
        for name in sorted(own & set(part.copy)):
            bag.note(Problem("", f"topic {name} of the input is not copied: the replay writes it anew"))
        if settings.odometry.tf:  # beside what the input says on /tf, not instead of it
            self._topics[cameras[0].name][TF] = bag.topics.get(TF) or transforms_topic(self._types)
        self._part = dataclasses.replace(part, copy=tuple(name for name in part.copy if name not in own))
        self._begin = self._state = state or State()
        self._farm = perceiver if isinstance(perceiver, Farm) else None
        self._intake = Intake(perceiver, settings, self._types, height_in(bag, settings))
        self._intake.transforms_of = cameras[0].name
        told_by_robot(self._intake.odometry, bag, settings)
        self._intake.recall(self._begin.demand)
        self._intake.told = set(self._begin.labelled)
        recall(perceiver, self._begin.tracks)
        self._bad: dict[str, list[str]] = {}
        self._back: dict[str, list[float]] = {}
        self._perceive_s = 0.0

    def run(self) -> Outcome:
        """Process the part. Ctrl-C ends it after the frame at hand and leaves a valid bag."""
        ahead = self._farm.ahead if self._farm else _AHEAD
        held = max(_HELD, ahead * (8 << 20)) if self._farm else _HELD
        self._frame_cost = held // ahead
        inbox, outbox = BoundedQueue(held), BoundedQueue(_HELD)
        feed = Feed(self._bag, list(self._cameras.values()), self._part, self._begin, self._farm)
        errors: list[BaseException] = []
        begun = time.perf_counter()
        with ThreadPoolExecutor(2, thread_name_prefix="decode") as pool, Stopper() as stopper:
            # When reading fails, what was read is still processed; when writing fails, nothing else makes sense.
            reader = started("read", lambda: feed.run(inbox, pool, self._frame_cost), errors, inbox.close)
            writer = started(
                "write", lambda: self._write(outbox), errors, lambda: (inbox.close(drop=True), outbox.close(drop=True))
            )
            try:
                self._perceive(inbox, outbox, stopper)
            except Closed:
                pass
            except Exception as error:
                log.exception("the perceiver failed")
                errors.append(error)
            inbox.close(drop=True)
            try:
                outbox.put(_End(self._captured(self._state)))
            except Closed:
                pass
            outbox.close()
            writer.join()
            reader.join()
        return self._outcome(time.perf_counter() - begun, stopper.asked, errors)

    def _perceive(self, inbox: BoundedQueue, outbox: BoundedQueue, stopper: Stopper) -> None:
        total = self._expected()
        infos = {camera.info for camera in self._cameras.values()}
        while True:
            try:
                work = inbox.get(lambda: stopper.asked)
            except Closed:
                return
            percept, topics, spent, state = None, (), 0.0, self._state
            changes: dict[str, Any] = {}
            if work.frame is not None:
                percept, topics, spent = self._look(work)
                changes = {"frames_in": state.frames_in + 1, "frames_out": state.frames_out + (percept is not None)}
            if work.record.topic.name in infos:
                changes["infos"] = {**state.infos, work.record.topic.name: bytes(work.record.data)}
            camera = self._cameras.get(work.record.topic.name)
            if work.counted:
                state = state.after(work.record, camera.name if camera else "", **changes)
            captured = "frames_in" in changes and state.frames_in % CHECKPOINT == 0 and self._checkpoint is not None
            done = _Done(work, percept, topics, spent, self._captured(state) if captured else state, captured)
            outbox.put(done, len(work.record.data) + (_HELD // _AHEAD if percept else 256))
            self._state = state
            if self._progress and "frames_in" in changes:
                self._progress(state.frames_in, total)

    def _look(self, work: Work) -> tuple[Percept | None, Collection[str], float]:
        """As the live node's worker does it, but for what depends on the clock on the wall."""
        camera = work.camera
        if work.damaged:  # live, such a message would not have arrived
            self._bad.setdefault(camera, []).append(work.damaged)
            return None, (), 0.0
        order = self._intake.order(camera, work.stamp_ns, self._listened)
        if order.back_s:
            self._back.setdefault(camera, []).append(order.back_s)
        try:
            frame = work.frame.result()
            if not order.topics:
                return None, (), 0.0
            begun = time.perf_counter()
            if self._farm:
                percept = self._farm.finish(frame, work.segment.result(work.place), order.heads)
            else:
                percept = self._perceiver.perceive([frame], [order.heads])[0]
        except (ImageError, FrameError) as error:
            self._bad.setdefault(camera, []).append(str(error))
            return None, (), 0.0
        percept = self._intake.followed(self._intake.scaled(percept), order.topics)
        spent = time.perf_counter() - begun
        self._perceive_s += spent
        return percept, order.topics, spent

    def _captured(self, state: State) -> State:
        """The state with a copy of what rates and tracks remember now."""
        return dataclasses.replace(state, demand=self._intake.memory(), tracks=remember(self._perceiver))

    def _expected(self) -> int:
        """How many frames there will be, as far as the bag says."""
        bag, part = self._bag, self._part
        span = max(bag.end_ns - bag.start_ns, 1)
        low = max(part.start_ns or bag.start_ns, bag.start_ns)
        high = min(part.stop_ns or bag.end_ns, bag.end_ns)
        share = min(1.0, max(0.0, (high - low) / span)) if bag.end_ns > bag.start_ns else 1.0
        return round(share * sum(-(-bag.topics[name].count // part.every) for name in self._cameras))

    def _write(self, outbox: BoundedQueue) -> None:
        while True:
            done = outbox.get()
            if isinstance(done, _End):
                self._flush(self._told(done.state))
                return
            group = [done.work.record] if done.work.copied else []
            if done.percept is not None:
                group += self._messages(done)
            state = self._told(done.state)
            self._writer.write(group, state)
            if done.percept is not None:
                for watch in self._watch:
                    watch(done.percept, done.work.record.time_ns, done.seconds * 1e3)
            if done.captured:
                self._flush(state)

    def _flush(self, state: State) -> None:
        self._writer.write([], state)
        self._writer.flush()
        if self._checkpoint:
            self._checkpoint(state)

    def _told(self, state: State) -> State:
        return dataclasses.replace(state, labelled=frozenset(self._intake.told))

    def _messages(self, done: _Done) -> list[Record]:
        mine = self._topics[done.work.camera]
        messages = self._intake.messages(done.percept, done.topics)
        messages.update(self._intake.once(done.work.camera, set(mine) - {TF}))
        return [
            Record(mine[name], done.work.record.time_ns, self._types.serialize(messages[name]))
            for name in mine
            if name in messages
        ]

    def _outcome(self, seconds: float, interrupted: bool, errors: Sequence[BaseException]) -> Outcome:
        fatal = errors[0] if errors else None
        complete = fatal is None and not interrupted
        try:
            self._writer.close(complete=complete)
        except BagError as error:
            fatal = fatal or error
        state = self._writer.mark or self._begin
        note_troubles(self._bag, self._bad, self._back)
        return outcome(
            self._bag, state, seconds, self._perceive_s, complete=complete, interrupted=interrupted, fatal=fatal
        )
