"""The terminal that text goes to: its columns, whether it shows colours, styles, wrapped text."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Mapping
from typing import TextIO

NARROW = 80
"""Columns where the text goes to no terminal."""
_WIDE = 100
"""A paragraph of longer lines is hard to read, however wide the terminal is."""
_LEAST = 40
STANDING_STYLES: Mapping[str, str] = {"green": "green", "amber": "yellow", "red": "bold red"}
"""The style of each colour of a standing; the colour is written as a word, too."""
COVERAGE_STYLES: Mapping[str, str] = {"full": "green", "partial": "yellow", "none": "dim"}
"""The style of each level of coverage in a table."""


def is_terminal(stream: TextIO) -> bool:
    """Return whether the stream is a terminal; a closed one is none."""
    try:
        return stream.isatty()
    except ValueError:
        return False


def draws_on(stream: TextIO, environ: Mapping[str, str] = os.environ) -> bool:
    """Return whether the stream is a terminal that can move its cursor, and so erase a line."""
    return is_terminal(stream) and environ.get("TERM", "dumb") not in ("", "dumb")


def columns(stream: TextIO, most: int = _WIDE) -> int:
    """Return the columns to write to a stream: the terminal's, from 40 to `most`, else 80."""
    if not is_terminal(stream):
        return NARROW
    try:
        found = os.get_terminal_size(stream.fileno()).columns
    except (OSError, ValueError):
        found = 0
    return max(_LEAST, min(found or NARROW, most))


def shows_colour(stream: TextIO, environ: Mapping[str, str] = os.environ) -> bool:
    """Return whether to write colours: to a terminal that has some, unless NO_COLOR is not empty.

    See https://no-color.org.
    """
    wanted = not environ.get("NO_COLOR") and environ.get("TERM", "dumb") != "dumb"
    return wanted and is_terminal(stream)


def wrapped(text: str, width: int, indent: str = "    ") -> list[str]:
    """Break a line at its blanks into lines of at most `width` columns.

    A word that is longer than that has a line of its own, uncut, so that it can be copied. indent:
    of all lines but the first, which keeps its own.
    """
    if len(text) <= width:
        return [text]
    first = text[: len(text) - len(text.lstrip())]
    return textwrap.wrap(
        text.strip(),
        width,
        initial_indent=first,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    ) or [text]
