"""Long tests that are only a process to wait for: they begin with the session, with the lowest priority, beside the others.

A test module makes a `Job` at its top, and its test asks for `result()`. What is measured in a job must not be wall time.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dino_perception.child_processes import ends_with_parent

Commands = Sequence[Sequence[str]]
jobs: list[Job] = []


@dataclass
class Job:
    """What the test named `test` waits for. `commands` gets an empty folder and gives what is run, one after another, with
    `environment` over this process's own."""

    test: str
    commands: Callable[[Path], Commands]
    environment: dict[str, str] = field(default_factory=dict)
    done: list[subprocess.CompletedProcess] = field(default_factory=list, init=False)
    folder: Path = field(init=False)
    _finished: threading.Event = field(default_factory=threading.Event, init=False)
    _error: BaseException | None = field(default=None, init=False)

    def __post_init__(self):
        jobs.append(self)

    def result(self, timeout: float = 1500) -> list[subprocess.CompletedProcess]:
        """The finished processes, with what they printed."""
        assert self._finished.wait(timeout), f"it did not end within {timeout:.0f} s"
        if self._error:
            raise self._error
        return self.done

    def run(self, within: Within) -> None:
        try:
            self.folder = Path(tempfile.mkdtemp(dir=within.folder))
            for command in self.commands(self.folder):
                self.done.append(within.process(command, self.environment))
        except BaseException as error:  # the test that waits is told
            self._error = error
        finally:
            self._finished.set()


class Within:
    """The jobs of one session, one after another in a thread; `end` ends the one that is at work."""

    def __init__(self, chosen: Iterable[Job]):
        self._temporary = tempfile.TemporaryDirectory(prefix="begun-early-", ignore_cleanup_errors=True)
        self.folder = self._temporary.name
        self._chosen, self._now, self._over = list(chosen), None, False
        # As they are before any test changes them for itself.
        self._environment, self._directory = dict(os.environ), os.getcwd()
        threading.Thread(target=self._run, name="begun early", daemon=True).start()

    def process(self, command: Sequence[str], environment: dict[str, str]) -> subprocess.CompletedProcess:
        with open(Path(self.folder, "out"), "w+") as out, open(Path(self.folder, "err"), "w+") as err:
            self._now = subprocess.Popen(
                ["nice", "-n", "19", *map(str, command)],
                stdout=out,
                stderr=err,
                env={**self._environment, **environment},
                cwd=self._directory,
                start_new_session=True,
                **ends_with_parent(),
            )
            code = self._now.wait()
            out.seek(0)
            err.seek(0)
            return subprocess.CompletedProcess(command, code, out.read(), err.read())

    def end(self) -> None:
        self._over = True
        if self._now is not None and self._now.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._now.pid, signal.SIGKILL)
            self._now.wait()
        self._temporary.cleanup()

    def _run(self) -> None:
        for job in self._chosen:
            if not self._over:
                job.run(self)
