"""One progress bar for work that comes in stages."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


def wide_console(markup: bool = False) -> Console:
    """The terminal; a file or pipe gets lines of 120 characters, so that tables fit. Without `markup` what stands in
    brackets is printed as it is: the name of a topic or a file may be anything."""
    console = Console(highlight=False, markup=markup)
    return console if console.is_terminal else Console(highlight=False, markup=markup, width=120)


class Stages:
    """Call it with (what, done, total) as work goes on; every new `what` or `total` is a new line. A context manager.

    Where the output is no terminal, each stage is one printed line.
    """

    def __init__(self, console: Console):
        self.console = console
        self._bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            console=console,
            disable=not console.is_terminal,
        )
        self._tasks: dict[tuple[str, int], TaskID] = {}

    def __call__(self, what: str, done: int, total: int, note: str = "") -> None:
        stage = (what, total)
        if stage not in self._tasks:
            for task in self._tasks.values():
                self._bars.stop_task(task)
            self._tasks[stage] = self._bars.add_task(what, total=total, note=note)
            if not self.console.is_terminal:
                self.console.print(f"{what} ({total})" if total > 1 else what, soft_wrap=True)
        self._bars.update(self._tasks[stage], completed=min(done + (done == total - 1), total), total=total, note=note)

    def say(self, line: str) -> None:
        """A line above the bars."""
        self.console.print(line, soft_wrap=True)

    def __enter__(self) -> Stages:
        self._bars.start()
        return self

    def stop(self) -> None:
        """The bars stay as they are; what is printed from now on comes below them."""
        self._bars.stop()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()
