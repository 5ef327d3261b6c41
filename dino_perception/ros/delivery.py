"""The way out of a frame: its messages are built and sent, unless it is too old by then."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from dino_perception.messages.intake import Intake
from dino_perception.messages.topics import of_kind
from dino_perception.perception.frame import Frame, Percept
from dino_perception.ros.frame_statistics import Account
from dino_perception.ros.mailbox import Letter

PICTURES = frozenset(of_kind("picture"))


@dataclass
class Parts:
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


class Delivery:
    """Sends what is due of frames. `cameras` publish, `now_ns` is the node's clock, `closed` says that nothing may be
    published any more, and `fail` is told of errors, which end a frame and nothing else."""

    def __init__(
        self,
        intake: Intake,
        cameras: Mapping[str, Any],
        account: Account,
        now_ns: Callable[[], int],
        closed: Callable[[], bool],
        fail: Callable[[list[str], Exception], None],
    ):
        self._intake, self._cameras, self._account = intake, cameras, account
        self._now_ns, self._closed, self._fail = now_ns, closed, fail

    def send(self, percept: Percept, parts: Parts, without: frozenset[str] = frozenset()) -> None:
        """Send what is due but `without` some topics, which come later; with none left out the frame is done."""
        if parts.over:
            return
        try:
            self._send(percept, parts, without)
        except Exception as error:
            parts.over = True
            self._fail([percept.frame.camera], error)

    def draw(self, percept: Percept, topics: set[str]) -> None:
        """Send the pictures among `topics`."""
        pictures = topics & PICTURES
        if not pictures or self._stale(percept):
            return
        begun = time.monotonic()
        messages = self._intake.messages(percept, pictures)
        if self._stale(percept):
            return
        self._cameras[percept.frame.camera].publish(messages)
        self._account.spent({"overlays": (time.monotonic() - begun) * 1e3})

    def too_old(self, camera: str, stamp_ns: int, *, late: bool, counted: bool = False) -> bool:
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

    def _send(self, percept: Percept, parts: Parts, without: frozenset[str]) -> None:
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

    def _in_vain(self, frame: Frame, parts: Parts) -> bool:
        """Whether nothing more of a frame may be sent: the node stops, or the frame is too old by now."""
        if self._closed() or self.too_old(frame.camera, frame.stamp_ns, late=True, counted=parts.sent):
            parts.over = not parts.sent
            return True
        return False

    def _stale(self, percept: Percept) -> bool:
        age = self._age_s(percept.frame.stamp_ns)
        return self._closed() or (age is not None and age > self._intake.settings.max_age)

    def _age_s(self, stamp_ns: int) -> float | None:
        now = self._now_ns()
        return (now - stamp_ns) / 1e9 if now > 0 else None
