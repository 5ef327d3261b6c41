"""Tensors from files nobody vouches for: safetensors, or torch files opened without running anything in them."""

from __future__ import annotations

import json
import os
import pickle
import re
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

try:
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import save
except ImportError:  # rosdep has no key for it
    from dino_perception.models.plain_safetensors import SafetensorError, safe_open, save

KEY = "dino_perception"  # of the safetensors metadata that this package writes


class FileError(ValueError):
    """A file cannot be read as tensors; the message says which and why."""


def read(path: str | Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The content of a weights file or folder, on the CPU, and this package's metadata ({} in others' files).

    A safetensors file gives a flat dict of tensors; a torch file whatever plain data was saved. A folder is one that
    Hugging Face's libraries write: model.safetensors, or shards with an index. The format is found from the content,
    not from the name. Raises FileError.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        return _read_folder(path)
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except (OSError, ValueError) as error:  # ValueError: a name with a zero in it
        raise FileError(f"{path} cannot be read: {getattr(error, 'strerror', '') or error}") from None
    if not head:
        raise FileError(f"{path} is empty")
    if head.startswith(b"version https://git-lfs"):
        raise FileError(f"{path} is a Git LFS pointer, not the weights; fetch them with 'git lfs pull'")
    if head.lstrip()[:1] == b"<":
        raise FileError(f"{path} is a web page, not weights; the download was refused or its link has expired")
    if head[8:9] == b"{":
        return _read_safetensors(path)
    return _read_torch(path), {}


def write(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """A safetensors file with `metadata` (JSON) in its header, written whole or not at all. Raises OSError."""
    put(Path(path), packed(tensors, metadata))


def put(path: Path, data: bytes) -> None:
    """The whole file in one step: a reader, or a disk that fills up, meets the old one or the new one. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, part = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:40]}.", suffix=".part")
    try:
        with open(handle, "wb") as opened:
            opened.write(data)
            opened.flush()
            os.fsync(opened.fileno())  # a network disk says only now that it is full
        os.chmod(part, path.stat().st_mode & 0o7777 if path.is_file() else 0o666 & ~_umask())
        os.replace(part, path)
    except BaseException:
        os.unlink(part)
        raise


def packed(tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> bytes:
    """The content of such a file."""
    plain = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    return save(plain, {KEY: json.dumps(metadata, sort_keys=True)})


def _umask() -> int:
    """The process's mask; it can only be read by setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def mismatch(wanted: Mapping[str, Tensor], found: Mapping[str, Any]) -> str:
    """What keeps `found` from being loaded as `wanted`, in words, or "" when nothing does."""
    shapes = [
        f"{name} is {list(found[name].shape)} instead of {list(wanted[name].shape)}"
        for name in sorted(wanted.keys() & found.keys())
        if found[name].shape != wanted[name].shape
    ]
    more = [f"{len(shapes) - 3} more shapes differ"] if len(shapes) > 3 else []
    absent = names(sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys()))
    return "; ".join([*([absent] if absent else []), *shapes[:3], *more])


def names(missing: list[str], unexpected: list[str]) -> str:
    """ "missing a, b; unexpected c", or "" when both lists are empty."""
    return "; ".join(
        f"{word} {_some(them)}" for word, them in (("missing", missing), ("unexpected", unexpected)) if them
    )


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with safe_open(path, "pt", device="cpu") as file:
            metadata = json.loads((file.metadata() or {}).get(KEY, "{}"))
            if not isinstance(metadata, dict):
                raise ValueError("no JSON object")
            return {name: file.get_tensor(name) for name in file.keys()}, metadata
    except (SafetensorError, OSError, KeyError, RuntimeError, TypeError) as error:
        raise FileError(
            f"{path} is not a whole safetensors file ({str(error).rstrip('.')}); download or copy it again"
        ) from None
    except (RecursionError, ValueError):
        raise FileError(f"{path} has metadata under '{KEY}' that this package did not write") from None


def _read_torch(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the pickle protocol of files that are refused below
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if found := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise FileError(
                f"{path} is refused: besides tensors it asks to run '{found[1]}'; save its state dict "
                "alone, or as safetensors"
            ) from None
        raise FileError(
            f"{path} is refused: it is damaged, no weights file at all, or a pickle that would run code"
        ) from None
    except (
        Exception
    ) as error:  # what a damaged archive makes torch raise is anything: IndexError, TypeError, struct.error
        reason = str(error).split("\n")[0].split(". ")[0].rstrip(".") or type(error).__name__
        raise FileError(f"{path} is not a whole torch file ({reason}); download or copy it again") from None


def _read_folder(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            names = sorted({str(name) for name in json.loads(index.read_text())["weight_map"].values()})
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise FileError(f"{index} is not an index of safetensors shards") from None
        tensors: dict[str, Any] = {}
        there = {entry.name for entry in folder.iterdir() if entry.is_file()}
        for name in names:
            if name not in there:
                raise FileError(f"{index} names {name[:200]!r}, which is outside its folder or not there")
            tensors.update(read(folder / name)[0])
        return tensors, {}
    try:
        weights = (".safetensors", ".pth", ".pt", ".bin")
        files = sorted(f for f in folder.iterdir() if f.suffix in weights and f.is_file())
    except OSError as error:
        raise FileError(f"{folder} cannot be read: {error.strerror or error}") from None
    for name in ("model.safetensors", "pytorch_model.bin"):
        if folder / name in files:
            return read(folder / name)
    if len(files) == 1:
        return read(files[0])
    found = ", ".join(f.name for f in files) or "none"
    raise FileError(f"{folder} should hold model.safetensors or one weights file; it holds {found}")
