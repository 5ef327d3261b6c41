"""Tables of measured numbers in Markdown pages, put there by the command that measured them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dino_perception import results

if TYPE_CHECKING:
    from rich.table import Table


class PageError(ValueError):
    """A page has no place for a table."""


def fill(page: Path, block: str, lines: Sequence[str]) -> None:
    """Put the lines between `<!-- block -->` and the `<!-- end -->` that follows it. Raises PageError."""
    text, start, end = _place(page, block)
    results.keep(page, text[:start] + "\n".join(lines) + "\n" + text[end:])


def check(page: Path | None, *blocks: str) -> None:
    """Before the work: that the page, where one is asked for, has a place for each of these tables. Raises PageError."""
    for block in blocks if page is not None else ():
        _place(page, block)


def _place(page: Path, block: str) -> tuple[str, int, int]:
    """The page's text, and where in it the table begins and ends."""
    mark = f"<!-- {block} -->\n"
    try:
        text = page.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise PageError(f"{page} is no UTF-8 text ({error.reason} at byte {error.start})") from None
    start = text.find(mark)
    end = text.find("<!-- end -->", start)
    if start < 0 or end < 0:
        raise PageError(f"{page} has no place for the table; put {mark.strip()} and <!-- end --> on lines of their own")
    return text, start + len(mark), end


def markdown(table: Table) -> list[str]:
    """The lines of a table that is also printed, its title as a paragraph above."""
    lines = [f"{table.title}:", ""] if table.title else []
    heads = [str(column.header) for column in table.columns]
    marks = ["---:" if column.justify == "right" else "---" for column in table.columns]
    rows = zip(*(map(str, column.cells) for column in table.columns))
    return lines + [f"| {' | '.join(cells)} |" for cells in (heads, marks, *rows)]
