"""The output bag: mcap or sqlite3 by its suffix, a rosbag2 folder without one; groups of messages enter whole or not at
all."""

from __future__ import annotations

import errno
import hashlib
import os
import struct
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from dino_perception.bags.storage.mcap_read import McapSource
from dino_perception.bags.storage.mcap_write import McapWriter
from dino_perception.bags.storage.problems import UNWRITABLE, BagError, ChangedError
from dino_perception.bags.storage.sqlite_read import SqliteSource
from dino_perception.bags.storage.sqlite_write import SqliteWriter
from dino_perception.bags.storage.topic import Record, Topic, named_qos
from dino_perception.models.yaml_text import load


class NotContinued(BagError):
    """The bag is not the one that the checkpoint was taken of any more, or holds less."""


class BagWriter:
    """A new bag at `path`, or with `keep` = (`end`, `topics` of an earlier writer) that bag continued.

    `compression` is "" or "zstd" (mcap only). `mark` is whatever was given with the last group that is safe on the
    disk, `count` and `sha256` say how many messages are safe there and what they are (topic, time and bytes, in order).
    Raises BagError when the bag cannot be written; what was safe then stays safe. `job` is what the bag says of its
    origin.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        compression: str = "",
        keep: tuple[int, list[Topic]] | None = None,
        job: Mapping[str, str] | None = None,
    ):
        self.path = Path(path)
        self.file = storage_file(self.path)
        self._folder = self.file if self.file == self.path else self.path
        if compression and self.file.suffix == ".db3":
            raise BagError("sqlite3 storage has no compression; leave it out or write .mcap", UNWRITABLE)
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            if self._folder != self.file and keep is None and any(self._folder.iterdir()):
                raise BagError(f"{self.path} exists and is not empty", UNWRITABLE)
            if self.file.suffix == ".db3":
                self._storage: Any = SqliteWriter(self.file, keep=keep, job=job)
            else:
                self._storage = McapWriter(self.file, compression=compression, keep=keep, job=job)
        except (OSError, ChangedError) as error:
            if isinstance(error, FileExistsError) and self.file.exists():
                raise BagError(f"{self.file} exists", UNWRITABLE) from None
            kind = NotContinued if keep and isinstance(error, (ChangedError, FileNotFoundError)) else BagError
            raise kind(f"{self.path} cannot be written: {_reason(error)}", UNWRITABLE) from None
        self._ids = {
            (topic.name, topic.type, topic.coding): number + 1 for number, topic in enumerate(self._storage.topics)
        }
        self._start_counting()
        self._waiting: Any = None
        self.mark: Any = None
        self._marks: deque[Any] = deque(maxlen=4)  # one a group of messages that went to the disk
        self.failed: BagError | None = None
        self._recount() if keep else self._keep_safe()

    def write(self, group: Sequence[Record], mark: Any = None) -> None:
        """Add messages that belong together. Raises BagError."""
        try:
            for record in group:
                self._storage.write(self._id(record.topic), record.time_ns, record.data)
                self._count(record)
            self._waiting = mark
            if self._storage.commit():
                self._safe()
        except OSError as error:
            raise self._failed(error) from None

    def flush(self) -> None:
        """Make everything so far safe. Raises BagError."""
        try:
            if self._storage.commit(force=True):
                self._safe()
        except OSError as error:
            raise self._failed(error) from None

    def close(self, *, complete: bool = False) -> None:
        """End the bag; after a failure, with what is safe. With `complete` it says of itself that its job was done.
        Raises BagError when the disk has no room even for that, or when messages had to go to make room."""
        try:
            if self.failed is None:
                self.flush()
            lost = self._storage.close(complete=complete and self.failed is None)
            if lost:
                self._recount()
                self.mark = self._marks[-1 - lost] if lost < len(self._marks) else None
            if self._folder != self.file:
                self._write_metadata()
            if lost and self.failed is None:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise self._failed(error) from None

    def abandon(self) -> None:
        """Leave the file as it is."""
        self._storage.abandon()

    @property
    def end(self) -> int:
        return self._storage.end

    @property
    def topics(self) -> list[Topic]:
        return self._storage.topics

    @property
    def counts(self) -> dict[str, int]:
        """Messages that are safe, by topic."""
        return dict(self._safe_state[1])

    @property
    def count(self) -> int:
        return sum(self._safe_state[1].values())

    @property
    def sha256(self) -> str:
        return self._safe_state[0].hexdigest()

    def _id(self, topic: Topic) -> int:
        key = (topic.name, topic.type, topic.coding)
        if key not in self._ids:
            self._ids[key] = self._storage.add_topic(topic)
        return self._ids[key]

    def _start_counting(self) -> None:
        self._digest = hashlib.sha256()
        self._counts: dict[str, int] = {}
        self._times: tuple[int, int] | None = None

    def _recount(self) -> None:
        """From what is in the file."""
        self._start_counting()
        for record in _stored(self.file):
            self._count(record)
        self._keep_safe()

    def _count(self, record: Record) -> None:
        update(self._digest, record)
        self._counts[record.topic.name] = self._counts.get(record.topic.name, 0) + 1
        first, last = self._times or (record.time_ns, record.time_ns)
        self._times = (min(first, record.time_ns), max(last, record.time_ns))

    def _safe(self) -> None:
        self.mark = self._waiting
        self._marks.append(self.mark)
        self._keep_safe()

    def _keep_safe(self) -> None:
        self._safe_state = (self._digest.copy(), dict(self._counts), self._times)

    def _failed(self, error: OSError) -> BagError:
        self.failed = BagError(
            f"{self.path} cannot be written any further: {_reason(error)}; its {self.count} messages are readable",
            UNWRITABLE,
        )
        return self.failed

    def _write_metadata(self) -> None:
        counts, times = self._safe_state[1], self._safe_state[2] or (0, 0)
        span = {
            "duration": {"nanoseconds": times[1] - times[0]},
            "starting_time": {"nanoseconds_since_epoch": times[0]},
            "message_count": self.count,
        }
        topics = [
            {
                "topic_metadata": {
                    "name": topic.name,
                    "type": topic.type,
                    "serialization_format": topic.coding,
                    "offered_qos_profiles": load(named_qos(topic.qos)) or [],
                    "type_description_hash": topic.hash,
                },
                "message_count": counts.get(topic.name, 0),
            }
            for topic in self.topics
        ]
        about = {
            "version": 9,
            "storage_identifier": "sqlite3" if self.file.suffix == ".db3" else "mcap",
            **span,
            "topics_with_message_count": topics,
            "compression_format": "",
            "compression_mode": "",
            "relative_file_paths": [self.file.name],
            "files": [{"path": self.file.name, **span}],
            "custom_data": None,
            "ros_distro": "jazzy",
        }
        text = yaml.safe_dump({"rosbag2_bagfile_information": about}, sort_keys=False)
        part = self.path / "metadata.yaml.part"
        part.write_text(text)
        part.replace(self.path / "metadata.yaml")


def storage_file(path: Path) -> Path:
    """The file that holds the messages of an output bag."""
    return path if path.suffix in (".mcap", ".db3") else path / f"{path.name}_0.mcap"


def _stored(file: Path) -> Iterator[Record]:
    """The messages of an unfinished bag in the order of writing."""
    source = (SqliteSource if file.suffix == ".db3" else McapSource)(file, lambda problem: None)
    source.recorded_order = True
    for time_ns, topic, data in source.messages():
        yield Record(topic, time_ns, data)
    source.close()


def update(digest: Any, record: Record) -> None:
    """Take a message into a hash over topic, time and bytes."""
    digest.update(struct.pack("<Q", len(record.topic.name)) + record.topic.name.encode())
    digest.update(struct.pack("<qQ", record.time_ns, len(record.data)))
    digest.update(record.data)


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
