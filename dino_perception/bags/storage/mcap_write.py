"""Writes MCAP so that what is on the disk is readable whenever the process ends, however it ends.

Messages gather in a chunk; a chunk goes to the disk as a whole, between two groups of messages that belong together.
A file that was cut off after any byte still holds every chunk before, and can be continued from there.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dino_perception
from dino_perception.bags.storage import mcap_format as mcap
from dino_perception.bags.storage import origin
from dino_perception.bags.storage.mcap_summary import Chunk, chunk_index, groups_with_offsets, read_chunk, statistics
from dino_perception.bags.storage.problems import ChangedError
from dino_perception.bags.storage.topic import Topic

CHUNK_SIZE = 2 << 20
"""A chunk is closed at the end of the group that makes it this large; readers load a chunk as a whole."""
_VECTORS = 512  # buffers a writev call; the system's limit is 1024


class McapWriter:
    """A new file at `path`; with `keep` = (byte offset of a checkpoint, the topics registered until then), the existing
    file continued behind it. `job` is what the file says of its origin (see `origin`). Raises OSError as the system
    does, ChangedError when the file cannot be continued."""

    def __init__(
        self,
        path: str | Path,
        *,
        compression: str = "",
        keep: tuple[int, list[Topic]] | None = None,
        job: Mapping[str, str] | None = None,
    ):
        self.path, self.compression = Path(path), compression
        self._topics: list[Topic] = []
        self._schemas: dict[tuple[str, str], tuple[int, Topic]] = {}  # by type and coding
        self._chunks: list[Chunk] = []
        if keep is None:
            self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
            self._end = 0
            library = f"dino_perception {dino_perception.__version__}"
            head = mcap.record(mcap.HEADER, mcap.text("ros2"), mcap.text(library))
            notes = origin.metadata_record(origin.JOB, job) if job else b""
            try:
                self._append([mcap.MAGIC, head, notes])
            except OSError:  # a full disk: no beginning of a file is left behind
                os.close(self._fd)
                os.unlink(self.path)
                raise
            self._notes = [(origin.JOB, self._end - len(notes), len(notes))] if job else []
        else:
            self._fd = os.open(self.path, os.O_RDWR)
            try:
                self._continue(*keep)
            except (struct.error, IndexError, mcap.McapError) as error:
                os.close(self._fd)
                raise ChangedError(
                    f"{self.path} is no file that was left off ({error}); it was changed since"
                ) from None
            except BaseException:
                os.close(self._fd)
                raise
        self._new_chunk()

    def add_topic(self, topic: Topic) -> int:
        """The id under which messages of this topic are written."""
        key = _schema_of(topic)
        if key and key not in self._schemas:
            self._schemas[key] = (len(self._schemas) + 1, topic)
            self._put(self._schema_record(key))
        self._topics.append(topic)
        self._put(self._channel_record(len(self._topics)))
        return len(self._topics)

    def write(self, channel: int, time_ns: int, data: Any) -> None:
        """Add a message; `data` (any buffer) must not change until the next `commit`."""
        size = len(data)
        self._index.setdefault(channel, []).append((time_ns, self._size))
        self._put(mcap.MESSAGE_HEAD.pack(mcap.MESSAGE, 22 + size, channel, 0, time_ns, time_ns))
        self._put(data)

    def commit(self, *, force: bool = False) -> bool:
        """The messages so far belong together. Whether they, and all before, are now in the file: a chunk goes to the
        disk when it is large enough or with `force`. After an OSError the file is as it was before the chunk."""
        if not self._index or (self._size < CHUNK_SIZE and not force):
            return False
        start = self._end
        try:
            self._write_chunk()
        except OSError:
            os.ftruncate(self._fd, start)
            self._end = start
            raise
        self._new_chunk()
        return True

    @property
    def end(self) -> int:
        """The byte offset behind the last chunk: up to here the file can be continued."""
        return self._end

    @property
    def topics(self) -> list[Topic]:
        """The topics in the order of their ids."""
        return list(self._topics)

    def close(self, *, complete: bool = False) -> int:
        """Write the summary, without which only readers with recovery open the file. Messages since the last written
        chunk are dropped. Returns how many chunks had to go as well, because a full disk left no room for the summary.
        The file says that its job is `complete` when that is so and nothing had to go."""
        dropped = 0
        while True:
            try:
                self._append([self._ending(complete and bool(self._notes) and not dropped)])
                break
            except OSError:
                if not self._chunks:
                    os.close(self._fd)
                    raise
                os.ftruncate(self._fd, self._chunks.pop().offset)
                self._end = os.lseek(self._fd, 0, os.SEEK_END)
                dropped += 1
        os.close(self._fd)
        return dropped

    def abandon(self) -> None:
        """Close the file as it is, without a summary."""
        os.close(self._fd)

    def _new_chunk(self) -> None:
        self._pieces: list[Any] = []
        self._size = 0
        self._index: dict[int, list[tuple[int, int]]] = {}

    def _put(self, piece: Any) -> None:
        self._pieces.append(piece)
        self._size += len(piece)

    def _write_chunk(self) -> None:
        times = [time for entries in self._index.values() for time, _ in entries]
        start_ns, end_ns = min(times), max(times)
        crc = 0
        for piece in self._pieces:
            crc = zlib.crc32(piece, crc)
        stored = [mcap.compress(b"".join(self._pieces), self.compression)] if self.compression else self._pieces
        size = sum(map(len, stored))
        head = (
            mcap.CHUNK_HEAD.pack(start_ns, end_ns, self._size, crc)
            + mcap.text(self.compression)
            + struct.pack("<Q", size)
        )
        offset = self._end
        indexes, at = [], offset + mcap.PREFIX.size + len(head) + size
        chunk = Chunk(start_ns, end_ns, offset, at - offset, {}, 0, self.compression, size, self._size, {})
        for channel, entries in self._index.items():
            flat = [value for entry in entries for value in entry]
            index = mcap.record(mcap.MESSAGE_INDEX, struct.pack(f"<HI{len(flat)}Q", channel, 16 * len(entries), *flat))
            chunk.index_offsets[channel], chunk.counts[channel] = at + chunk.index_length, len(entries)
            chunk.index_length += len(index)
            indexes.append(index)
        self._append([mcap.PREFIX.pack(mcap.CHUNK, len(head) + size) + head, *stored, *indexes])
        self._chunks.append(chunk)

    def _append(self, pieces: list[Any]) -> None:
        """Write all of it at the end, whatever the system takes at a time."""
        os.lseek(self._fd, self._end, os.SEEK_SET)
        todo = [memoryview(piece).cast("B") for piece in pieces if len(piece)]
        first = 0
        while first < len(todo):
            written = os.writev(self._fd, todo[first : first + _VECTORS])
            self._end += written
            while written:
                if written < len(todo[first]):
                    todo[first] = todo[first][written:]
                    break
                written -= len(todo[first])
                first += 1

    def _schema_record(self, key: tuple[str, str]) -> bytes:
        number, topic = self._schemas[key]
        definition = topic.definition_bytes
        return mcap.record(
            mcap.SCHEMA,
            struct.pack("<H", number),
            mcap.text(topic.type),
            mcap.text(topic.encoding),
            struct.pack("<I", len(definition)),
            definition,
        )

    def _channel_record(self, number: int) -> bytes:
        topic = self._topics[number - 1]
        notes = {"offered_qos_profiles": topic.qos, "topic_type_hash": topic.hash}
        return mcap.record(
            mcap.CHANNEL,
            struct.pack("<HH", number, self._schemas[_schema_of(topic)][0] if _schema_of(topic) else 0),
            mcap.text(topic.name),
            mcap.text(topic.coding),
            mcap.text_map({key: value for key, value in notes.items() if value}),
        )

    def _ending(self, complete: bool) -> bytes:
        """The record that the job is complete, data end, summary, summary offsets, footer and magic."""
        said = origin.metadata_record(origin.COMPLETE, {}) if complete else b""
        notes = self._notes + ([(origin.COMPLETE, self._end, len(said))] if complete else [])
        data_end = said + mcap.record(mcap.DATA_END, struct.pack("<I", 0))
        start = self._end + len(data_end)
        counts = (len(self._schemas), len(self._topics), len(notes))
        summary, offsets = groups_with_offsets(
            start,
            [
                (mcap.SCHEMA, [self._schema_record(name) for name in self._schemas]),
                (mcap.CHANNEL, [self._channel_record(number + 1) for number in range(len(self._topics))]),
                (mcap.STATISTICS, [statistics(self._chunks, *counts)]),
                (mcap.CHUNK_INDEX, [chunk_index(chunk) for chunk in self._chunks]),
                (mcap.METADATA_INDEX, [origin.metadata_index(*note) for note in notes]),
            ],
        )
        body = summary + offsets
        foot = mcap.PREFIX.pack(mcap.FOOTER, 20) + struct.pack("<QQ", start, start + len(summary))
        return data_end + body + foot + struct.pack("<I", zlib.crc32(body + foot)) + mcap.MAGIC

    def _continue(self, end: int, topics: list[Topic]) -> None:
        size = os.fstat(self._fd).st_size
        if size < end:
            raise ChangedError(
                f"{self.path} has {size} bytes, but the checkpoint was taken at {end}; it was changed since"
            )
        at = len(mcap.MAGIC)
        self._notes = []
        while at < end:
            opcode, length = mcap.PREFIX.unpack(os.pread(self._fd, mcap.PREFIX.size, at))
            whole = mcap.PREFIX.size + length
            if opcode == mcap.METADATA:
                self._notes.append((origin.JOB, at, whole))
            elif opcode == mcap.CHUNK:
                self._chunks.append(read_chunk(self._fd, at, whole))
            elif opcode == mcap.MESSAGE_INDEX:
                channel, size = struct.unpack("<HI", os.pread(self._fd, 6, at + mcap.PREFIX.size))
                chunk = self._chunks[-1]
                chunk.index_offsets[channel], chunk.counts[channel] = at, size // 16
                chunk.index_length += whole
            at += whole
        if at != end:
            raise ChangedError(
                f"{self.path} has no record that ends at the checkpoint's {end} bytes; it was changed since"
            )
        os.ftruncate(self._fd, end)
        self._end = end
        self._topics = list(topics)
        for topic in topics:
            if key := _schema_of(topic):
                self._schemas.setdefault(key, (len(self._schemas) + 1, topic))


def _schema_of(topic: Topic) -> tuple[str, str] | None:
    """What tells schemas apart; None for a topic without any."""
    return (topic.type, topic.coding) if topic.type or topic.definition or topic.coding == "cdr" else None
