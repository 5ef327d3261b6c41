"""Which folder built engines may be kept in: native code is loaded from there, so only its user may be able to write it."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import grp
import json
import os
import pwd
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path


def default_folder() -> Path:
    """$XDG_CACHE_HOME/dino_perception, or ~/.cache/dino_perception; without a home (a service's user) one of this
    user's own in the folder of temporary files."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    try:
        return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "dino_perception"
    except RuntimeError:  # no HOME, and no entry in the password file
        return private_folder()


def private_folder() -> Path:
    """A folder of temporary files that nobody else can write to: the user's own, or a new one where somebody else has
    taken that name."""
    folder = Path(tempfile.gettempdir()) / f"dino_perception-{os.getuid()}"
    with contextlib.suppress(FileExistsError):
        folder.mkdir(0o700)
    return folder if not folder.is_symlink() and not distrust(folder) else _new_folder()


@functools.lru_cache(maxsize=1)
def _new_folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="dino_perception-"))


def usable_folder(folder: Path, report: Callable[[str], None]) -> Path:
    """`folder`, made where it does not exist and rid of what a killed process left half written; or a private one when
    others can write to it, which `report` is told once."""
    folder = folder.expanduser()
    with contextlib.suppress(OSError):
        folder.mkdir(0o700, parents=True, exist_ok=True)
    if why := distrust(folder):
        instead = private_folder()
        if (folder, instead) not in _told:
            _told.add((folder, instead))
            report(f"the engine cache {folder} is not used, since {why}; {instead} is used instead")
        folder = instead
    if folder not in _tidied:
        _tidied.add(folder)
        tidy(folder)
    return folder


_told: set[tuple[Path, Path]] = set()
_tidied: set[Path] = set()


def distrust(folder: Path) -> str:
    """Why another user may have written into a folder, "" when none can (or it does not exist, so that nothing is in it)."""
    try:
        about = folder.stat()
    except OSError:
        return ""
    if about.st_uid not in (os.getuid(), 0):
        return f"it belongs to {_name(about.st_uid)}"
    if about.st_mode & stat.S_IWOTH:
        return "every user can write to it"
    if about.st_mode & stat.S_IWGRP and not _alone(about.st_gid):
        return f"the group {about.st_gid} can write to it"
    return ""


def tidy(folder: Path) -> None:
    """Remove what a full disk or a kill left: files half written, and engines without a record. An entry that another
    process has in hand is left alone."""
    with contextlib.suppress(OSError):
        for lock in sorted(folder.glob("*.lock")):
            with contextlib.suppress(OSError), open(lock, "r+b") as handle:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _tidy_entry(folder, lock.name[: -len(".lock")])


def _tidy_entry(folder: Path, stem: str) -> None:
    try:
        named = json.loads((folder / f"{stem}.json").read_text()).get("blob")
    except FileNotFoundError:
        named = None
    except (OSError, ValueError, AttributeError):
        return  # a damaged record is told of when the entry is asked for
    for path in folder.iterdir():
        ours = path.name.startswith((f"{stem}-", f"{stem}."))
        if ours and (path.suffix == ".part" or (path.suffix == ".engine" and path.name != named)):
            path.unlink(missing_ok=True)


def _alone(group: int) -> bool:
    """Whether a group is the user's private one, as Debian and Ubuntu make for everybody: nobody else is in it."""
    try:
        me = pwd.getpwuid(os.getuid())
        about = grp.getgrgid(group)
    except KeyError:
        return group == os.getgid() == os.getuid()  # a number without a name, as containers have it
    return group == me.pw_gid and about.gr_name == me.pw_name and set(about.gr_mem) <= {me.pw_name}


def _name(user: int) -> str:
    try:
        return f"the user {pwd.getpwuid(user).pw_name}"
    except KeyError:
        return f"the user {user}"
