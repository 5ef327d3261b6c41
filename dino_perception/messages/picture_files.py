"""What the bytes of a picture file say before they are decoded, and whether all of a JPEG was there.

Sizes are read from the headers of PNG (PNG specification, 11.2.2), JPEG (ITU-T T.81, B.2.2), TIFF (revision 6.0, section 2)
and WebP (RFC 9649), since a few kilobytes can decode to gigabytes.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

import numpy as np

SOF = (*range(0xC0, 0xC4), *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0))
PROGRESSIVE = (0xC2, 0xC6, 0xCA, 0xCE)
SOS, EOI, DRI = 0xDA, 0xD9, 0xDD
ALONE = (0x01, *range(0xD0, 0xD9))
"""Markers of a JPEG without a length: TEM, RST0 to RST7, SOI."""
FILLER = bytes([0, *((37 * i + 11) % 255 for i in range(96))])
"""Bytes that any Huffman decoder makes something of: no 0xFF among them, and 0 first, which completes one before them."""


def picture_kind(data: bytes | memoryview) -> str:
    """ "JPEG", "PNG", "TIFF" or "WebP" by the first bytes, "" for anything else."""
    head = bytes(data[:12])
    if head.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if head[:4] in (b"II*\0", b"MM\0*"):
        return "TIFF"
    return "WebP" if head[:4] == b"RIFF" and head[8:] == b"WEBP" else ""


def picture_size(data: bytes | memoryview) -> tuple[int, int] | None:
    """(width, height) that the header states; None where it does not say, or for another kind of file."""
    read = {"JPEG": _jpeg_size, "PNG": _png_size, "TIFF": _tiff_size, "WebP": _webp_size}.get(picture_kind(data))
    try:
        return read(memoryview(data)) if read else None
    except (struct.error, IndexError):  # cut off within the header
        return None


def png_cut_off(data: bytes | memoryview) -> bool:
    """Whether a chunk of a PNG is longer than the rest of the file: OpenCV takes that many bytes of memory before it reads."""
    at, size = 8, len(data)
    while at + 12 <= size:
        (length,) = struct.unpack_from(">I", data, at)
        if bytes(data[at + 4 : at + 8]) == b"IEND":
            return False
        at += 12 + length
    return True


def jpeg_fault(
    data: bytes | memoryview, pixels: np.ndarray, decode: Callable[[bytes], np.ndarray | None] | None = None
) -> str:
    """What is missing of a JPEG that decoded to `pixels`, "" when nothing is. libjpeg fills what is missing with grey
    and reports success.

    Seen are an end that is not there, restart intervals that are not there, scans of a progressive file that are not
    there, and a scan that ends too early although the end marker follows: such a scan leaves the last pixels exactly
    mid-grey (jdhuff.c), and the picture changes when bytes are put behind the scan (`decode` is asked for that only
    when the last pixels are so, or the file is progressive; without it a scan's end has been looked at by others). What
    is damaged within a scan and keeps its length is not seen: JPEG has no checksum (but see strict_jpeg.py).
    """
    view = memoryview(data)
    try:
        scans, end, frame = _walk(view)
    except (struct.error, IndexError):
        return "it is cut off"
    if end < 0:
        return "it is cut off"
    if not frame or not scans:
        return "it holds no picture"
    progressive = frame["marker"] in PROGRESSIVE
    if progressive and not _all_bits(frame, scans):
        return "scans are missing"
    if not progressive and any(scan["restarts"] < scan["wanted"] for scan in scans):
        return "restart intervals are missing"
    if decode and (progressive or (pixels[-2:, -2:] == 128).all()):
        again = decode(bytes(view[:end]) + FILLER + bytes(view[end:]))
        if again is None or again.shape != pixels.shape or not np.array_equal(again, pixels):
            return "its last scan ends too early"
    return ""


def _png_size(data: memoryview) -> tuple[int, int] | None:
    return struct.unpack_from(">II", data, 16) if bytes(data[12:16]) == b"IHDR" else None


def _jpeg_size(data: memoryview) -> tuple[int, int] | None:
    for marker, at, _ in _segments(data):
        if marker in SOF:
            height, width = struct.unpack_from(">HH", data, at + 5)
            return width, height
        if marker in (SOS, EOI):
            return None
    return None


def _tiff_size(data: memoryview) -> tuple[int, int] | None:
    order = "<" if bytes(data[:2]) == b"II" else ">"
    (at,) = struct.unpack_from(order + "I", data, 4)
    (count,) = struct.unpack_from(order + "H", data, at)
    found: dict[int, int] = {}
    for entry in range(at + 2, at + 2 + 12 * count, 12):
        tag, kind = struct.unpack_from(order + "HH", data, entry)
        if tag in (256, 257):  # ImageWidth, ImageLength: SHORT or LONG
            (found[tag],) = struct.unpack_from(order + ("H" if kind == 3 else "I"), data, entry + 8)
    return (found[256], found[257]) if len(found) == 2 else None


def _webp_size(data: memoryview) -> tuple[int, int] | None:
    chunk = bytes(data[12:16])
    if chunk == b"VP8X":
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if chunk == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if chunk == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, 26)
        return width & 0x3FFF, height & 0x3FFF
    return None


def _segments(data: memoryview):
    """(marker, where its segment begins, where the next may begin) up to and with the first SOS; the 2 bytes at the
    begin are the marker."""
    at = 2
    while True:
        if data[at] != 0xFF:
            return
        while data[at + 1] == 0xFF:  # fill bytes
            at += 1
        marker = data[at + 1]
        if marker in ALONE or marker == EOI:
            yield marker, at, at + 2
            at += 2
            continue
        (length,) = struct.unpack_from(">H", data, at + 2)
        yield marker, at, at + 2 + max(length, 2)
        at += 2 + max(length, 2)


def _walk(data: memoryview) -> tuple[list[dict], int, dict]:
    """(scans, where the EOI marker is or -1, the frame header's figures). Entropy-coded data is skipped by its rule: 0xFF
    is followed by 0, or begins a marker."""
    octets = np.frombuffer(data, np.uint8)
    places = np.flatnonzero(octets[:-1] == 0xFF)
    after = octets[places + 1]
    real = (after != 0) & (after != 0xFF)
    places, after = places[real], after[real]
    restart = (after >= 0xD0) & (after <= 0xD7)
    scans: list[dict] = []
    frame: dict = {}
    interval, at = 0, 2
    while True:
        base = at
        for marker, at, following in _segments(data[base - 2 :]):
            at, following = at + base - 2, following + base - 2
            if marker in SOF:
                frame = _frame(data, at, marker)
            elif marker == DRI:
                (interval,) = struct.unpack_from(">H", data, at + 4)
            elif marker == EOI:
                return scans, at, frame
            elif marker == SOS:
                break
        else:
            return scans, -1, frame
        scan = _scan(data, at, frame, interval)
        begin = int(np.searchsorted(places, following))
        rest = np.flatnonzero(~restart[begin:])
        if not rest.size:
            return scans, -1, frame
        scan["restarts"] = int(rest[0])
        scans.append(scan)
        at = int(places[begin + rest[0]])


def _frame(data: memoryview, at: int, marker: int) -> dict:
    height, width, count = struct.unpack_from(">HHB", data, at + 5)
    parts = {data[at + 10 + 3 * i]: data[at + 11 + 3 * i] for i in range(count)}
    samplings = {part: (packed >> 4 or 1, packed & 15 or 1) for part, packed in parts.items()}
    return {"marker": marker, "width": width, "height": height, "samplings": samplings}


def _scan(data: memoryview, at: int, frame: dict, interval: int) -> dict:
    """One scan header: its components, its band of coefficients, its lowest bit, and how many restart markers belong in."""
    count = data[at + 4]
    parts = [data[at + 5 + 2 * i] for i in range(count)]
    low, high, bits = data[at + 5 + 2 * count], data[at + 6 + 2 * count], data[at + 7 + 2 * count]
    samplings = frame.get("samplings", {})
    wanted = 0
    if interval and samplings:
        h, v = (max(s[axis] for s in samplings.values()) for axis in (0, 1))
        if len(parts) == 1:  # not interleaved: MCUs are the component's own blocks
            own = samplings.get(parts[0], (1, 1))
            across, down = -(-frame["width"] * own[0] // (8 * h)), -(-frame["height"] * own[1] // (8 * v))
        else:
            across, down = -(-frame["width"] // (8 * h)), -(-frame["height"] // (8 * v))
        wanted = -(-across * down // interval) - 1
    return {"parts": parts, "low": low, "high": high, "bit": bits & 15, "wanted": wanted}


def _all_bits(frame: dict, scans: list[dict]) -> bool:
    """Whether the scans of a progressive file bring every coefficient of every component down to its last bit."""
    for part in frame["samplings"]:
        known = np.full(64, 255)
        for scan in scans:
            if part in scan["parts"]:
                known[scan["low"] : scan["high"] + 1] = scan["bit"]
        if known.any():
            return False
    return True
