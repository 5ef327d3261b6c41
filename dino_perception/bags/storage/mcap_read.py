"""Reads MCAP, also what is left of one: without an index, cut off, or with damaged chunks."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dino_perception.bags.storage import mcap_format as mcap
from dino_perception.bags.storage.mcap_channels import Channels
from dino_perception.bags.storage.mcap_format import McapError
from dino_perception.bags.storage.merge import merged
from dino_perception.bags.storage.problems import Problem
from dino_perception.bags.storage.topic import Topic

_JUMP_NS = 1_000_000_000
"""Recorders write a little out of order; going back further than this is the clock's doing."""
_LAST_NS = (1 << 63) - 1
"""ROS counts time in 63 bits; anything beyond is damage."""
_RUN_SIZE = 4 << 20
"""Messages outside chunks are read in runs of about this many bytes."""


@dataclass
class _Block:
    """A chunk, or a run of messages outside chunks: where it lies and which times and channels (None: unknown) it
    has."""

    start_ns: int
    end_ns: int
    offset: int
    size: int
    chunk: bool
    channels: frozenset[int] | None = None
    messages: int = 0
    index_size: int = 0
    whole: bool = True


class McapSource:
    """The messages of one MCAP file. `problem` is told what is wrong with it. Raises McapError when nothing can be
    read."""

    def __init__(self, path: Path, problem: Callable[[Problem], None]):
        self.path, self._problem = path, problem
        self._channels = Channels(path.name, problem)
        self._blocks: list[_Block] = []
        self._counts: dict[int, int] = {}
        self._last: dict[int, int] = {}
        self._back_ns = 0
        try:
            self._file = open(path, "rb", buffering=0)  # noqa: SIM115
        except OSError as error:
            raise McapError(f"{path} cannot be opened: {error.strerror}") from None
        try:
            self._size = self._file.seek(0, 2)
            if self._read(0, len(mcap.MAGIC)) != mcap.MAGIC:
                raise McapError(
                    f"{path} does not start as an MCAP file does" if self._size else f"{path} is empty (0 bytes)"
                )
            if not self._indexed():
                self._scan()
        except BaseException:
            self._file.close()
            raise
        self.recorded_order = self._back_ns > _JUMP_NS
        if self.recorded_order:
            self._problem(
                Problem(
                    "clock",
                    f"the clock of {path.name} jumps back by {self._back_ns / 1e9:.1f} s while recording; "
                    "its messages are taken in the order they were recorded in",
                )
            )

    @property
    def topics(self) -> list[Topic]:
        return [self._counted(channel) for channel in sorted(self._channels.topics)]

    @property
    def start_ns(self) -> int:
        return min((block.start_ns for block in self._blocks), default=0)

    @property
    def end_ns(self) -> int:
        return max((block.end_ns for block in self._blocks), default=0)

    def messages(
        self, names: Collection[str] | None = None, start: int | None = None, stop: int | None = None
    ) -> Iterator[tuple[int, Topic, Any]]:
        """(record time, topic, bytes) of the topics `names` with start <= time < stop, by time. A file whose clock
        jumped back is read as it was recorded."""
        topics = {
            channel: self._counted(channel)
            for channel, topic in self._channels.topics.items()
            if names is None or topic.name in names
        }
        low, high = (-1 if start is None else start), (1 << 64 if stop is None else stop)
        blocks = [
            block
            for block in self._blocks
            if block.start_ns < high
            and block.end_ns >= low
            and (block.channels is None or not block.channels.isdisjoint(topics))
        ]

        def load(block: _Block):
            found = [
                (time, (channel, data))
                for time, channel, data in self._load(block)
                if channel in topics and low <= time < high
            ]
            return found if self.recorded_order else sorted(found, key=lambda entry: entry[0])

        if self.recorded_order:
            stream = (entry for block in blocks for entry in load(block))
        else:
            stream = merged([(block.start_ns, lambda block=block: load(block)) for block in blocks])
        for time, (channel, data) in stream:
            data = self._channels.cdr(channel, data)
            if data is not None:
                yield time, topics[channel], data

    def close(self) -> None:
        self._file.close()

    def _counted(self, channel: int) -> Topic:
        return self._channels.count(channel, self._counts.get(channel, 0))

    def _read(self, at: int, size: int) -> bytes:
        pieces = []
        self._file.seek(at)
        while size > 0:
            piece = self._file.read(size)
            if not piece:
                break
            pieces.append(piece)
            size -= len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _indexed(self) -> bool:
        """Take everything from the summary. False when the file has none that says where the messages are."""
        try:
            return self._read_summary()
        except (McapError, struct.error) as error:
            self._problem(Problem("damaged", f"the index of {self.path.name} is damaged ({error})"))
            return False

    def _read_summary(self) -> bool:
        tail = self._read(max(0, self._size - mcap.FOOTER_SIZE - len(mcap.MAGIC)), mcap.FOOTER_SIZE + len(mcap.MAGIC))
        if not tail.endswith(mcap.MAGIC) or tail[:9] != mcap.PREFIX.pack(mcap.FOOTER, 20):
            self._problem(Problem("truncated", f"{self.path.name} has no end: the recording was cut off"))
            return False
        start, _, crc = struct.unpack_from("<QQI", tail, 9)
        end = self._size - len(tail)
        if not len(mcap.MAGIC) <= start <= end:
            self._problem(Problem("unindexed", f"{self.path.name} has no index"))
            return False
        summary = self._read(start, end - start)
        if crc and zlib.crc32(summary + tail[:25]) != crc:
            self._problem(Problem("damaged", f"the index of {self.path.name} is damaged"))
            return False
        statistics = None
        for opcode, body in mcap.records(summary):
            if opcode == mcap.CHUNK_INDEX:
                self._blocks.append(_indexed_chunk(mcap.Fields(body)))
            elif opcode == mcap.STATISTICS:
                statistics = mcap.Fields(body)
            else:
                self._channels.register(opcode, body)
        if statistics is not None:
            messages, _, channels, _, _, chunks, _, _, length = statistics.take("<QHIIIIQQI")
            self._counts = dict(statistics.take("<HQ") for _ in range(length // 10))
            known = all(channel in self._channels for block in self._blocks for channel in block.channels or ())
            if len(self._blocks) == chunks and known and len(self._channels) >= channels and (chunks or not messages):
                self._blocks.sort(key=lambda block: block.offset)
                self._check_clock()
                return True
        self._problem(Problem("unindexed", f"{self.path.name} has no index of its messages"))
        return False

    def _scan(self) -> None:
        """Walk over the whole file, to find what a summary would have said."""
        self._blocks, self._counts, self._last, self._back_ns = [], {}, {}, 0
        at = len(mcap.MAGIC)
        while at + mcap.PREFIX.size <= self._size:
            opcode, length = mcap.PREFIX.unpack(self._read(at, mcap.PREFIX.size))
            whole = mcap.PREFIX.size + length
            if opcode in (mcap.DATA_END, mcap.FOOTER):
                break
            if opcode == mcap.CHUNK:
                self._scan_chunk(at, min(whole, self._size - at), whole <= self._size - at)
            elif at + whole > self._size:
                break
            elif opcode == mcap.MESSAGE:
                self._scan_message(at, whole)
            elif opcode in (mcap.SCHEMA, mcap.CHANNEL):
                self._channels.register(opcode, memoryview(self._read(at, whole))[mcap.PREFIX.size :])
            at += whole

    def _scan_chunk(self, at: int, size: int, whole: bool) -> None:
        block = _Block(0, 0, at, size, chunk=True, whole=whole)
        found = self._load(block)
        if found:
            block.start_ns, block.end_ns = min(entry[0] for entry in found), max(entry[0] for entry in found)
            block.channels, block.messages = frozenset(entry[1] for entry in found), len(found)
            self._blocks.append(block)
            for channel in block.channels:
                times = np.array([time for time, own, _ in found if own == channel], np.int64)
                self._counts[channel] = self._counts.get(channel, 0) + len(times)
                self._follow(channel, times)

    def _scan_message(self, at: int, whole: int) -> None:
        _, _, channel, _, time, _ = mcap.MESSAGE_HEAD.unpack(self._read(at, mcap.MESSAGE_HEAD.size))
        if time > _LAST_NS:
            return
        self._counts[channel] = self._counts.get(channel, 0) + 1
        self._follow(channel, np.array([time], np.int64))
        last = self._blocks[-1] if self._blocks else None
        if last and not last.chunk and last.offset + last.size == at and last.size < _RUN_SIZE and time >= last.end_ns:
            last.end_ns, last.size, last.messages = time, last.size + whole, last.messages + 1
            last.channels = last.channels | {channel}
        else:
            self._blocks.append(_Block(time, time, at, whole, chunk=False, channels=frozenset([channel]), messages=1))

    def _load(self, block: _Block) -> list[tuple[int, int, memoryview]]:
        """(time, channel, bytes) of a block's messages in the file's order; none when it is damaged."""
        raw = self._read(block.offset, block.size)
        try:
            inner = self._open_chunk(raw, block) if block.chunk else raw
        except McapError as error:
            if not block.whole:
                return []
            self._problem(
                Problem(
                    "damaged",
                    f"a part of {self.path.name} with {block.messages or 'its'} messages at byte "
                    f"{block.offset} is damaged and left out ({error})",
                    block.messages,
                )
            )
            return []
        found = []
        for opcode, body in mcap.records(inner):
            if opcode == mcap.MESSAGE and len(body) >= 22:
                channel, _, time, _ = struct.unpack_from("<HIQQ", body)
                if time > _LAST_NS:
                    self._problem(Problem("damaged", f"messages of {self.path.name} have times beyond the year 2262"))
                elif channel in self._channels.topics:
                    found.append((time, channel, body[22:]))
            elif opcode in (mcap.SCHEMA, mcap.CHANNEL):
                self._channels.register(opcode, body)
        return found

    def _open_chunk(self, raw: bytes, block: _Block) -> Any:
        fields = mcap.Fields(memoryview(raw)[mcap.PREFIX.size :])
        _, _, size, crc = fields.take("<QQQI")
        compression = fields.text()
        stored = fields.take("<Q")[0]
        data = fields.rest()[:stored]
        try:
            inner = mcap.decompress(data, compression, size, partial=not block.whole)
        except Exception as error:  # zstd and lz4 have error types of their own
            raise McapError(str(error)) from None
        if block.whole and (len(inner) != size or (crc and zlib.crc32(inner) != crc)):
            raise McapError("its checksum is wrong")
        return inner

    def _check_clock(self) -> None:
        """From the message indexes, which name the times of a channel's messages in the order of writing."""
        for block in self._blocks:
            for opcode, body in mcap.records(self._read(block.offset + block.size, block.index_size)):
                if opcode == mcap.MESSAGE_INDEX:
                    if len(body) < 6 or len(body) % 16 != 6:
                        raise McapError("a message index is damaged")
                    (channel,) = struct.unpack_from("<H", body)
                    entries = np.frombuffer(body[6:], "<u8").reshape(-1, 2)
                    entries = entries[entries[:, 0] <= _LAST_NS]
                    self._follow(channel, entries[np.argsort(entries[:, 1], kind="stable"), 0].astype(np.int64))

    def _follow(self, channel: int, times: np.ndarray) -> None:
        """Note how far a channel's times (int64, in the order of writing) go back."""
        if len(times):
            drops = -np.diff(times, prepend=self._last.get(channel, times[0]))
            self._back_ns = max(self._back_ns, int(drops.max()))
            self._last[channel] = int(times[-1])


def _indexed_chunk(fields: mcap.Fields) -> _Block:
    start, end, offset, size, length = fields.take("<QQQQI")
    offsets = sorted((offset, channel) for channel, offset in (fields.take("<HQ") for _ in range(length // 10)))
    index_length = fields.take("<Q")[0]
    ends = [at for at, _ in offsets[1:]] + [offset + size + index_length]
    counts = sum(max(0, end_ - at - 15) // 16 for (at, _), end_ in zip(offsets, ends))
    channels = frozenset(channel for _, channel in offsets) or None
    return _Block(start, end, offset, size, chunk=True, channels=channels, messages=counts, index_size=index_length)
