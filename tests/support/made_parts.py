"""Parts of a page of docs that a program makes, between two comments, and what they are made of."""

from __future__ import annotations

from pathlib import Path

import msgspec

from tracer import atomic_file


def keep(path: Path, values: object) -> None:
    """Write what is kept of guests as JSON, a value a line. Raises RmapdError."""
    text = msgspec.json.format(msgspec.json.encode(values), indent=1).decode()
    atomic_file.write(path, f"{text}\n", "what is kept of guests")


def replaced(text: str, begin: str, end: str, part: str) -> str:
    """Return the page with what is between two comments replaced.

    Raises ValueError where one of the comments is missing.
    """
    before, _, rest = text.partition(begin)
    _, _, after = rest.partition(end)
    if not after:
        raise ValueError(f"the page has no place between {begin} and {end}")
    return f"{before}{begin}\n\n{part}\n\n{end}{after}"
