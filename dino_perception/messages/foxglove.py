"""Foxglove's image and calibration messages, in protobuf, JSON or CDR, with the field names of ROS.

Field numbers of protobuf are read from the recording's own descriptors (google/protobuf/descriptor.proto); the fields are
those of https://github.com/foxglove/foxglove-sdk/tree/main/schemas.
"""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Iterator, Mapping
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

import numpy as np

TYPES = ("RawImage", "CompressedImage", "CompressedVideo", "CameraCalibration")
_VARINT, _EIGHT, _BYTES, _FOUR = 0, 1, 2, 5
_DOUBLE, _FIXED32, _STRING, _MESSAGE, _BLOCK = 1, 7, 9, 11, 12
"""Numbers of protobuf's wire types and field types."""
_EMPTY = {_DOUBLE: 0.0, _STRING: "", _MESSAGE: b"", _BLOCK: b""}


class FoxgloveError(ValueError):
    """Bytes that are not the message they should be; the message says why."""


def known(kind: str, coding: str) -> bool:
    """Whether `decode` takes messages of this schema name and encoding."""
    return coding in ("protobuf", "json") and kind.startswith("foxglove.") and kind[9:] in TYPES


def decode(kind: str, coding: str, definition: bytes, data: Any) -> SimpleNamespace:
    """A message of one of `TYPES`, its fields as sensor_msgs has them. Raises FoxgloveError."""
    try:
        fields = _from_protobuf(kind, definition, bytes(data)) if coding == "protobuf" else _from_json(bytes(data))
        return with_ros_names(SimpleNamespace(**fields))
    except FoxgloveError:
        raise
    except Exception as error:  # whatever damaged bytes lead to
        raise FoxgloveError(f"the {kind} is damaged ({type(error).__name__}: {error})") from None


def with_ros_names(message: Any) -> SimpleNamespace:
    """The fields of a Foxglove message as ROS has them: a header, and small letters for the matrices."""
    fields = dict(vars(message))
    stamp = fields.pop("timestamp")
    if isinstance(stamp, Mapping):
        stamp = SimpleNamespace(sec=int(stamp["sec"]), nanosec=int(stamp.get("nsec", stamp.get("nanosec", 0))))
    fields["header"] = SimpleNamespace(stamp=stamp, frame_id=str(fields.pop("frame_id")))
    for name in "DKRP":
        if name in fields:
            fields[name.lower()] = np.asarray(fields.pop(name), np.float64)
    roi = SimpleNamespace(x_offset=0, y_offset=0, width=0, height=0)
    return SimpleNamespace(**{"is_bigendian": 0, "binning_x": 0, "binning_y": 0, "roi": roi, **fields})


def _from_json(data: bytes) -> dict[str, Any]:
    fields = json.loads(data)
    if not isinstance(fields, dict):
        raise FoxgloveError("the JSON is no object")
    if "data" in fields:
        fields["data"] = base64.b64decode(fields["data"], validate=True)
    return fields


def _from_protobuf(kind: str, definition: bytes, data: bytes) -> dict[str, Any]:
    layout = _layout(kind, definition)
    fields: dict[str, Any] = {name: [] if many else _EMPTY.get(form, 0) for name, form, many in layout.values()}
    for number, wire, value in _wire(data):
        if number not in layout:
            continue
        name, form, many = layout[number]
        if form == _DOUBLE:
            values = np.frombuffer(value, "<f8").tolist() if wire in (_BYTES, _EIGHT) else []
            fields[name] = fields[name] + values if many else values[0]
        else:
            fields[name] = value.decode() if form == _STRING else value
    parts = {number: value for number, _, value in _wire(fields["timestamp"])}
    fields["timestamp"] = {"sec": parts.get(1, 0), "nsec": parts.get(2, 0)}
    return fields


@lru_cache(maxsize=64)
def _layout(kind: str, definition: bytes) -> dict[int, tuple[str, int, bool]]:
    """Field number -> (name, type, repeated) of a message, from a FileDescriptorSet."""
    for _, _, file in _wire(definition):
        package, messages = "", []
        for number, _, value in _wire(file):
            if number == 2:
                package = value.decode()
            elif number == 4:
                messages.append(value)
        for message in messages:
            parts = list(_wire(message))
            name = next((value.decode() for number, _, value in parts if number == 1), "")
            if f"{package}.{name}" == kind:
                return dict(_field(value) for number, _, value in parts if number == 2)
    raise FoxgloveError(f"the recording's descriptors do not define {kind}")


def _field(descriptor: bytes) -> tuple[int, tuple[str, int, bool]]:
    parts = {number: value for number, _, value in _wire(descriptor)}
    return parts[3], (parts[1].decode(), parts[5], parts.get(4) == 3)


def _wire(data: bytes) -> Iterator[tuple[int, int, Any]]:
    """(field number, wire type, value) of protobuf's encoding: an int, or bytes."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, wire = key >> 3, key & 7
        if wire == _VARINT:
            value, at = _varint(data, at)
        else:
            if wire == _BYTES:
                size, at = _varint(data, at)
            elif wire in (_EIGHT, _FOUR):
                size = 8 if wire == _EIGHT else 4
            else:
                raise FoxgloveError(f"a field has protobuf's wire type {wire}")
            value, at = data[at : at + size], at + size
            if at > len(data):
                raise FoxgloveError("the message ends within a field")
            if wire == _FOUR:
                (value,) = struct.unpack("<I", value)
        yield number, wire, value


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise FoxgloveError("the message ends within a number")
        octet = data[at]
        value |= (octet & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if octet < 0x80:
            return value, at
