"""One file over HTTPS, or from a folder: resumed where it stopped, and checked before it gets its name."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

BLOCK = 1 << 20
TIMEOUT_S = 30
RECORD = "sha256.json"
"""Beside the files: what each was when it first came."""


class DownloadError(RuntimeError):
    """Weights cannot be fetched; the message says why and what to do."""


Progress = Callable[[str, int, int], None]
"""Told the file's name, how many bytes are here, and how many there are (0: not known)."""


def fetch(address: str, target: Path, *, sha256: str = "", progress: Progress = lambda *_: None) -> bool:
    """Bring the file at `address` (https, http, or a path) to `target`; returns whether anything had to be brought.

    An interrupted download goes on where it stopped, if the server's file is still the same. The content must have
    `sha256` (or begin with it: file names carry eight digits) where that is known, and else the hash that was recorded
    when a file of that name first came to this folder. A file that is here already is checked alike. Raises
    DownloadError.
    """
    known = sha256 or _recorded(target)
    if target.is_file():
        if not known or digest(target).startswith(known):
            _record(target)
            return False
        raise DownloadError(
            f"{target} is here but does not have the sha256 {known[:12]}... that it should have; delete it and try again"
        )
    part = target.with_name(target.name + ".part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _bring(address, part, target.name, progress)
    except OSError as error:
        raise DownloadError(_sentence(address, target, error)) from None
    if known and not digest(part).startswith(known):
        _forget(part)
        raise DownloadError(
            f"{address} does not have the sha256 {known[:12]}... that it should have; it was deleted, try again or take "
            "it from elsewhere"
        )
    with part.open("rb") as file:
        start = file.read(64).lstrip()
    if start.startswith((b"<", b"version https://git-lfs")):
        _forget(part)
        raise DownloadError(f"{address} gave a web page or a pointer instead of weights; try again later")
    os.replace(part, target)
    _record(target)
    _tag(part).unlink(missing_ok=True)
    return True


def digest(path: Path) -> str:
    """Hex sha256 of a file's content."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(4 * BLOCK):
            found.update(block)
    return found.hexdigest()


def _bring(address: str, part: Path, name: str, progress: Progress) -> None:
    if "://" not in address:
        source = Path(address).expanduser()
        shutil.copyfile(source, part)
        progress(name, source.stat().st_size, source.stat().st_size)
        return
    with _opened(address, part) as answer:
        begun = part.stat().st_size if answer.status == 206 else 0
        left = int(answer.headers.get("Content-Length") or 0)
        total = begun + left if left else 0
        _tag(part).write_text(answer.headers.get("ETag") or answer.headers.get("Last-Modified") or "")
        with part.open("ab" if begun else "wb") as file:
            here = begun
            while block := answer.read(BLOCK):
                file.write(block)
                here += len(block)
                progress(name, here, total)
    if total and here != total:
        raise ConnectionError(f"it ended after {here} of {total} bytes")


def _opened(address: str, part: Path):
    """The answer to a request for what is missing: 206 for the rest, 200 for everything."""
    headers = {"User-Agent": "dino_perception"}
    begun = part.stat().st_size if part.exists() else 0
    tag = _tag(part).read_text() if _tag(part).exists() else ""
    if begun and tag:
        headers |= {"Range": f"bytes={begun}-", "If-Range": tag}
    try:
        return urllib.request.urlopen(urllib.request.Request(address, headers=headers), timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code != 416:  # what is here is all there is, or more: begin again
            raise
        part.unlink()
        return urllib.request.urlopen(
            urllib.request.Request(address, headers={"User-Agent": "dino_perception"}), timeout=TIMEOUT_S
        )


def _forget(part: Path) -> None:
    part.unlink()
    _tag(part).unlink(missing_ok=True)


def _tag(part: Path) -> Path:
    """What the server called the version of which there is a part."""
    return part.with_name(part.name + ".tag")


def _sentence(address: str, target: Path, error: OSError) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"{address} cannot be fetched: the server says {error.code} {error.reason}"
    reason = getattr(error, "reason", None) or error
    if "://" not in address:
        return f"{address} cannot be copied: {getattr(error, 'strerror', None) or reason}"
    if target.with_name(target.name + ".part").exists():
        return f"{address} came in part ({reason}); try again, it goes on where it stopped"
    return (
        f"{address} cannot be reached ({reason}); without a network, copy {target.name} to {target.parent}, or name a "
        "folder that has it with --mirror"
    )


def _recorded(target: Path) -> str:
    return _records(target).get(target.name, "")


def _records(target: Path) -> dict[str, str]:
    with contextlib.suppress(OSError, ValueError):
        found = json.loads((target.parent / RECORD).read_text())
        if isinstance(found, dict):
            return {str(name): str(value) for name, value in found.items()}
    return {}


def _record(target: Path) -> None:
    records = _records(target)
    if target.name not in records:
        records[target.name] = digest(target)
        temporary = target.parent / f".{RECORD}.{os.getpid()}"
        temporary.write_text(json.dumps(records, indent=1, sort_keys=True) + "\n")
        os.replace(temporary, target.parent / RECORD)


def joined(mirror: str, address: str, name: str) -> str:
    """Where a file is: at its own address, or under its name in a mirror, which is a folder or an address."""
    return f"{mirror.rstrip('/')}/{name}" if mirror else address
