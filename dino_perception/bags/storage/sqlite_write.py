"""Writes rosbag2's sqlite3 storage (schema version 4, that of Iron and later), readable whenever the process ends."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dino_perception.bags.storage import origin
from dino_perception.bags.storage.problems import ChangedError
from dino_perception.bags.storage.topic import Topic

COMMIT_SIZE = 8 << 20
"""A transaction is closed at the end of the group that makes it this large."""

_TABLES = """
CREATE TABLE schema(schema_version INTEGER PRIMARY KEY, ros_distro TEXT NOT NULL);
CREATE TABLE metadata(id INTEGER PRIMARY KEY, metadata_version INTEGER NOT NULL, metadata TEXT NOT NULL);
CREATE TABLE topics(id INTEGER PRIMARY KEY, name TEXT NOT NULL, type TEXT NOT NULL, serialization_format TEXT NOT NULL,
                    offered_qos_profiles TEXT NOT NULL, type_description_hash TEXT NOT NULL);
CREATE TABLE message_definitions(id INTEGER PRIMARY KEY, topic_type TEXT NOT NULL, encoding TEXT NOT NULL,
                                 encoded_message_definition TEXT NOT NULL, type_description_hash TEXT NOT NULL);
CREATE TABLE messages(id INTEGER PRIMARY KEY, topic_id INTEGER NOT NULL, timestamp INTEGER NOT NULL,
                      data BLOB NOT NULL);
CREATE INDEX timestamp_idx ON messages (timestamp ASC);
INSERT INTO schema(schema_version, ros_distro) VALUES (4, 'jazzy');
"""


class SqliteWriter:
    """A new database at `path`; with `keep` = (number of messages at a checkpoint, the topics registered until then),
    the existing one continued behind it. Same use as `McapWriter`; a full disk is an OSError here too."""

    def __init__(
        self, path: str | Path, *, keep: tuple[int, list[Topic]] | None = None, job: Mapping[str, str] | None = None
    ):
        self.path = Path(path)
        if keep is None and self.path.exists():
            raise FileExistsError(f"{path} exists")
        self._base = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False)
        self._topics: list[Topic] = []
        self._size = 0
        try:
            self._base.execute("PRAGMA journal_mode = TRUNCATE")
            self._base.execute("PRAGMA synchronous = NORMAL")
            if keep is None:
                self._base.executescript(f"BEGIN;{_TABLES}{_job_table(job) if job else ''}COMMIT;")
                self._rows = 0
            else:
                self._rows, self._topics = keep[0], list(keep[1])
                found = self._base.execute("SELECT count(*) FROM messages WHERE id <= ?", (self._rows,)).fetchone()[0]
                if found != self._rows:
                    raise ChangedError(f"{self.path} holds {found} of the checkpoint's {self._rows} messages")
                self._base.execute("DELETE FROM messages WHERE id > ?", (self._rows,))
                self._base.execute("DELETE FROM topics WHERE id > ?", (len(self._topics),))
                if self._says_its_job():
                    self._base.execute(f"DELETE FROM {origin.TABLE} WHERE name = ?", (origin.COMPLETE,))
        except sqlite3.Error as error:
            self._base.close()
            raise self._full(error) from None
        except ChangedError:
            self._base.close()
            raise
        self._end = self._rows
        self._noted = self._safe_topics = len(self._topics)
        self._open_group = False

    def add_topic(self, topic: Topic) -> int:
        """The id under which messages of this topic are written."""
        self._topics.append(topic)
        return len(self._topics)

    def write(self, channel: int, time_ns: int, data: Any) -> None:
        """Add a message. Raises OSError, after which everything since the last `commit` that returned true is gone."""
        try:
            self._begin()
            self._rows += 1
            self._base.execute("INSERT INTO messages VALUES (?, ?, ?, ?)", (self._rows, channel, time_ns, data))
        except sqlite3.Error as error:
            raise self._undone(error) from None
        self._size += len(data)

    def commit(self, *, force: bool = False) -> bool:
        """The messages so far belong together. Whether they, and all before, are now in the file."""
        if not self._open_group or (self._size < COMMIT_SIZE and not force):
            return False
        try:
            self._base.execute("COMMIT")
        except sqlite3.Error as error:
            raise self._undone(error) from None
        self._open_group, self._size, self._end, self._safe_topics = False, 0, self._rows, self._noted
        return True

    @property
    def end(self) -> int:
        """How many messages are safe in the file: up to here it can be continued."""
        return self._end

    @property
    def topics(self) -> list[Topic]:
        return list(self._topics)

    def close(self, *, complete: bool = False) -> int:
        """Close. Messages since the last `commit` that returned true are dropped. Returns 0: nothing else is dropped.
        The database says that its job is `complete` when that is so. Raises OSError when the disk has no room for
        that."""
        try:
            if self._open_group:
                self._base.execute("ROLLBACK")
            if complete and self._says_its_job():
                self._base.execute(f"INSERT OR REPLACE INTO {origin.TABLE} VALUES (?, '')", (origin.COMPLETE,))
        except sqlite3.Error as error:
            raise self._full(error) from None
        finally:
            self._base.close()
            self._remove_journal()
        return 0

    def abandon(self) -> None:
        self._base.close()

    def _remove_journal(self) -> None:
        """A journal that was emptied is left over and means nothing."""
        journal = Path(f"{self.path}-journal")
        if journal.is_file() and not journal.stat().st_size:
            journal.unlink()

    def _says_its_job(self) -> bool:
        return bool(self._base.execute("SELECT 1 FROM sqlite_master WHERE name = ?", (origin.TABLE,)).fetchone())

    def _begin(self) -> None:
        if not self._open_group:
            self._base.execute("BEGIN")
            self._open_group = True
        # Topics enter with the first message after them, so that they are rolled back with it.
        while self._noted < len(self._topics):
            self._noted += 1
            self._insert_topic(self._noted, self._topics[self._noted - 1])

    def _insert_topic(self, number: int, topic: Topic) -> None:
        self._base.execute(
            "INSERT INTO topics VALUES (?, ?, ?, ?, ?, ?)",
            (number, topic.name, topic.type, topic.coding, topic.qos, topic.hash),
        )
        known = self._base.execute("SELECT 1 FROM message_definitions WHERE topic_type = ?", (topic.type,)).fetchone()
        try:
            text = topic.definition_bytes.decode()
        except UnicodeDecodeError:  # protobuf's descriptors, for which rosbag2's tables have no place
            return
        if text and not known:
            self._base.execute(
                "INSERT INTO message_definitions (topic_type, encoding, encoded_message_definition, "
                "type_description_hash) VALUES (?, ?, ?, ?)",
                (topic.type, topic.encoding, text, topic.hash),
            )

    def _undone(self, error: sqlite3.Error) -> OSError:
        try:
            self._base.execute("ROLLBACK")
        except sqlite3.Error:
            pass  # sqlite rolls back by itself when the disk is full
        self._open_group, self._size, self._rows, self._noted = False, 0, self._end, self._safe_topics
        return self._full(error)

    def _full(self, error: sqlite3.Error) -> OSError:
        return OSError(28 if "full" in str(error) else 5, str(error), str(self.path))


def _job_table(job: Mapping[str, str]) -> str:
    quoted = json.dumps(dict(job)).replace("'", "''")
    return (
        f"CREATE TABLE {origin.TABLE}(name TEXT PRIMARY KEY, value TEXT NOT NULL);"
        f"INSERT INTO {origin.TABLE} VALUES ('{origin.JOB}', '{quoted}');"
    )
