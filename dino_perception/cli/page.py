"""Tables of measured numbers in Markdown pages, put there by the command that measured them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


class PageError(ValueError):
    """A page has no place for a table."""


def fill(page: Path, block: str, lines: Sequence[str]) -> None:
    """Put the lines between `<!-- block -->` and the `<!-- end -->` that follows it. Raises PageError."""
    mark = f"<!-- {block} -->\n"
    text = page.read_text()
    start = text.find(mark)
    end = text.find("<!-- end -->", start)
    if start < 0 or end < 0:
        raise PageError(f"{page} has no place for the table; put {mark.strip()} and <!-- end --> on lines of their own")
    page.write_text(text[: start + len(mark)] + "\n".join(lines) + "\n" + text[end:])
