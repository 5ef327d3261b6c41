"""Reads rosbag2's sqlite3 storage, also a database that is damaged or was cut off."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

from dino_perception.bags.storage.problems import Problem
from dino_perception.bags.storage.topic import Topic, full_type, named_qos

_JUMP_NS = 1_000_000_000
"""Recorders write a little out of order; a topic that goes back further than this was recorded by a clock that
jumped."""
_GAP = 2000
"""This many missing rows, one after another, are taken for the end of what a damaged database still gives."""


class SqliteError(ValueError):
    """A file that cannot be read as a rosbag2 database; the message says why."""


class SqliteSource:
    """The messages of one .db3 file. `problem` is told what is wrong with it. Raises SqliteError when nothing can be
    read."""

    def __init__(self, path: Path, problem: Callable[[Problem], None]):
        self.path, self._problem = path, problem
        self._damaged = False
        self.recorded_order = False
        self.start_ns = self.end_ns = 0
        if not path.stat().st_size:
            raise SqliteError(f"{path} is empty (0 bytes)")
        try:
            self._base = _opened(path)
            self._topics = self._read_topics()
        except sqlite3.DatabaseError as error:
            raise SqliteError(f"{path} is no rosbag2 database, or its beginning is damaged ({error})") from None
        try:
            self._survey(self._base.execute("SELECT topic_id, timestamp FROM messages ORDER BY id"))
        except sqlite3.DatabaseError as error:
            self._found_damage(error)
            self._survey((number, time) for number, time, _, _ in self._survivors())

    @property
    def topics(self) -> list[Topic]:
        return list(self._topics.values())

    def messages(
        self, names: Collection[str] | None = None, start: int | None = None, stop: int | None = None
    ) -> Iterator[tuple[int, Topic, Any]]:
        """(record time, topic, bytes) of the topics `names` with start <= time < stop, by time. A file whose clock
        jumped back, or that is damaged, is read as it was recorded."""
        topics = {number: topic for number, topic in self._topics.items() if names is None or topic.name in names}
        low, high = (-1 << 63 if start is None else start), ((1 << 63) - 1 if stop is None else stop)
        for number, time, data in self._rows(topics, low, high):
            if not isinstance(time, int) or not isinstance(data, bytes):
                self._problem(Problem("damaged", f"messages of {self.path.name} have no time or no bytes"))
            elif number in topics and low <= time < high:
                yield time, topics[number], data

    def close(self) -> None:
        self._base.close()

    def _rows(self, topics: Collection[int], low: int, high: int) -> Iterator[tuple[int, int, bytes]]:
        if self._damaged:
            yield from self._rows_one_by_one()
            return
        order = "id" if self.recorded_order else "timestamp, id"
        last = None
        try:
            for row in self._base.execute(
                f"SELECT topic_id, timestamp, data, id FROM messages WHERE topic_id IN ({','.join('?' * len(topics))}) "
                f"AND timestamp >= ? AND timestamp < ? ORDER BY {order}",
                (*topics, low, high),
            ):
                last = row
                yield row[:3]
        except sqlite3.DatabaseError as error:
            self._found_damage(error)
            for number, time, data, row_id in self._survivors():
                if last is None or (time, row_id) > (last[1], last[3]):
                    yield number, time, data

    def _rows_one_by_one(self) -> Iterator[tuple[int, int, bytes]]:
        for number, time, data, _ in self._survivors():
            yield number, time, data

    def _survivors(self) -> Iterator[tuple[int, int, bytes, int]]:
        """Every row whose own pages can be read, in the order of recording."""
        row_id, missing = 0, 0
        while missing < _GAP:
            row_id += 1
            try:
                row = self._base.execute(
                    "SELECT topic_id, timestamp, data, id FROM messages WHERE id = ?", (row_id,)
                ).fetchone()
            except sqlite3.DatabaseError:
                row = None
            missing = missing + 1 if row is None else 0
            if row is not None and isinstance(row[2], bytes):
                yield row

    def _found_damage(self, error: Exception) -> None:
        self._damaged = True
        # A database knows how many pages it should have: fewer means that its end is missing.
        pages = self._base.execute("PRAGMA page_size").fetchone()[0]
        with open(self.path, "rb") as file:
            file.seek(28)
            wanted = int.from_bytes(file.read(4), "big") * pages
        size = self.path.stat().st_size
        if size < wanted:
            self._problem(Problem("truncated", f"{self.path.name} is cut off: {size} of {wanted} bytes are there"))
        else:
            self._problem(
                Problem(
                    "damaged", f"{self.path.name} is damaged ({error}); the messages that can still be read are taken"
                )
            )

    def _read_topics(self) -> dict[int, Topic]:
        columns = {row[1] for row in self._base.execute("PRAGMA table_info(topics)")}
        if not {"id", "name", "type"} <= columns:
            raise SqliteError(f"{self.path} is a database, but not one of rosbag2: it has no table of topics")
        optional = [
            name if name in columns else "''"
            for name in ("serialization_format", "offered_qos_profiles", "type_description_hash")
        ]
        texts: dict[str, tuple[str, str]] = {}
        if self._base.execute("SELECT 1 FROM sqlite_master WHERE name = 'message_definitions'").fetchone():
            rows = self._base.execute(
                "SELECT topic_type, encoding, encoded_message_definition FROM message_definitions"
            )
            texts = {row[0]: row[1:] for row in rows if all(isinstance(value, str) for value in row)}
        topics = {}
        for number, name, kind, coding, qos, digest in self._base.execute(
            f"SELECT id, name, type, {', '.join(optional)} FROM topics ORDER BY id"
        ):
            if not all(isinstance(value, str) for value in (name, kind, coding, qos, digest or "")):
                self._problem(Problem("damaged", f"a topic of {self.path.name} is no text and is left out", number))
                continue
            encoding, text = texts.get(kind, ("", ""))
            if coding not in ("", "cdr"):
                text = text.encode().decode("latin-1")
            kind = full_type(kind) if coding in ("", "cdr") else kind
            topics[number] = Topic(
                name, kind, text, encoding if text else "", digest or "", named_qos(qos), 0, coding or "cdr"
            )
        return topics

    def _survey(self, rows: Iterable[tuple[int, int]]) -> None:
        """Counts, the first and the last time, and whether a topic goes back in time. The columns asked for stand
        before the data, so that no message is read for it."""
        reached: dict[int, int] = {}
        counts: dict[int, int] = {}
        back = 0
        times: list[int] = []
        for number, time in rows:
            if not isinstance(time, int) or number not in self._topics:
                continue
            back = max(back, reached.get(number, time) - time)
            reached[number] = time
            counts[number] = counts.get(number, 0) + 1
            times = [min(times[0], time), max(times[1], time)] if times else [time, time]
        self.start_ns, self.end_ns = times or (0, 0)
        for number, topic in list(self._topics.items()):
            self._topics[number] = Topic(**{**vars(topic), "count": counts.get(number, 0)})
        self.recorded_order = back > _JUMP_NS
        if self.recorded_order:
            self._problem(
                Problem(
                    "clock",
                    f"the clock of {self.path.name} jumps back by {back / 1e9:.1f} s while recording; "
                    "its messages are taken in the order they were recorded in",
                )
            )


def _opened(path: Path) -> sqlite3.Connection:
    """Read-only, with a write-ahead log that a recorder may have left; where the folder cannot be written to, as it
    is."""
    quoted = str(path.resolve()).replace("?", "%3f").replace("#", "%23")
    for mode in ("mode=ro", "immutable=1"):
        try:
            base = sqlite3.connect(f"file:{quoted}?{mode}", uri=True, check_same_thread=False)
            base.text_factory = lambda octets: octets.decode(errors="replace")
            base.execute("PRAGMA writable_schema = ON")  # or sqlite refuses a file with fewer pages than it should have
            base.execute("SELECT count(*) FROM sqlite_master").fetchone()
            return base
        except sqlite3.OperationalError:
            if mode == "immutable=1":
                raise
    raise AssertionError
