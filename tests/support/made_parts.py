"""Parts of a page of docs that a program makes, between two comments."""

from __future__ import annotations


def replaced(text: str, begin: str, end: str, part: str) -> str:
    """Return the page with what is between two comments replaced.

    Raises ValueError where one of the comments is missing.
    """
    before, _, rest = text.partition(begin)
    _, _, after = rest.partition(end)
    if not after:
        raise ValueError(f"the page has no place between {begin} and {end}")
    return f"{before}{begin}\n\n{part}\n\n{end}{after}"
