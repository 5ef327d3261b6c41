"""The one thread that looks: newest frames in, one batch, one pass, messages out."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from dino_perception.messages.images import ImageError
from dino_perception.messages.intake import Intake
from dino_perception.messages.topics import of_kind, waiting
from dino_perception.perception.frame import Frame, Percept
from dino_perception.perception.perceiver import FrameError
from dino_perception.perception.settings import Settings
from dino_perception.perception.sight import Sight
from dino_perception.ros.frame_statistics import Account
from dino_perception.ros.mailbox import Letter, Mailbox

PICTURES = frozenset(of_kind("picture"))
STOP_S = 30.0
"""How long `stop` waits for the batch under way."""


class Camera(Protocol):
    """What the worker needs of a camera."""

    def listened(self) -> set[str]:
        """Topics (relative names) that somebody subscribes to."""

    def frame(self, letter: Letter) -> Frame:
        """Decode. Raises ImageError."""

    def publish(self, messages: Mapping[str, Any]) -> None:
        """Send messages by relative topic name."""


@dataclass
class _Parts:
    """What of one frame is still to be sent."""

    letter: Letter
    due: set[str]
    sent: bool = False
    """Whether some of it has been."""
    over: bool = False
    """Nothing more comes of it: it is too old, or failed."""
    spent: dict[str, float] = field(default_factory=dict)

    def spend(self, milliseconds: Mapping[str, float]) -> None:
        for stage, value in milliseconds.items():
            self.spent[stage] = self.spent.get(stage, 0.0) + value


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
        self._now_ns, self._complain, self._lost = now_ns, complain, lost
        self._orders: list[Callable[[], None]] = []
        self._orders_lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="perception", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> bool:
        """Let the batch under way end, publish nothing after it. False when it did not end in time."""
        self._mailbox.close()
        if self._thread.is_alive():
            self._thread.join(STOP_S)
        return not self._thread.is_alive()

    def change(self, settings: Settings) -> None:
        """Take new settings before the next batch."""
        self._order(lambda: self._intake.change(settings))

    def reset_tracks(self) -> None:
        """Forget every camera's reference frames before the next batch."""
        self._order(self._perceiver.reset_tracks)

    def restart(self) -> None:
        """Time jumped back: forget what waits, the tracks and the rates."""
        self._mailbox.clear()
        self._order(self._intake.reset)

    def _order(self, order: Callable[[], None]) -> None:
        # The perceiver belongs to this thread alone; other threads leave orders that it carries out between batches.
        with self._orders_lock:
            self._orders.append(order)

    def _run(self) -> None:
        while not self._mailbox.closed:
            letters = self._mailbox.take(most=self._perceiver.most_at_once)
            try:
                self._obey()
                self._look(letters)
            except Exception as error:  # a defect must not silence the cameras
                self._fail(letters, error)

    def _obey(self) -> None:
        with self._orders_lock:
            orders, self._orders = self._orders, []
        for order in orders:
            order()

    def _look(self, letters: Mapping[str, Letter]) -> None:
        frames: list[Frame] = []
        wanted: list[set[str]] = []
        topics: dict[str, set[str]] = {}
        for camera, letter in letters.items():
            taken = time.monotonic()
            if self._too_old(camera, letter.stamp_ns, late=False):
                continue
            order = self._intake.order(camera, letter.stamp_ns, self._cameras[camera].listened())
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
            frames.append(frame)
            wanted.append(order.heads)
            topics[camera] = order.topics
        parts = {camera: _Parts(letters[camera], chosen - PICTURES) for camera, chosen in topics.items()}

        sights = self._sights(frames, wanted)
        for sight in sights:
            if sight.pending:  # mask, depth and points do not wait for matches
                self._try(sight.percept, parts[sight.percept.frame.camera], without=waiting(sight.pending))
        heads = {frame.camera: names for frame, names in zip(frames, wanted)}
        percepts = [p for sight in sights if (p := self._completed(sight, heads, alone=len(sights) == 1)) is not None]
        for stage_ms in {id(p.stage_ms): p.stage_ms for p in percepts}.values():  # frames of one pass share theirs
            self._account.spent(stage_ms)
        for percept in percepts:
            self._try(percept, parts[percept.frame.camera])
        self._perceiver.prepare()
        # The pictures for people are drawn when the data of every camera is on its way: nobody drives by them.
        for percept in percepts:
            try:
                self._draw(percept, topics[percept.frame.camera])
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

    def _try(self, percept: Percept, parts: _Parts, without: frozenset[str] = frozenset()) -> None:
        """Publish what is due of a frame; an error ends this frame, and nothing else."""
        if parts.over:
            return
        try:
            self._publish(percept, parts, without)
        except Exception as error:
            parts.over = True
            self._fail([percept.frame.camera], error)

    def _publish(self, percept: Percept, parts: _Parts, without: frozenset[str]) -> None:
        """Send what is due but `without` some topics, which come later; with none left out the frame is done."""
        frame, due = percept.frame, parts.due - without
        account = self._account.cameras[frame.camera]
        if (due or not without) and self._in_vain(frame, parts):
            due = set()
        begun = time.monotonic()
        messages = self._intake.messages(percept, due) if due else {}
        built = time.monotonic()
        if messages and not self._in_vain(frame, parts):  # asked again: on a busy machine building takes its time
            self._cameras[frame.camera].publish(messages)
            done = time.monotonic()
            parts.due -= due
            parts.sent = True
            parts.spend({"messages": (built - begun) * 1e3, "publish": (done - built) * 1e3})
            parts.spent["receipt to publish"] = (done - parts.letter.received_s) * 1e3
            age = self._age_s(frame.stamp_ns)
            if age is not None:
                parts.spent.setdefault("stamp to publish (dense)", age * 1e3)
                parts.spent["stamp to publish"] = age * 1e3
        if not without and not parts.over:
            account.no_points = account.no_points or percept.camera_problem
            account.published.tick(time.monotonic())
            if unlike := [head for head, strange in percept.strangeness.items() if strange > 1]:
                account.unlike.tick(time.monotonic())
                account.unlike_head = unlike[0]
            self._account.spent(parts.spent)

    def _in_vain(self, frame: Frame, parts: _Parts) -> bool:
        """Whether nothing more of a frame may be sent: the node stops, or the frame is too old by now."""
        if self._mailbox.closed or self._too_old(frame.camera, frame.stamp_ns, late=True, counted=parts.sent):
            parts.over = not parts.sent
            return True
        return False

    def _draw(self, percept: Percept, topics: set[str]) -> None:
        pictures = topics & PICTURES
        if not pictures or self._stale(percept):
            return
        begun = time.monotonic()
        messages = self._intake.messages(percept, pictures)
        if self._stale(percept):
            return
        self._cameras[percept.frame.camera].publish(messages)
        self._account.spent({"overlays": (time.monotonic() - begun) * 1e3})

    def _stale(self, percept: Percept) -> bool:
        age = self._age_s(percept.frame.stamp_ns)
        return self._mailbox.closed or (age is not None and age > self._intake.settings.max_age)

    def _age_s(self, stamp_ns: int) -> float | None:
        now = self._now_ns()
        return (now - stamp_ns) / 1e9 if now > 0 else None

    def _too_old(self, camera: str, stamp_ns: int, *, late: bool, counted: bool = False) -> bool:
        """Whether a frame is older than `max_age`; unless it is `counted` already, that is what became of it."""
        age = self._age_s(stamp_ns)
        account = self._account.cameras[camera]
        if not late:
            account.age_s = age
        if age is None or age <= self._intake.settings.max_age:
            return False
        if counted:
            return True
        account.age_s, account.late = age, late
        account.too_old.tick(time.monotonic())
        return True

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
