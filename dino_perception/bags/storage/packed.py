"""Files of a bag that was compressed as a whole (rosbag2's file compression)."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

from dino_perception.bags.storage.mcap_format import zstd
from dino_perception.bags.storage.problems import UNWRITABLE, BagError, Problem
from dino_perception.bags.storage.topic import Topic


class PackedSource:
    """A source of messages in a .zstd file. It is unpacked while it is being read, so that of a long split bag only the
    file at hand needs room in the folder for temporary files ($TMPDIR)."""

    def __init__(self, path: Path, problem: Callable[[Problem], None], kind: Callable[[Path, Callable], Any]):
        self.path, self._problem, self._kind = path, problem, kind
        with self._unpacked() as source:
            self.topics: list[Topic] = source.topics
            self.start_ns, self.end_ns, self.recorded_order = source.start_ns, source.end_ns, source.recorded_order

    def messages(
        self, names: Collection[str] | None = None, start: int | None = None, stop: int | None = None
    ) -> Iterator[tuple[int, Topic, Any]]:
        with self._unpacked() as source:
            yield from source.messages(names, start, stop)

    def close(self) -> None:
        pass

    def _unpacked(self) -> _Unpacked:
        return _Unpacked(self.path, self._problem, self._kind)


class _Unpacked:
    """The source of an unpacked file, which is gone afterwards."""

    def __init__(self, path: Path, problem: Callable[[Problem], None], kind: Callable[[Path, Callable], Any]):
        self._path, self._problem, self._kind = path, problem, kind

    def __enter__(self) -> Any:
        self._folder = tempfile.TemporaryDirectory(prefix="dino_perception_")
        try:
            target = Path(self._folder.name) / self._path.stem
            try:
                with zstd.open(self._path, "rb") as packed, open(target, "wb") as plain:
                    shutil.copyfileobj(packed, plain, 1 << 20)
            except OSError as error:
                raise BagError(
                    f"{self._path} cannot be unpacked to {target.parent}: {error.strerror}", UNWRITABLE
                ) from None
            except (EOFError, zstd.ZstdError) as error:
                self._problem(
                    Problem(
                        "truncated",
                        f"{self._path.name} is cut off or damaged ({error}); what could be decompressed is taken",
                    )
                )
            self._source = self._kind(target, self._problem)
        except BaseException:
            self._folder.cleanup()
            raise
        return self._source

    def __exit__(self, *_) -> None:
        self._source.close()
        self._folder.cleanup()
