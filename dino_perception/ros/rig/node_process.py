"""The node in a process of its own, for commands that play to it and listen."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from dino_perception.child_processes import ends_with_parent
from dino_perception.ros.large_messages import large_message_profile
from dino_perception.ros.rig.watcher import Watcher

NODE = "/dino_perception"
READY_S = 600.0
"""A first start on a slow machine builds and checks engines."""
STATUS = "dino_perception: perception"


class NodeError(RuntimeError):
    """The node did not come up, or ended; the message says why."""


class NodeProcess:
    """`python -m dino_perception.ros` with these `--ros-args`, from construction to `close`; also a context manager.

    Its output goes to the file `log`. It lives in the ROS domain of the environment.
    """

    def __init__(self, arguments: Sequence[str], log: Path):
        self._log = log
        self.started_s = time.monotonic()
        with open(log, "w") as file:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "dino_perception.ros", "--ros-args", *arguments],
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**os.environ, **large_message_profile()},
                start_new_session=True,  # Ctrl-C is for this process, which then ends the node
                **ends_with_parent(),
            )

    def __enter__(self) -> NodeProcess:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait_until_active(self, watcher: Watcher, say: Callable[[str], None] = lambda line: None) -> None:
        """Waits until the node says on /diagnostics that it is active. Raises NodeError."""
        end = time.monotonic() + READY_S
        while time.monotonic() < end:
            self.check()
            sentence, values = watcher.diagnostics.get(STATUS, ("starting", {}))
            if values.get("state") == "active":
                return
            if sentence.startswith("not configured"):
                raise NodeError(f"the node is {sentence}")
            say(sentence)
            time.sleep(0.02)
        raise NodeError(f"the node was not ready after {READY_S:.0f} s; see {self._log}")

    def check(self) -> None:
        """Raises NodeError when the node has ended."""
        if self._process.poll() is not None:
            tail = "\n".join(self._log.read_text(errors="replace").splitlines()[-10:])
            raise NodeError(
                f"the node ended with exit code {self._process.returncode}; its last words, from {self._log}:\n{tail}"
            )

    def log(self) -> str:
        """What the node has said so far."""
        return self._log.read_text(errors="replace")

    def close(self) -> None:
        """End the node."""
        stop(self._process)


def stop(process: subprocess.Popen) -> None:
    """Ask a process to end, and insist."""
    for how in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        if process.poll() is None:
            process.send_signal(how)
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                continue
