"""Asks the node about one picture after another, and waits for each answer: time that is stepped, not passed."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from types import TracebackType

from dino_perception.ros.rig.node_process import NODE, NodeError, NodeProcess
from dino_perception.ros.rig.player import Player, Recorded, playing_node
from dino_perception.ros.rig.watcher import Heard, Watcher

SETTLE_S = 0.03
"""Between what belongs to a picture (camera_info, transforms, /clock) and the picture: other topics could be overtaken."""
ANSWER_S, REST_S = 120.0, 20.0
"""How long the first answer to a picture may take, and after it the others: of some frames the node cannot tell all."""


class Asker:
    """Publishers of `sent` (topic -> type) and a reader of the node's `wanted` (relative topic -> type), of which each
    answer has one message with the picture's stamp; those among `latched` are of no frame, and waited for once.

    The node must read its pictures reliably and by simulated time: `PARAMETERS`. Also a context manager.
    """

    PARAMETERS: Mapping[str, str] = {
        "use_sim_time": "true",
        "max_age": "3600.0",
        "qos_overrides./image.subscription.reliability": "reliable",
    }

    def __init__(
        self,
        node: NodeProcess,
        sent: Mapping[str, str],
        wanted: Mapping[str, str],
        latched: Sequence[str] = (),
        sent_latched: Sequence[str] = (),
    ):
        self._process, self._types = node, dict(sent)
        self._wanted = [name for name in wanted if name not in latched]
        self._latched = list(latched)
        self._watcher = Watcher(
            {f"{NODE}/{name}": kind for name, kind in wanted.items()}, {f"{NODE}/{n}" for n in latched}
        )
        self._playing = playing_node()
        self._player = Player(
            self._playing.__enter__(), self._types, decode=False, latched=set(sent_latched), clock_rate=0.0
        )

    def start(self, say=lambda line: None) -> None:
        """Waits until the node is active and all have found one another. Raises NodeError."""
        self._process.wait_until_active(self._watcher, say)
        self._player.wait_for_subscribers(30.0)

    def ask(self, stamp_ns: int, messages: Mapping[str, bytes], picture: str) -> dict[str, Heard]:
        """Sends the CDR bytes of `messages` (by topic), the one on the topic `picture` last, and returns what the node
        says about it, by relative topic; what it does not say within some time after the first is left out. Raises
        NodeError when it has ended, or says nothing."""
        self._send(stamp_ns, {name: data for name, data in messages.items() if name != picture})
        time.sleep(SETTLE_S)
        self._send(stamp_ns, {picture: messages[picture]})
        asked, first = time.monotonic(), None
        while True:
            found = {name: self._answer(name, stamp_ns) for name in self._wanted}
            first = first or (time.monotonic() if any(found.values()) else None)
            found.update({name: self._answer(name, None) for name in self._latched})
            if all(found.values()) or (first and time.monotonic() - first > REST_S):
                for name in self._wanted:
                    self._watcher.heard[f"{NODE}/{name}"].clear()
                return {name: one for name, one in found.items() if one}
            self._process.check()
            if not first and time.monotonic() - asked > ANSWER_S:
                raise NodeError(f"the node said nothing about a picture within {ANSWER_S:.0f} s")
            time.sleep(0.002)

    def close(self) -> None:
        self._player.close()
        self._playing.__exit__(None, None, None)
        self._watcher.close()

    def __enter__(self) -> Asker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _send(self, stamp_ns: int, messages: Mapping[str, bytes]) -> None:
        self._player.play(Recorded(name, self._types[name], stamp_ns, data) for name, data in messages.items())

    def _answer(self, name: str, stamp_ns: int | None) -> Heard | None:
        heard = self._watcher.heard[f"{NODE}/{name}"]
        return next((one for one in reversed(heard) if stamp_ns in (None, one.stamp_ns)), None)
