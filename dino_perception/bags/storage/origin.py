"""Which job made a bag and whether it is complete: what the bag says of itself.

A bag of `replay` says at its start what was to be done, and at its end that it was done. So an output is recognised
even without the checkpoint beside it, and is never taken for a recording, nor a recording for an output.
"""

from __future__ import annotations

import json
import os
import sqlite3
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dino_perception.bags.storage import mcap_format as mcap

JOB, COMPLETE = "dino_perception job", "dino_perception complete"
"""Names of the metadata records in MCAP; in sqlite3 the rows of a table of this package's own."""
TABLE = "dino_perception"
_LONGEST = 1 << 20
"""No job takes more bytes than this."""


@dataclass(frozen=True)
class Origin:
    """The job by its parts (name -> a hash of what it was), and whether it was done to the end."""

    job: Mapping[str, str]
    complete: bool


def origin(file: Path) -> Origin | None:
    """What a bag file says of itself; None for a file that no job of this package made, or that cannot be read."""
    try:
        return _of_sqlite(file) if file.suffix == ".db3" else _of_mcap(file)
    except (OSError, sqlite3.Error, mcap.McapError, struct.error, ValueError):
        return None


def metadata_record(name: str, values: Mapping[str, str]) -> bytes:
    """An MCAP metadata record."""
    return mcap.record(mcap.METADATA, mcap.text(name), mcap.text_map(values))


def metadata_index(name: str, offset: int, length: int) -> bytes:
    """What an MCAP summary says of a metadata record."""
    return mcap.record(mcap.METADATA_INDEX, struct.pack("<QQ", offset, length), mcap.text(name))


def _of_mcap(path: Path) -> Origin | None:
    with open(path, "rb") as file:
        if file.read(len(mcap.MAGIC)) != mcap.MAGIC:
            return None
        opcode, _ = _next(file)
        if opcode != mcap.HEADER:
            return None
        opcode, body = _next(file)
        fields = mcap.Fields(body)
        if opcode != mcap.METADATA or fields.text() != JOB:
            return None
        return Origin(mcap.text_pairs(fields.block()), _ends_complete(file))


def _next(file) -> tuple[int, bytes]:
    opcode, length = mcap.PREFIX.unpack(file.read(mcap.PREFIX.size))
    if length > _LONGEST:
        raise mcap.McapError(f"a record of {length} bytes at the start")
    return opcode, file.read(length)


def _ends_complete(file) -> bool:
    """Whether the summary is whole and lists the record that says so."""
    size = file.seek(0, os.SEEK_END)
    foot = mcap.FOOTER_SIZE + len(mcap.MAGIC)
    file.seek(max(0, size - foot))
    tail = file.read(foot)
    if not tail.endswith(mcap.MAGIC) or tail[: mcap.PREFIX.size] != mcap.PREFIX.pack(mcap.FOOTER, 20):
        return False
    start, _, crc = struct.unpack_from("<QQI", tail, mcap.PREFIX.size)
    if not len(mcap.MAGIC) <= start <= size - foot:
        return False
    file.seek(start)
    summary = file.read(size - foot - start)
    if zlib.crc32(summary + tail[: mcap.PREFIX.size + 16]) != crc:
        return False
    for opcode, body in mcap.records(summary):
        if opcode == mcap.METADATA_INDEX:
            fields = mcap.Fields(body)
            fields.take("<QQ")
            if fields.text() == COMPLETE:
                return True
    return False


def _of_sqlite(path: Path) -> Origin | None:
    quoted = str(path.resolve()).replace("%", "%25").replace("?", "%3f").replace("#", "%23")
    base = sqlite3.connect(f"file:{quoted}?mode=ro", uri=True)
    try:
        rows = dict(base.execute(f"SELECT name, value FROM {TABLE}"))
    finally:
        base.close()
    if not isinstance(rows.get(JOB), str):
        return None
    job = json.loads(rows[JOB])
    return Origin({str(k): str(v) for k, v in job.items()}, COMPLETE in rows) if isinstance(job, dict) else None
