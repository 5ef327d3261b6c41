"""The end of an MCAP file, from which readers find everything: what it says of chunks and how much there is."""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from dino_perception.bags.storage import mcap_format as mcap


@dataclass
class Chunk:
    """What the chunk index says of one chunk, and how many messages of each channel it holds."""

    start_ns: int
    end_ns: int
    offset: int
    length: int
    index_offsets: dict[int, int]
    index_length: int
    compression: str
    compressed: int
    uncompressed: int
    counts: dict[int, int]

    @property
    def end(self) -> int:
        return self.offset + self.length + self.index_length


def chunk_index(chunk: Chunk) -> bytes:
    """The record of one chunk."""
    offsets = b"".join(struct.pack("<HQ", channel, offset) for channel, offset in chunk.index_offsets.items())
    return mcap.record(
        mcap.CHUNK_INDEX,
        struct.pack("<QQQQI", chunk.start_ns, chunk.end_ns, chunk.offset, chunk.length, len(offsets)),
        offsets,
        struct.pack("<Q", chunk.index_length),
        mcap.text(chunk.compression),
        struct.pack("<QQ", chunk.compressed, chunk.uncompressed),
    )


def read_chunk(fd: int, at: int, whole: int) -> Chunk:
    """A chunk of `whole` bytes at byte `at` of an open file, its indexes not yet known."""
    fields = mcap.Fields(os.pread(fd, 64, at + mcap.PREFIX.size))
    start_ns, end_ns, uncompressed, _ = fields.take("<QQQI")
    compression = fields.text()
    return Chunk(start_ns, end_ns, at, whole, {}, 0, compression, fields.take("<Q")[0], uncompressed, {})


def statistics(chunks: Sequence[Chunk], schemas: int, channels: int, metadata: int) -> bytes:
    """The record that counts everything."""
    counts: dict[int, int] = {}
    for chunk in chunks:
        for channel, count in chunk.counts.items():
            counts[channel] = counts.get(channel, 0) + count
    start = min((chunk.start_ns for chunk in chunks), default=0)
    end = max((chunk.end_ns for chunk in chunks), default=0)
    pairs = b"".join(struct.pack("<HQ", channel, count) for channel, count in sorted(counts.items()))
    numbers = (sum(counts.values()), schemas, channels, 0, metadata, len(chunks), start, end, len(pairs))
    return mcap.record(mcap.STATISTICS, struct.pack("<QHIIIIQQI", *numbers), pairs)


def groups_with_offsets(start: int, groups: Sequence[tuple[int, Sequence[bytes]]]) -> tuple[bytes, bytes]:
    """(summary, summary offsets) of (opcode, records of that opcode) for a summary that begins at byte `start`."""
    summary, offsets = b"", b""
    for opcode, entries in groups:
        if entries:
            group = b"".join(entries)
            offsets += mcap.record(mcap.SUMMARY_OFFSET, struct.pack("<BQQ", opcode, start + len(summary), len(group)))
            summary += group
    return summary, offsets
