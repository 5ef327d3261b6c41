"""Where a replay writes: never over a recording, and over an older output only once the new one is complete.

A new output is written in its place. Where something is there already, it is written into the folder OUT.part beside it,
and takes the place at the end. What is removed is only what a replay made, and says so of itself (`storage.origin`).
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dino_perception.bags import state as states
from dino_perception.bags.fingerprint import brief
from dino_perception.bags.state import Checkpoint, State, check_same
from dino_perception.bags.storage.origin import Origin, origin
from dino_perception.bags.storage.problems import UNWRITABLE, USAGE, BagError
from dino_perception.bags.storage.topic import Topic
from dino_perception.bags.storage.writer import storage_file

_AGAIN = "the earlier run did not get as far as to be gone on with; this one begins at the beginning"


class OutputPlace:
    """The place of one output, for a job by its parts (see `fingerprint`).

    After `prepare`, `done` says that there is nothing left to do, `checkpoint` where to go on (None: at the beginning),
    `working` which bag to write, and `note` what the user should know, or "". Raises BagError when something is in the
    way that must stay.
    """

    def __init__(self, output: Path, job: Mapping[str, Any]):
        self._given, self._job = output, job
        self.brief = brief(job)
        self.output = self.working = _resolved(output)
        self._part = self.output.with_name(self.output.name + ".part")
        self._beside = self._part / self.output.name
        self.checkpoint_file = states.checkpoint_file(self.output)
        self.checkpoint: Checkpoint | None = None
        self.done, self.note = False, ""
        self._lock: int | None = None

    @property
    def beside(self) -> bool:
        return self.working == self._beside

    def prepare(self, *, resume: bool, force: bool) -> None:
        """Find out what is there and what follows from it. It changes nothing but what an unfinished replay left
        beside the place."""
        if resume and self.checkpoint_file.exists():
            self._go_on(states.load(self.checkpoint_file, self._job))
        elif _there(self.output):
            self._replace(resume, force)
        elif _there(self._beside) and not (resume or force):
            raise BagError(f"{self._beside} holds an unfinished output; --force starts anew", UNWRITABLE)
        if not self.done and self.checkpoint is None:
            self._remove(self._beside)

    def begin_again(self) -> None:
        """What there is cannot be gone on with after all."""
        self.release()
        self.checkpoint, self.note = None, _AGAIN
        self.working = self._beside if _there(self.output) else self.output
        self._remove(self._beside)

    def save(self, state: State, end: int, topics: list[Topic]) -> None:
        """Write a checkpoint: `state`, with the output's `end` and `topics`. Raises BagError."""
        try:
            self.checkpoint_file.parent.mkdir(parents=True, exist_ok=True)
            Checkpoint(state, end, topics, self._job, self.beside).save(self.checkpoint_file)
        except OSError as error:
            raise BagError(f"{self.checkpoint_file} cannot be written: {error.strerror}", UNWRITABLE) from None

    def hold(self) -> None:
        """Keep other replays from writing the bag. Raises BagError when one does."""
        if self._lock is None:
            self._lock = _locked(storage_file(self.working))

    def release(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def finish(self) -> None:
        """The bag at `working` is complete: let it take its place. Raises BagError."""
        try:
            if self.beside and _there(self.working):
                if _there(self.output) and _made(self.output) is None and _recording(self.output):
                    raise OSError(17, "a recording has come there since")
                with open(storage_file(self.working), "rb") as file:
                    os.fsync(file.fileno())
                old = self._part / f"old {self.output.name}"
                if self.output.is_dir():  # a folder with something in it cannot be replaced in one step
                    os.rename(self.output, old)
                for bag in (self.working, self.output):  # sqlite would play an old one back into the new database
                    Path(f"{bag}-journal").unlink(missing_ok=True)
                os.replace(self.working, self.output)
                for left in _parts(old, self.output.name):
                    left.unlink(missing_ok=True)
                for folder in (old, self._part):
                    if folder.is_dir():
                        folder.rmdir()
            self.checkpoint_file.unlink(missing_ok=True)
        except OSError as error:
            raise BagError(
                f"the complete output is {self.working}, but it cannot take the place of {self.output} "
                f"({error.strerror}); move it there by hand",
                UNWRITABLE,
            ) from None

    def _go_on(self, found: Checkpoint) -> None:
        self.working = self._beside if found.beside else self.output
        at_work = self._mine(self.working)
        if at_work is None and found.beside and not _there(self.working):
            at_work = self._mine(self.output)  # perhaps it took its place, and only the checkpoint was still to remove
            at_work = at_work if at_work and at_work.complete else None
        if at_work is not None and at_work.complete:
            self.finish()
            self.done = True
        elif at_work is not None and found.state.records:
            self.checkpoint = found
        else:
            self.note = _AGAIN
            if not _there(self.output) or _empty(self.output):
                self.working = self.output
                self._remove(self.output)
            elif _made(self.output) is None and _recording(self.output):
                raise _not_ours(self._given)
            else:
                self.working = self._beside

    def _replace(self, resume: bool, force: bool) -> None:
        """Something is there, and no checkpoint to go on from: refuse, or write beside it."""
        made = _made(self.output)
        if made is None and (resume and not force or _recording(self.output)):
            raise _not_ours(self._given)
        if resume and not force:
            check_same(self.brief, made.job)
            self.done = made.complete
            self.note = f"{self._given} has no checkpoint; the replay begins at the beginning"
        elif not force:
            how = "; --resume goes on with it" if self.checkpoint_file.exists() else ""
            raise BagError(f"{self._given} exists; --force replaces it{how}", UNWRITABLE)
        self.working = self._beside

    def _mine(self, path: Path) -> Origin | None:
        """What a bag says of itself, if it is this job's."""
        made = _made(path)
        return made if made is not None and made.job == self.brief else None

    def _remove(self, path: Path) -> None:
        """Remove a bag that a replay made, when there is one. Raises BagError when it is anything else, or in use."""
        if not _there(path):
            return
        if _made(path) is None and not _empty(path):
            raise BagError(f"{path} is in the way and was not made by replay; move it elsewhere", UNWRITABLE)
        lock = _locked(storage_file(path))
        try:
            for file in _parts(path, path.name) if path.is_dir() else [Path(f"{path}-journal"), path]:
                file.unlink(missing_ok=True)
            if path.is_dir():
                path.rmdir()
        except OSError as error:
            raise BagError(f"{path} cannot be removed: {error.strerror}", UNWRITABLE) from None
        finally:
            if lock is not None:
                os.close(lock)


def check_apart(sources: list[Path], outputs: list[Path], others: Mapping[str, Path | None] | None = None) -> None:
    """Raises BagError when an output is one of the sources or a part of one, or holds one, by whatever links it may be
    named; `others` are further places that are written to, by their options."""
    named = [("the output", path) for path in outputs]
    named += [(option, path) for option, path in (others or {}).items() if path is not None]
    for source in sources:
        files = [source, *(sorted(source.iterdir()) if source.is_dir() else ())]
        for what, path in named:
            if any(_same(path, file) for file in files):
                raise BagError(f"{what} {path} is the recording {source} itself; nothing was written", USAGE)
            if any(_same(folder, source) for folder in _real(path).parents):
                raise BagError(f"{what} {path} lies inside the recording {source}; choose another place", USAGE)
            if what == "the output" and any(_same(path, folder) for folder in _real(source).parents):
                raise BagError(f"{what} {path} is a folder that holds the recording {source}; name a bag in it", USAGE)
    for option, path in named[len(outputs) :]:
        if any(_real(path) == _real(output) for output in outputs):
            raise BagError(f"{option} {path} is the output itself; choose another place", USAGE)


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))


def _same(one: Path, other: Path) -> bool:
    try:
        return os.path.samefile(one, other)
    except OSError:
        return _real(one) == _real(other)


def _resolved(output: Path) -> Path:
    """The output itself where the path is a link. Raises BagError for a link that leads nowhere, or to a bag of another
    kind."""
    if not output.is_symlink():
        return output
    real = _real(output)
    if not real.exists() or real.suffix != output.suffix:
        raise BagError(f"{output} is a link to {real}; give the place itself as the output", UNWRITABLE)
    return real


def _there(path: Path) -> bool:
    """Whether anything is at a path, but for an empty folder."""
    return os.path.lexists(path) and not (path.is_dir() and not any(path.iterdir()))


def _made(path: Path) -> Origin | None:
    """What a bag says of itself; None when it is not a replay's, or has company that is not."""
    if path.is_dir() and set(path.iterdir()) - set(_parts(path, path.name)):
        return None
    return origin(storage_file(path)) if storage_file(path).is_file() else None


def _recording(path: Path) -> bool:
    """Whether there is a folder, or a file that begins as a recording of any kind does."""
    if not path.is_file():
        return True
    with open(path, "rb") as file:
        return file.read(16).startswith((b"\x89MCAP", b"SQLite format 3", b"#ROSBAG", b"\x28\xb5\x2f\xfd"))


def _parts(folder: Path, name: str) -> list[Path]:
    """All that a replay puts into a folder for the bag `name`."""
    return [folder / part for part in (f"{name}_0.mcap", "metadata.yaml", "metadata.yaml.part")]


def _empty(path: Path) -> bool:
    """Whether there is a bag without anything in it, which a process leaves that ends as soon as it begins."""
    file = storage_file(path)
    if not file.is_file() or (path.is_dir() and set(path.iterdir()) - {file}):
        return False
    if not file.stat().st_size:
        return True
    if file.suffix != ".db3":
        return False
    try:
        base = sqlite3.connect(file)
        try:
            return not base.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        finally:
            base.close()
    except sqlite3.Error:
        return False


def _locked(file: Path) -> int | None:
    """A descriptor that holds the file's lock; None where there are no locks, or no file."""
    try:
        held = os.open(file, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return held
    except BlockingIOError:
        os.close(held)
        raise BagError(f"{file} is being written by another replay at this moment", UNWRITABLE) from None
    except OSError:
        os.close(held)
        return None


def _not_ours(path: Path) -> BagError:
    return BagError(
        f"{path} exists and was not made by replay: it is neither resumed nor replaced; choose another output",
        UNWRITABLE,
    )
