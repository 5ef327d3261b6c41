"""The plain reader and writer agree with the safetensors library, and refuse what it refuses."""

from __future__ import annotations

import json
import struct

import pytest
import torch

safetensors = pytest.importorskip("safetensors")

from safetensors.torch import save_file as library_save  # noqa: E402

from dino_perception.models.plain_safetensors import DTYPES, SafetensorError, safe_open, save_file  # noqa: E402

TENSORS = {
    **{name.lower(): (torch.arange(6).reshape(2, 3) % 2).to(dtype) for name, dtype in DTYPES.items()},
    "scalar": torch.tensor(2.5),
    "empty": torch.zeros(0, 4),
}
METADATA = {"dino_perception": json.dumps({"labels": ["soil", "größer"]})}


def same(found: dict, wanted: dict) -> None:
    assert set(found) == set(wanted)
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name


def read(opened) -> dict:
    with opened as file:
        assert file.metadata() == METADATA
        return {name: file.get_tensor(name) for name in file.keys()}


def test_it_reads_what_the_library_writes(tmp_path):
    library_save(TENSORS, tmp_path / "a", METADATA)
    same(read(safe_open(tmp_path / "a", "pt", device="cpu")), TENSORS)


def test_the_library_reads_what_it_writes(tmp_path):
    save_file(TENSORS, tmp_path / "a", METADATA)
    same(read(safetensors.safe_open(tmp_path / "a", "pt", device="cpu")), TENSORS)


def header(**changes) -> dict:
    return {"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **changes}}


def written(path, text: bytes, data: bytes, length: int | None = None):
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


@pytest.mark.parametrize(
    "text, data, length",
    [
        (json.dumps(header()).encode(), bytes(7), None),  # cut off
        (json.dumps(header()).encode(), bytes(9), None),  # too long
        (json.dumps(header(data_offsets=[0, 12])).encode(), bytes(12), None),  # place and shape differ
        (json.dumps(header(data_offsets=[4, 12])).encode(), bytes(12), None),  # a gap
        (json.dumps(header(shape=[-2])).encode(), bytes(8), None),
        (json.dumps(header(shape=[-2, -1])).encode(), bytes(8), None),
        (json.dumps(header(dtype="F128")).encode(), bytes(8), None),
        (b"[1, 2]", b"", None),
        (b"{", b"", None),
        (b"{}", b"", 1 << 40),
        (b"{}", b"", 1 << 62),
    ],
)
def test_what_is_no_whole_file_is_refused_by_both(tmp_path, text, data, length):
    path = written(tmp_path / "bad", text, data, length)
    with pytest.raises(safetensors.SafetensorError):
        safetensors.safe_open(path, "pt", device="cpu").keys()
    with pytest.raises(SafetensorError):
        safe_open(path)
