"""Where the files that come with the package are: config, launch, and the sample drive."""

from __future__ import annotations

import sys
from pathlib import Path


def share(*parts: str) -> Path:
    """The path of a shipped file or folder: in the source tree, in the sourced workspace, or where pip put it.

    Raises FileNotFoundError.
    """
    for root in _roots():
        path = root.joinpath(*parts)
        if path.exists():
            return path
    raise FileNotFoundError(f"the package's file {'/'.join(parts)} is not installed")


def _roots() -> list[Path]:
    source = Path(__file__).resolve().parent.parent
    roots = [source] if (source / "package.xml").exists() else []
    try:
        from ament_index_python.packages import get_package_share_directory

        roots.append(Path(get_package_share_directory("dino_perception")))
    except (ImportError, LookupError):
        pass
    return [*roots, Path(sys.prefix) / "share" / "dino_perception"]
