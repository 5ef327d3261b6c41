"""The safetensors format in plain Python, for a robot whose package sources do not have the `safetensors` library.

A file is eight bytes (little endian) with the length of a JSON header, the header, and the tensors' bytes. The header
names each tensor's dtype, shape and place; under "__metadata__" it holds texts by name. `safe_open`, `save_file` and
`SafetensorError` are used as the library's.
"""

from __future__ import annotations

import json
import math
import mmap
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
LONGEST_HEADER = 100_000_000
"""Bytes; the library refuses longer ones, too."""


class SafetensorError(Exception):
    """The file does not keep to the format; the message says where."""


class safe_open:
    """A file's tensors by name, read when asked for. Raises SafetensorError, or OSError."""

    def __init__(self, path: str | Path, framework: str = "pt", device: str = "cpu"):
        with open(path, "rb") as file:
            head = file.read(8)
            if len(head) < 8:
                raise SafetensorError("the header is cut off")
            (length,) = struct.unpack("<Q", head)
            size = Path(path).stat().st_size
            if length > LONGEST_HEADER or 8 + length > size:
                raise SafetensorError(f"the header is said to be {length} bytes long; the file has {size}")
            try:
                header = json.loads(file.read(length))
                self._metadata = header.pop("__metadata__", None)
                self._entries = {name: _entry(name, entry) for name, entry in header.items()}
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                raise SafetensorError(f"the header cannot be read: {error}") from None
            self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._start = 8 + length
        self._check(size - self._start)

    def __enter__(self) -> safe_open:
        return self

    def __exit__(self, *_: object) -> None:
        self._bytes.close()

    def metadata(self) -> dict[str, str] | None:
        return self._metadata

    def keys(self) -> list[str]:
        return list(self._entries)

    def get_tensor(self, name: str) -> Tensor:
        """A copy, so that the file may change or go afterwards."""
        dtype, shape, begin, end = self._entries[name]
        data = bytearray(self._bytes[self._start + begin : self._start + end])
        return torch.frombuffer(data, dtype=dtype).reshape(shape) if data else torch.empty(shape, dtype=dtype)

    def _check(self, size: int) -> None:
        """The tensors must fill the rest of the file without gap or overlap, as the format demands."""
        at = 0
        for name, (dtype, shape, begin, end) in sorted(self._entries.items(), key=lambda item: item[1][2:]):
            if begin != at or end - begin != math.prod(shape) * dtype.itemsize:
                raise SafetensorError(f"tensor '{name}' is said to lie at bytes {begin} to {end}, which cannot be")
            at = end
        if at != size:
            raise SafetensorError(f"the tensors take {at} bytes; the file has {size} for them")


def save_file(tensors: Mapping[str, Tensor], path: str | Path, metadata: Mapping[str, str] | None = None) -> None:
    Path(path).write_bytes(save(tensors, metadata))


def save(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> bytes:
    """Contiguous CPU tensors as a file's content. Wide dtypes come first and names in order, as the library has them."""
    names = {dtype: name for name, dtype in DTYPES.items()}
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    at = 0
    for name in order:
        tensor = tensors[name]
        size = tensor.numel() * tensor.element_size()
        header[name] = {"dtype": names[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that the tensors are aligned
    values = (tensors[name].reshape(-1).view(torch.uint8).numpy().tobytes() for name in order if tensors[name].numel())
    return b"".join([struct.pack("<Q", len(text)), text, *values])


def _entry(name: str, entry: Mapping[str, Any]) -> tuple[torch.dtype, tuple[int, ...], int, int]:
    if entry["dtype"] not in DTYPES:
        raise ValueError(f"tensor '{name}' is of type {entry['dtype']}; known are {', '.join(DTYPES)}")
    begin, end = (int(offset) for offset in entry["data_offsets"])
    shape = tuple(int(length) for length in entry["shape"])
    if min(shape, default=0) < 0:
        raise ValueError(f"tensor '{name}' has the shape {shape}")
    return DTYPES[entry["dtype"]], shape, begin, end
