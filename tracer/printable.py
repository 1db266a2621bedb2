"""Text for people and terminals. A name (of a task, a cgroup, a file, a symbol) is whatever its owner chose: an escape sequence in it could
rewrite the terminal, a newline could forge a line of the log, U+202E could reverse what stands after it.

Data keeps exact values: evidence, the store, JSON. Every place that makes text for people escapes them by `printable()`. JSON writes the
same characters as its own escapes (`json_text()`): safe to look at, and still exact to read.
"""

from __future__ import annotations

import json
import re
from typing import Any


def printable(text: str, keep: str = "") -> str:
    """With `\\x1b`, `\\n`, `\\u202e` and so on in place of control, format and private characters and lone surrogates; `keep`: but these.

    A backslash stays as it is, so text that was escaped once does not change."""
    if text.isprintable():
        return text
    return "".join(
        one if one.isprintable() or one in keep else one.encode("unicode_escape").decode()
        for one in text
    )


def shown(value: Any) -> Any:
    """A JSON value with every text in it printable, names of members as well."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return {shown(name): shown(each) for name, each in value.items()}
    return [shown(each) for each in value] if isinstance(value, list | tuple) else value


def json_text(
    value: Any, *, indent: int | None = 1, separators: tuple[str, str] | None = None
) -> str:
    """JSON as UTF-8 readers like it (arrows stay arrows), without a character that a terminal would obey."""
    said = json.dumps(value, indent=indent, separators=separators, ensure_ascii=False)
    return said if said.isprintable() else _UNSAFE.sub(_escaped, said)


_UNSAFE = re.compile("[^ -~\n\u00a1-\u00ac\u00ae-\u00ff\u2190-\u21ff]")
"""And some that are safe, but none that is printed often: arrows are."""


def _escaped(found: re.Match[str]) -> str:
    """As JSON has it: `\\u001b`, and two surrogates beyond U+FFFF."""
    return found[0] if found[0].isprintable() else json.dumps(found[0])[1:-1]
