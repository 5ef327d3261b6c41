"""The input of a replay: messages in order, images being decoded, each with the calibration of its moment."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from rosbags.serde import SerdeError

from dino_perception.bags.cameras import Calibrations, CameraTopics
from dino_perception.bags.farm import SEGMENT, Farm
from dino_perception.bags.pictures import VIDEO, Pictures
from dino_perception.bags.replay_threads import BoundedQueue
from dino_perception.bags.state import State
from dino_perception.bags.storage.reader import BagReader
from dino_perception.bags.storage.topic import Record
from dino_perception.messages.images import MAX_MEGAPIXELS, ImageError
from dino_perception.perception.frame import CameraModel, Frame


@dataclass(frozen=True)
class Part:
    """Which part of a bag to process: from `start_ns` to before `stop_ns` (record time, None: its ends), every
    `every`-th image of a camera, copying the topics `copy`."""

    start_ns: int | None = None
    stop_ns: int | None = None
    every: int = 1
    copy: Collection[str] = ()
    max_megapixels: float = MAX_MEGAPIXELS
    image_bits: int = 16


@dataclass
class Work:
    """One input message on its way: whether to copy it, whether it counts as a step of the input; of an image that is
    to be looked at, its camera, its stamp, the frame, or why the message is `damaged`, and with a farm, where its
    percept will be."""

    record: Record
    copied: bool
    counted: bool = True
    camera: str = ""
    stamp_ns: int = 0
    damaged: str = ""
    frame: Future | None = None
    segment: Segment | None = None
    place: int = 0


class Feed:
    """Reads the bag from where `state` left off."""

    def __init__(self, bag: BagReader, cameras: Sequence[CameraTopics], part: Part, state: State, farm: Farm | None):
        self._bag, self._part, self._state, self._farm = bag, part, state, farm
        self._cameras = {camera.image: camera for camera in cameras}
        self._pictures = _pictures(bag, cameras, part)

    def run(self, inbox: BoundedQueue, pool: ThreadPoolExecutor, frame_cost: int) -> None:
        """Put every message of the part into `inbox`, then close it. A frame counts as `frame_cost` bytes."""
        calibrations = {camera.info: Calibrations(self._bag, camera.info) for camera in self._cameras.values()}
        for info, raw in self._state.infos.items():
            calibrations[info].take(Record(self._bag.topics[info], 0, raw))
        names = {*self._part.copy, *self._cameras, *(info for info in calibrations if info)}
        seen = dict(self._state.images)
        for name, pictures in self._pictures.items():
            pictures.catch_up(self._bag, name, self._part.start_ns, seen.get(self._cameras[name].name, 0))
        segment = Segment()
        try:
            for record, counted in self._records(names):
                segment = self._take(record, counted, seen, calibrations, segment, inbox, pool, frame_cost)
        finally:
            if len(segment):
                segment.send(self._farm, pool)
        inbox.close()

    def _take(
        self,
        record: Record,
        counted: bool,
        seen: dict[str, int],
        calibrations: Mapping[str, Calibrations],
        segment: Segment,
        inbox: BoundedQueue,
        pool: ThreadPoolExecutor,
        frame_cost: int,
    ) -> Segment:
        """Pass one message on. Returns the segment that the next frame belongs to."""
        name = record.topic.name
        if name in calibrations:
            calibrations[name].take(record)
        work = Work(record, name in self._part.copy, counted)
        camera = self._cameras.get(name)
        if camera is not None:
            seen[camera.name] = seen.get(camera.name, 0) + 1
            if (seen[camera.name] - 1) % self._part.every == 0:
                self._decode(work, camera, calibrations[camera.info], pool)
                if self._farm is not None:
                    segment.add(work)
            else:
                self._pass(record)
        # Whoever takes from the queue waits for its segments: none may be kept back when the queue is full.
        if len(segment) == SEGMENT or (len(segment) and inbox.full):
            segment.send(self._farm, pool)
            segment = Segment()
        inbox.put(work, len(record.data) + 256 + (frame_cost if work.camera else 0))
        return segment

    def _records(self, names: Collection[str]) -> Iterator[tuple[Record, bool]]:
        """Each message with whether it counts. What a latched topic said before the start comes first, at the time of
        the start."""
        part, state = self._part, self._state
        start = part.start_ns
        if start is not None and not state.records:
            yield from ((record._replace(time_ns=start), False) for record in self._latched(start))
        skip = state.records
        if state.records and not self._bag.recorded_order:
            start, skip = state.time_ns, state.at_time
        for record in self._bag.messages(names, start, part.stop_ns):
            if skip:
                skip -= 1
                continue
            yield record, True

    def _latched(self, start: int) -> Iterator[Record]:
        names = [name for name in self._part.copy if self._bag.topics[name].latched]
        last: dict[str, list[Record]] = {}
        for record in self._bag.messages(names, stop=start) if names else ():
            held = last.setdefault(record.topic.name, [])
            if not record.topic.name.endswith("/tf_static"):  # each of its messages adds to the others
                held.clear()
            held.append(record)
        for name in sorted(last):
            yield from last[name]

    def _pass(self, record: Record) -> None:
        """A picture that is not looked at; those of a video that follow need it."""
        pictures = self._pictures[record.topic.name]
        if pictures.form == VIDEO:
            try:
                pictures.decode(self._bag.decode(record))
            except (SerdeError, ImageError):
                return

    def _decode(self, work: Work, camera: CameraTopics, calibrations: Calibrations, pool: ThreadPoolExecutor) -> None:
        work.camera = camera.name
        try:
            message = self._bag.decode(work.record)
        except (SerdeError, KeyError) as error:
            work.damaged = f"its message is damaged: {error}"
            work.frame = Future()
            work.frame.set_exception(ImageError(work.damaged))
            return
        stamp = message.header.stamp
        work.stamp_ns = stamp.sec * 1_000_000_000 + stamp.nanosec
        made = partial(_frame, message, camera, work.stamp_ns, calibrations.models())
        work.frame = self._pictures[camera.image].submit(message, made, pool)


class Segment:
    """Consecutive frames that one worker of a farm looks at."""

    def __init__(self) -> None:
        self._works: list[Work] = []
        self._sent: Future = Future()

    def __len__(self) -> int:
        return len(self._works)

    def add(self, work: Work) -> None:
        work.segment, work.place = self, len(self._works)
        self._works.append(work)

    def send(self, farm: Farm, pool: ThreadPoolExecutor) -> None:
        """Hand it over once its frames are decoded."""
        works, self._works = self._works, []
        pool.submit(self._submit, farm, works)

    def result(self, place: int) -> Any:
        """The percept of the frame at `place`, or the error that it met."""
        places, promise = self._sent.result()
        return promise.result()[places[place]]

    def _submit(self, farm: Farm, works: Sequence[Work]) -> None:
        try:
            good = [work for work in works if work.frame.exception() is None]
            places = {work.place: number for number, work in enumerate(good)}
            self._sent.set_result((places, farm.submit([work.frame.result() for work in good]) if good else None))
        except BaseException as error:
            self._sent.set_exception(error)


def frames(bag: BagReader, cameras: Sequence[CameraTopics], part: Part, count: int) -> list[Frame]:
    """The first `count` frames of a part, decoded; images that cannot be used are left out."""
    return list(itertools.islice(each_frame(bag, cameras, part), count))


def each_frame(bag: BagReader, cameras: Sequence[CameraTopics], part: Part) -> Iterator[Frame]:
    """The frames of a part one after another, by the first calibration of their camera; images that cannot be used are left
    out."""
    by_topic = {camera.image: camera for camera in cameras}
    calibrations = {camera.info: Calibrations(bag, camera.info).models() for camera in cameras}
    pictures = _pictures(bag, cameras, part)
    for name, of in pictures.items():
        of.catch_up(bag, name, part.start_ns, 0)
    seen: dict[str, int] = {}
    for record in bag.messages(by_topic, part.start_ns, part.stop_ns):
        camera = by_topic[record.topic.name]
        seen[camera.name] = seen.get(camera.name, 0) + 1
        try:
            message = bag.decode(record)
            pixels = pictures[camera.image].decode(message)
        except (ImageError, SerdeError, KeyError):
            continue
        if (seen[camera.name] - 1) % part.every == 0:
            stamp = message.header.stamp
            stamp_ns = stamp.sec * 1_000_000_000 + stamp.nanosec
            yield _frame(message, camera, stamp_ns, calibrations[camera.info], pixels)


def _pictures(bag: BagReader, cameras: Sequence[CameraTopics], part: Part) -> dict[str, Pictures]:
    """What decodes the pictures of each camera, by image topic."""
    return {c.image: Pictures(bag.topics[c.image], part.max_megapixels, part.image_bits) for c in cameras}


def _frame(
    message: Any, camera: CameraTopics, stamp_ns: int, models: dict[tuple[int, int], CameraModel], image: np.ndarray
) -> Frame:
    height, width = image.shape[:2]
    return Frame(camera.name, stamp_ns, message.header.frame_id, image, models.get((width, height)))
