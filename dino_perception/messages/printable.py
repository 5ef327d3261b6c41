"""Text that came from outside, made safe to print."""

from __future__ import annotations

LONGEST = 600
"""Characters of one text; a hostile name may be megabytes long."""


def printable(text: object, longest: int = LONGEST) -> str:
    """The text with everything that a terminal or a log would act on (control characters, overrides of the writing
    direction, lone surrogates) written as an escape, and its middle left out when it is longer than `longest`."""
    text = str(text)
    if len(text) > longest:
        text = f"{text[: longest - longest // 4]} [...] {text[-(longest // 4) :]}"
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)
