"""Where results go. A place that cannot be written is refused before the work, and what was worked out is not lost to a
disk that is full after it.

Every option that names an output takes `file`, `folder` or `page` as its argparse type, and every command writes by `keep`.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ELSEWHERE = 6
"""Exit code of a command that is done, but whose result is not where it was asked for; `replay` has the same number for
an output that cannot be written."""
SMALL = 64 << 10
"""Characters of a text that is printed when no disk takes it."""
NO_NEW_FILE = (errno.EACCES, errno.EPERM, errno.EROFS)

displaced: dict[Path | None, Path | None] = {}
"""What was asked for, a file or a folder of results -> where it is, or None where it is nowhere but on the terminal."""


def file(text: str) -> Path:
    """A file that can be written, new or not, as an argument."""
    return _accepted(Path(text), refusal(Path(text)))


def folder(text: str) -> Path:
    """A folder that files can be written to, there already or not, as an argument."""
    return _accepted(Path(text), refusal(Path(text), folder=True))


def file_or_folder(text: str) -> Path:
    """Either, as an argument: which of them, what is read decides."""
    return folder(text) if os.path.isdir(text) else file(text)


def page(text: str) -> Path:
    """A page that is there and can be written, as an argument; `markdown_tables.check` looks for its marks."""
    if not os.path.isfile(text):
        raise argparse.ArgumentTypeError(f"'{text}' is no file; tables are put into a page that is there")
    return file(text)


def refusal(path: Path, *, folder: bool = False) -> str:
    """Why a file, or a folder of files, cannot be written at `path`: a sentence, or "". It is really tried, as a mode says
    little to root and nothing of a full disk; nothing is left behind and nothing that is there is changed."""
    try:
        return _refusal(path, folder)
    except OSError as error:
        return f"'{path}' cannot be written: {_reason(error)}"
    except ValueError as error:  # half a character
        return f"{str(path)!r} is no name of a file: {error}"


def keep(
    path: Path,
    data: str | bytes | Callable[[Path], object],
    *,
    within: Path | None = None,
    failures: tuple[type[Exception], ...] = (OSError,),
) -> Path | None:
    """Write a result whole, or not at all, and where `path` does not take it write it to the first place that does: the
    working directory, then the temporary one; at last a small text is printed. Whatever happens to it but for the first is
    said in one sentence, and `code` gives ELSEWHERE from then on.

    `data` is the content, or a function that writes a file or folder at the path that it is given and raises one of
    `failures`. With `within`, a folder of results that `path` lies in, what does not fit there stays together elsewhere.
    Returns where the result is, None where it is in no file.
    """
    try:
        _put(path, data)
        return path
    except failures as error:
        why = _reason(error)
    asked = within or path
    for root in places(asked, displaced.get(within)):
        place = root / path.relative_to(within) if within else root
        try:
            _put(place, data)
        except (OSError, *failures):
            continue
        if displaced.get(within) != root:
            more = f"; what else finds no room in {within} will be beside it" if within else ""
            _say(f"{path} cannot be written ({why}): the result is in {place} instead{more}")
        displaced[asked] = root
        return place
    displaced[asked] = None
    if isinstance(data, str) and len(data) <= SMALL:
        _say(f"{path} cannot be written ({why}), and no other place takes it: the result is printed here")
        print(data, flush=True)
    else:
        _say(f"{path} cannot be written ({why}), and no other place takes it: the result is lost")
    return None


def keep_json(path: Path | None, data: Any, indent: int = 1, default: Callable[[Any], Any] | None = None) -> None:
    """Data as a JSON file, where one was asked for. See `keep`."""
    if path is not None:
        keep(path, json.dumps(data, indent=indent, default=default) + "\n")


def code(done: int) -> int:
    """A command's exit code, given what it would be if every result were in its place."""
    return done or (ELSEWHERE if displaced else 0)


def write(path: Path, data: bytes) -> None:
    """The whole file in one step: a reader, or a disk that fills up, meets the old one or the new one. A link stays a link,
    and a page keeps its mode and owner. Raises OSError."""
    if _special(path):
        path.write_bytes(data)
        return
    path = Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        handle, part = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:40]}.", suffix=".part")
    except OSError as error:
        if error.errno not in NO_NEW_FILE or not path.is_file():
            raise
        path.write_bytes(data)  # the file may be written, its folder not
        return
    try:
        with open(handle, "wb") as opened:
            opened.write(data)
            opened.flush()
            os.fsync(opened.fileno())  # a network disk says only now that it is full
        _resemble(part, path)
        os.replace(part, path)
    except BaseException:
        os.unlink(part)
        raise


def _put(path: Path, data: str | bytes | Callable[[Path], object]) -> None:
    """Write a result, or leave nothing of it, nor of the folders that it needs. Raises what writing raises."""
    new = [folder for folder in (path, *path.parents) if not os.path.lexists(folder)]
    try:
        if callable(data):
            path.parent.mkdir(parents=True, exist_ok=True)
            data(path)
        else:
            write(path, data.encode() if isinstance(data, str) else data)
    except BaseException:
        if path in new:
            shutil.rmtree(path, ignore_errors=True)
        for made in new:
            with contextlib.suppress(OSError):
                made.rmdir() if made.is_dir() else made.unlink()
        raise


def places(asked: Path, begun: Path | None = None) -> Iterator[Path]:
    """Places that a result may be put instead of `asked`, under the name that it was to have; first where its folder has begun to
    be."""
    if begun is not None:
        yield begun
    with contextlib.suppress(OSError):
        yield _free(Path.cwd() / (asked.name or "results"))
    with contextlib.suppress(OSError):
        own = Path(tempfile.mkdtemp(prefix="dino_perception-"))  # nobody else's link can be waiting in it
        yield own / (asked.name or "results")
        own.rmdir()  # it did not take the result either


def _free(path: Path) -> Path:
    """The path itself or, where something is there, one beside it."""
    number, free = 1, path
    while os.path.lexists(free):
        number += 1
        free = path.with_name(f"{path.stem}-{number}{path.suffix}")
    return free


def _refusal(path: Path, folder: bool) -> str:
    if "\0" in str(path):
        raise ValueError("it has a zero in it")
    if any(len(os.fsencode(part)) > 255 for part in path.parts):  # not said of folders that are not there yet
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
    if path.is_symlink() and not path.exists():
        path = Path(os.path.realpath(path))
        if path.is_symlink():
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
    if path.is_dir():
        if not folder:
            return f"'{path}' is a folder; name a file"
        _try(path)
    elif path.exists():
        if folder:
            return f"'{path}' is a file; name a folder"
        if not path.is_file():  # a terminal or a pipe, which to open would be noticed at its other end
            if not os.access(path, os.W_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            return ""
        os.close(os.open(path, os.O_WRONLY))
        if not _special(path):
            try:
                _try(path.resolve().parent)
            except OSError as error:
                if error.errno not in NO_NEW_FILE:
                    raise
    else:
        parent = path.parent
        while not os.path.lexists(parent) and parent != parent.parent:
            parent = parent.parent
        if not parent.is_dir():
            what = "is a link that leads nowhere" if parent.is_symlink() else "is no folder"
            return f"'{path}' cannot be written: '{parent}' {what}"
        _try(parent)
    return ""


def _try(folder: Path) -> None:
    """Write a block to a file in the folder that never has a name, or has none any more. Raises OSError."""
    try:
        handle = os.open(folder, os.O_TMPFILE | os.O_WRONLY, 0o600)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT, errno.EINVAL):
            raise
        handle, name = tempfile.mkstemp(dir=folder, prefix=".")
        os.unlink(name)
    try:
        os.write(handle, bytes(4096))
    finally:
        os.close(handle)


def _special(path: Path) -> bool:
    """Whether a path is written through, not replaced: /dev/stdout, a pipe, a terminal."""
    return path.exists() and (not path.is_file() or str(path.absolute()).startswith(("/dev/", "/proc/")))


def _resemble(part: str, path: Path) -> None:
    """Give a new file the mode and owner of the one that it replaces, or those that the user's files have."""
    try:
        old = path.stat()
    except OSError:
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(part, 0o666 & ~mask)
        return
    with contextlib.suppress(OSError):
        os.chown(part, old.st_uid, old.st_gid)
    os.chmod(part, old.st_mode & 0o777)


def _accepted(path: Path, sentence: str) -> Path:
    if sentence:
        from dino_perception.messages.printable import printable

        raise argparse.ArgumentTypeError(printable(sentence))
    return path


def _reason(error: Exception) -> str:
    return (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__


def _say(sentence: str) -> None:
    from dino_perception.messages.printable import printable

    print(printable(sentence, 4000), file=sys.stderr, flush=True)
