"""Where built engines live: one blob and one JSON record an engine, written so that a crash leaves nothing wrong.

A record is the commit: it names its blob and the blob's sha256, and it is renamed into place after the blob is safely
on disk. A reader that finds no record, a record that is no JSON, a blob that is missing or whose bytes have another
sum, or a record that describes something else, builds anew and says so in one line. Whoever loads or builds an entry
holds its lock (flock on a file beside it, which the kernel drops when the holder dies), so two processes build once.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import mmap
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dino_perception.engines.identity import key

SEAL = "sha256 of this record"


@dataclass
class CachedEngine:
    """The place of one engine in the cache. `description` is what it must be (see identity.py)."""

    folder: Path
    description: Mapping[str, Any]
    stem: str = field(init=False)

    def __post_init__(self):
        d = self.description
        self.stem = f"{d['name']}-{d['engine']}-{d['precision']}-{key(d)}"

    @property
    def record_path(self) -> Path:
        return self.folder / f"{self.stem}.json"

    @property
    def log_path(self) -> Path:
        """Where the output of a build goes, which no one but a bug report needs."""
        return self.folder / f"{self.stem}.log"

    @contextlib.contextmanager
    def locked(self, waiting: Callable[[str], None]) -> Iterator[None]:
        """Hold this entry's lock. `waiting` is told once when another process has it. Where the folder cannot be
        written (an image's read-only cache), nobody can build into it either, and no lock is needed."""
        path = self.folder / f"{self.stem}.lock"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            handle = _lock(path, lambda: waiting(f"another process is building {self.stem}; waiting for it"))
        except OSError:
            yield
            return
        try:
            yield
        finally:
            os.close(handle)

    @contextlib.contextmanager
    def tried(self) -> Iterator[int]:
        """While this process has the engine in hand a file says so; one that is found was left by a process that ended
        hard. Yields how many did so in a row. Call with the lock held."""
        path = self.folder / f"{self.stem}.trying"
        try:
            deaths = len(path.read_bytes()) if path.exists() else 0
            path.write_bytes(b"x" * (deaths + 1))
        except OSError:
            yield 0
            return
        try:
            yield deaths
        finally:
            path.unlink(missing_ok=True)

    def read(self) -> tuple[dict[str, Any] | None, str]:
        """The record, or None and why there is none (empty: nothing was ever stored)."""
        try:
            record = json.loads(self.record_path.read_text())
        except FileNotFoundError:
            return None, ""
        except (OSError, ValueError) as error:
            return None, f"its record cannot be read ({type(error).__name__})"
        if not isinstance(record, dict) or record.get("description") != json.loads(json.dumps(self.description)):
            return None, "its record describes another engine"
        if SEAL in record and record[SEAL] != _seal(record):
            return None, "its record is damaged, so that its parity numbers cannot be believed (checksum)"
        if not {"blob", "sha256", "parity"} <= set(record):
            return None, "its record lacks its parity, its engine or its checksum"
        return record, ""

    def blob(self, record: Mapping[str, Any]) -> tuple[memoryview | None, str]:
        """The engine's bytes, mapped from the file (private pages, so nothing can write through), or why not."""
        path = self.folder / str(record.get("blob"))
        try:
            with open(path, "rb") as file:
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        except (OSError, ValueError) as error:  # ValueError: an empty file cannot be mapped
            return None, f"its engine file cannot be read ({type(error).__name__})"
        if hashlib.sha256(mapped).hexdigest() != record.get("sha256"):
            return None, "its engine file is damaged (checksum)"
        return memoryview(mapped), ""

    def store(self, blob) -> tuple[dict[str, Any], memoryview]:
        """Put an engine's bytes on disk, not yet committed: (the start of its record, the bytes as mapped from the
        file). Raises OSError when the disk does not take them. Call with the lock held."""
        self.folder.mkdir(parents=True, exist_ok=True)
        sum = hashlib.sha256(blob).hexdigest()
        record = {"description": dict(self.description), "blob": f"{self.stem}-{sum[:8]}.engine", "sha256": sum}
        _replace(self.folder / record["blob"], blob)
        mapped, why = self.blob(record)
        if mapped is None:
            raise OSError(why)
        return record, mapped

    def commit(self, record: Mapping[str, Any], *, keep_blob: bool = True) -> None:
        """Make a record the truth about this entry and drop every other file of it. Without `keep_blob` the engine
        itself goes too (it failed the gate, and only that fact is worth keeping)."""
        record = {**record} if keep_blob else {**record, "blob": None, "sha256": None}
        record[SEAL] = _seal(record)
        _replace(self.record_path, json.dumps(record, indent=1).encode())
        for path in self.folder.glob(f"{self.stem}*"):
            if path.suffix == ".part" or (path.suffix == ".engine" and path.name != record["blob"]):
                path.unlink(missing_ok=True)


def mark(entry: CachedEngine, sentence: str) -> None:
    """Remember that an engine ended the process that built or loaded it, so that it is not tried again as it is."""
    entry.folder.mkdir(parents=True, exist_ok=True)
    entry.commit({"description": dict(entry.description), "parity": None, "died": sentence}, keep_blob=False)


def build_time(folder: Path, description: Mapping[str, Any]) -> float | None:
    """Seconds that the newest build of a graph of this name took with the same runtime and way; None when unknown."""
    alike = ("name", "engine", "way")
    for record in records(folder):
        if all(record["description"].get(key) == description.get(key) for key in alike) and record.get("build_s"):
            return record["build_s"]
    return None


def records(folder: Path) -> list[dict[str, Any]]:
    """Every readable record of a cache folder, with "path" and "bytes" added, newest first."""
    found = []
    for path in folder.glob("*.json"):
        try:
            record = json.loads(path.read_text())
            size = (folder / record["blob"]).stat().st_size if record.get("blob") else 0
            found.append({**record, "path": str(path), "bytes": size, "modified": path.stat().st_mtime})
        except (OSError, ValueError, TypeError, AttributeError):
            continue
    return sorted(found, key=lambda record: -record["modified"])


def clean(folder: Path) -> tuple[int, int]:
    """Remove every engine of a cache folder, whole, damaged or half written: (files, bytes) removed. An entry that
    another process is building just now is waited for."""
    files = freed = 0
    stems = {path.name[: -len(".lock")] for path in folder.glob("*.lock")}
    for stem in sorted(stems):
        handle = _lock(folder / f"{stem}.lock", lambda: None)
        try:
            for path in folder.glob(f"{stem}*"):
                if path.suffix in (".engine", ".json", ".part", ".lock", ".log", ".trying"):
                    files, freed = (
                        files + (path.suffix not in (".lock", ".log", ".trying")),
                        freed + path.stat().st_size,
                    )
                    path.unlink()
        finally:
            os.close(handle)
    return files, freed


def _seal(record: Mapping[str, Any]) -> str:
    """A checksum of a record as a file holds it: a flipped digit of a parity number is no other number."""
    plain = json.loads(json.dumps({name: value for name, value in record.items() if name != SEAL}))
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def _lock(path: Path, waiting: Callable[[], None]) -> int:
    """An open, locked file descriptor of `path`. A lock file that `clean` removed while we waited is no lock: whoever
    comes next would create another, so take that one."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                waiting()
                fcntl.flock(handle, fcntl.LOCK_EX)
            with contextlib.suppress(FileNotFoundError):
                if os.fstat(handle).st_ino == path.stat().st_ino:
                    return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def _replace(path: Path, data) -> None:
    """Write a file so that any reader, and any moment of a crash, sees the old bytes or all the new ones."""
    part = path.with_name(path.name + ".part")
    with open(part, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)
