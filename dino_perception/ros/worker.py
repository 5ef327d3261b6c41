"""The one thread that looks: newest frames in, one batch, one pass, messages out."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from dino_perception.messages.images import ImageError
from dino_perception.messages.intake import Intake, Order
from dino_perception.messages.topics import waiting
from dino_perception.perception.frame import Frame, Percept
from dino_perception.perception.perceiver import FrameError
from dino_perception.perception.settings import Settings
from dino_perception.perception.sight import Sight
from dino_perception.ros.delivery import PICTURES, Delivery, Parts
from dino_perception.ros.frame_statistics import Account
from dino_perception.ros.mailbox import Letter, Mailbox

STOP_S = 30.0
"""How long `stop` waits for the batches under way."""


class Camera(Protocol):
    """What the worker needs of a camera."""

    def listened(self) -> set[str]:
        """Topics (relative names) that somebody subscribes to."""

    def frame(self, letter: Letter) -> Frame:
        """Decode. Raises ImageError."""

    def publish(self, messages: Mapping[str, Any]) -> None:
        """Send messages by relative topic name."""


@dataclass
class Batch:
    """Frames that are looked at together. `era` counts the restarts before they were taken."""

    letters: Mapping[str, Letter]
    era: int
    frames: list[Frame] = field(default_factory=list)
    wanted: list[set[str]] = field(default_factory=list)
    topics: dict[str, set[str]] = field(default_factory=dict)
    ready_s: float = 0.0
    """When the last of them was decoded."""


class Worker:
    """Takes the newest frame of every camera that has one (one after another where a batch gains nothing), leaves out what
    is too old or unwatched, and publishes.

    `now_ns` is the node's clock (simulated time included), 0 while it does not run yet; stamps are compared with no
    other clock. Errors of a frame are counted and told to `complain`; they never end the thread. `lost` is told of an
    error after which the device does not answer any more.
    """

    def __init__(
        self,
        mailbox: Mailbox,
        perceiver: Any,
        intake: Intake,
        cameras: Mapping[str, Camera],
        account: Account,
        now_ns: Callable[[], int],
        complain: Callable[[str, Exception, str], None],
        lost: Callable[[str], None] = lambda text: None,
    ):
        self._mailbox, self._perceiver, self._intake = mailbox, perceiver, intake
        self._cameras, self._account = cameras, account
        self._complain, self._lost = complain, lost
        self._delivery = Delivery(intake, cameras, account, now_ns, lambda: mailbox.closed, self._fail)
        self._orders: list[Callable[[], None]] = []
        self._orders_lock = threading.Lock()
        self._era = 0
        """How often time started anew."""
        self.newest: dict[str, Frame] = {}
        """The frame of each camera that was decoded last."""
        self._threads = [threading.Thread(target=self._run, name="perception", daemon=True)]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> bool:
        """Let the batches under way end, publish nothing after it. False when they did not end in time."""
        self._mailbox.close()
        deadline = time.monotonic() + STOP_S
        for thread in self._threads:
            if thread.is_alive():
                thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def change(self, settings: Settings) -> None:
        """Take new settings before the next batch."""
        self._order(lambda: self._intake.change(settings))

    def reset_tracks(self) -> None:
        """Forget every camera's reference frames before the next batch."""
        self._order(self._perceiver.reset_tracks)

    def restart(self) -> None:
        """Time jumped back: forget what waits, the tracks and the rates."""
        self._era += 1
        self._mailbox.clear()
        self._order(self._intake.reset)

    def between_batches(self, act: Callable[[], None]) -> None:
        """Have something done before the next batch."""
        self._order(act)

    def _order(self, order: Callable[[], None]) -> None:
        # Other threads leave orders, which are carried out between batches.
        with self._orders_lock:
            self._orders.append(order)

    def _obey(self) -> None:
        with self._orders_lock:
            orders, self._orders = self._orders, []
        if orders:
            self._between_passes(lambda: [order() for order in orders])

    def _between_passes(self, change: Callable[[], Any]) -> Any:
        """Change what a pass uses."""
        return change()

    def _run(self) -> None:
        while not self._mailbox.closed:
            batch = self._taken()
            try:
                self._obey()
                self._decode(batch)
                self._send(batch, self._sights(batch.frames, batch.wanted))
            except Exception as error:  # a defect must not silence the cameras
                self._fail(batch.letters, error)

    def _taken(self) -> Batch:
        letters = self._mailbox.take(most=self._perceiver.most_at_once)
        return Batch(letters, self._era)

    def _decode(self, batch: Batch) -> None:
        """Fill the batch with the frames of its letters that are worth a look."""
        for camera, letter in batch.letters.items():
            taken = time.monotonic()
            if self._delivery.too_old(camera, letter.stamp_ns, late=False):
                continue
            order = self._ordered(camera, letter.stamp_ns, self._cameras[camera].listened())
            if not order.topics:
                self._account.cameras[camera].unwatched.tick(taken)
                continue
            try:
                frame = self._cameras[camera].frame(letter)
            except ImageError as error:
                self._bad(camera, error)
                continue
            waited = (taken - letter.received_s) * 1e3
            self._account.spent({"wait": waited, "decode": (time.monotonic() - taken) * 1e3})
            age_s = self._account.cameras[camera].age_s  # when it was taken
            if age_s is not None:
                self._account.spent({"receive": max(0.0, age_s * 1e3 - waited)})
            self.newest[camera] = frame
            batch.frames.append(frame)
            batch.wanted.append(order.heads)
            batch.topics[camera] = order.topics

    def _ordered(self, camera: str, stamp_ns: int, listened: Collection[str]) -> Order:
        if self._intake.goes_back(camera, stamp_ns):
            return self._between_passes(lambda: self._intake.order(camera, stamp_ns, listened))
        return self._intake.order(camera, stamp_ns, listened)

    def _send(self, batch: Batch, sights: list[Sight]) -> None:
        """Send what was seen: mask, depth and points, then the matches, then the pictures for people."""
        parts = {camera: Parts(batch.letters[camera], chosen - PICTURES) for camera, chosen in batch.topics.items()}
        for sight in sights:
            if sight.pending:  # mask, depth and points do not wait for matches
                self._delivery.send(sight.percept, parts[sight.percept.frame.camera], without=waiting(sight.pending))
        heads = {frame.camera: names for frame, names in zip(batch.frames, batch.wanted)}
        whole = [p for sight in sights if (p := self._completed(sight, heads, alone=len(sights) == 1)) is not None]
        percepts = [self._followed(percept, batch.topics[percept.frame.camera]) for percept in whole]
        for stage_ms in {id(p.stage_ms): p.stage_ms for p in percepts}.values():  # frames of one pass share theirs
            self._account.spent(stage_ms)
        for percept in percepts:
            self._delivery.send(percept, parts[percept.frame.camera])
        self._perceiver.prepare()
        # The pictures for people are drawn when the data of every camera is on its way: nobody drives by them.
        for percept in percepts:
            try:
                self._delivery.draw(percept, batch.topics[percept.frame.camera])
                self._account.cameras[percept.frame.camera].heights.look(percept)
            except Exception as error:
                self._fail([], error)

    def _sights(self, frames: list[Frame], wanted: list[set[str]]) -> list[Sight]:
        """What is seen in the frames; one that fails alone is counted and left out."""
        if not frames:
            return []
        try:
            sights = self._perceiver.look(frames, wanted)
            return [dataclasses.replace(sight, percept=self._intake.scaled(sight.percept)) for sight in sights]
        except Exception as error:
            return self._each_alone(frames, wanted, error)

    def _each_alone(self, frames: list[Frame], wanted: list[set[str]], error: Exception) -> list[Sight]:
        if self._hopeless([frame.camera for frame in frames], error):
            return []
        # One frame may be what the engine cannot take; the other cameras shall not go blind for it.
        return [sight for frame, heads in zip(frames, wanted) for sight in self._sights([frame], [heads])]

    def _completed(self, sight: Sight, heads: Mapping[str, set[str]], alone: bool) -> Percept | None:
        """The whole percept. Where matching failed beside other frames, the frame is looked at once more, alone."""
        frame = sight.percept.frame
        try:
            return self._perceiver.complete(sight)
        except Exception as error:
            if alone:
                self._hopeless([frame.camera], error)
                return None
        again = self._sights([frame], [heads[frame.camera]])
        return self._completed(again[0], heads, alone=True) if again else None

    def _followed(self, percept: Percept, topics: set[str]) -> Percept:
        """The percept with its pose and its ground, where they are asked for; a defect there keeps nothing else from being
        sent."""
        try:
            return self._intake.followed(percept, topics)
        except Exception as error:
            self._fail([percept.frame.camera], error)
            return percept

    def _hopeless(self, cameras: list[str], error: Exception) -> bool:
        """Whether nothing more can be had of these cameras' frames; if so, they are counted."""
        if isinstance(error, FrameError):
            if len(cameras) == 1:
                self._bad(cameras[0], error)
        elif not self._perceiver.alive():
            self._fail(cameras, error)
            self._lost(f"{type(error).__name__}: {error}")
            return True
        elif len(cameras) == 1:
            self._fail(cameras, error)
        return len(cameras) == 1

    def _bad(self, camera: str, error: Exception) -> None:
        account = self._account.cameras[camera]
        account.bad.tick(time.monotonic())
        account.bad_reason = str(error)
        self._complain(f"camera '{camera}': {error}", error, camera)

    def _fail(self, cameras, error: Exception) -> None:
        text = f"{type(error).__name__}: {error}"
        self._account.error(text)
        for camera in cameras:
            self._account.cameras[camera].failed.tick(time.monotonic())
        who = ", ".join(cameras)
        self._complain(f"camera {who}: {text}" if cameras else text, error, who)
