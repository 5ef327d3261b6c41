"""The MCAP container: its records as bytes (https://mcap.dev/spec), for the reader and the writer."""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator, Mapping
from typing import Any

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

MAGIC = b"\x89MCAP0\r\n"
HEADER, FOOTER, SCHEMA, CHANNEL, MESSAGE, CHUNK, MESSAGE_INDEX, CHUNK_INDEX = range(1, 9)
STATISTICS, METADATA, METADATA_INDEX, SUMMARY_OFFSET, DATA_END = 0x0B, 0x0C, 0x0D, 0x0E, 0x0F

PREFIX = struct.Struct("<BQ")
"""Opcode and length of what follows."""
MESSAGE_HEAD = struct.Struct("<BQHIQQ")
"""Opcode, length, channel id, sequence, log time, publish time; the message's bytes follow."""
CHUNK_HEAD = struct.Struct("<QQQI")
"""Start time, end time, uncompressed size, CRC-32 of the uncompressed records."""
FOOTER_SIZE = PREFIX.size + 20


class McapError(ValueError):
    """Bytes that are not the MCAP they should be; the message says what and where."""


def record(opcode: int, *parts: bytes) -> bytes:
    body = b"".join(parts)
    return PREFIX.pack(opcode, len(body)) + body


def text(value: str) -> bytes:
    encoded = value.encode()
    return struct.pack("<I", len(encoded)) + encoded


def text_map(values: Mapping[str, str]) -> bytes:
    pairs = b"".join(text(key) + text(value) for key, value in values.items())
    return struct.pack("<I", len(pairs)) + pairs


class Fields:
    """Reads the fields of a record's body one after another. Raises McapError when the body ends too early."""

    def __init__(self, body: Any):
        self._body, self._at = memoryview(body), 0

    def take(self, layout: str) -> tuple:
        size = struct.calcsize(layout)
        return struct.unpack(layout, self.take_bytes(size))

    def take_bytes(self, size: int) -> memoryview:
        if self._at + size > len(self._body):
            raise McapError(f"a record of {len(self._body)} bytes ends within a field")
        piece = self._body[self._at : self._at + size]
        self._at += size
        return piece

    def text(self) -> str:
        return bytes(self.take_bytes(self.take("<I")[0])).decode(errors="replace")

    def block(self) -> memoryview:
        return self.take_bytes(self.take("<I")[0])

    def rest(self) -> memoryview:
        return self._body[self._at :]


def text_pairs(block: memoryview) -> dict[str, str]:
    fields, values = Fields(block), {}
    while len(fields.rest()):
        key = fields.text()
        values[key] = fields.text()
    return values


def records(buffer: Any) -> Iterator[tuple[int, memoryview]]:
    """(opcode, body) of every record that is whole in a buffer."""
    view, at = memoryview(buffer), 0
    while at + PREFIX.size <= len(view):
        opcode, length = PREFIX.unpack_from(view, at)
        end = at + PREFIX.size + length
        if end > len(view):
            return
        yield opcode, view[at + PREFIX.size : end]
        at = end


def decompress(data: Any, compression: str, size: int, *, partial: bool = False) -> Any:
    """The records of a chunk; with `partial`, as much as a cut-off chunk still gives."""
    if compression == "":
        return data
    if compression == "zstd":
        return zstd.ZstdDecompressor().decompress(data) if partial else zstd.decompress(data)
    if compression == "lz4":
        import lz4.frame

        return lz4.frame.LZ4FrameDecompressor().decompress(data) if partial else lz4.frame.decompress(data)
    raise McapError(f"a chunk is compressed with '{compression}'; known are zstd and lz4")


def compress(data: bytes, compression: str) -> bytes:
    return zstd.compress(data, 1) if compression == "zstd" else data
