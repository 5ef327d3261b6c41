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


LARGEST = 1 << 30
"""At most this many bytes of a chunk, or of a compressed message, are unpacked."""


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
    if size > LARGEST:
        raise McapError(f"a chunk of {size} bytes; the largest that is read has {LARGEST}")
    if compression == "zstd":
        return unpacked(data, size, partial=partial)
    if compression == "lz4":
        import lz4.frame

        decompressor = lz4.frame.LZ4FrameDecompressor()
        found = decompressor.decompress(bytes(data), max_length=size + 1)
        if len(found) > size:
            raise McapError(f"a chunk holds more than the {size} bytes that it states")
        return found
    raise McapError(f"a chunk is compressed with '{compression}'; known are zstd and lz4")


def unpacked(data: Any, size: int, *, partial: bool = False) -> bytes:
    """What zstd frames hold, up to `size` bytes. Raises McapError when it is more, and unless `partial` when it is cut
    off; zstd's own error for damaged bytes."""
    found, rest = b"", bytes(data)
    while rest:
        decompressor = zstd.ZstdDecompressor()
        found += decompressor.decompress(rest, size + 1 - len(found))
        if len(found) > size:
            raise McapError(f"zstd data hold more than the {size} bytes that they should")
        if not decompressor.eof:
            if partial:
                break
            raise McapError("zstd data are cut off")
        rest = decompressor.unused_data
    return found


def compress(data: bytes, compression: str) -> bytes:
    return zstd.compress(data, 1) if compression == "zstd" else data
