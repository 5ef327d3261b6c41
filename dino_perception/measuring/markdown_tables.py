"""Tables of measured numbers in Markdown pages, put there by the command that measured them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table


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


def markdown(table: Table) -> list[str]:
    """The lines of a table that is also printed, its title as a paragraph above."""
    lines = [f"{table.title}:", ""] if table.title else []
    heads = [str(column.header) for column in table.columns]
    marks = ["---:" if column.justify == "right" else "---" for column in table.columns]
    rows = zip(*(map(str, column.cells) for column in table.columns))
    return lines + [f"| {' | '.join(cells)} |" for cells in (heads, marks, *rows)]
