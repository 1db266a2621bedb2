"""Escape names in text for people and terminals.

The owner of a task, a cgroup, a file or a symbol chooses its name: an escape sequence in it could
rewrite the terminal, a newline could forge a line of the log, U+202E could reverse what follows.

Data keeps exact values: evidence, the store, JSON. All code that makes text for people escapes them
with printable(). json_text() writes the same characters as JSON escapes: safe on a terminal, and
still exact for a parser.
"""

from __future__ import annotations

import json
import re
from typing import Any


def printable(text: str, keep: str = "") -> str:
    """Escape control, format and private characters and lone surrogates, as in `\\x1b`.

    Characters in `keep` stay. A backslash stays, too, so escaping twice changes nothing.
    """
    if text.isprintable():
        return text
    return "".join(
        one if one.isprintable() or one in keep else one.encode("unicode_escape").decode()
        for one in text
    )


def shown(value: Any) -> Any:
    """Return a JSON value with all its strings printable, names of members as well."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return {shown(name): shown(each) for name, each in value.items()}
    return [shown(each) for each in value] if isinstance(value, list | tuple) else value


def without_login(text: str) -> str:
    """Leave out of the URLs in a text what may be a secret: a login, and the query."""
    return _QUERY.sub(r"\1?…", _LOGIN.sub("…@", text))


_LOGIN = re.compile(r"(?<=://)[^/\s?#\"']*@")
_QUERY = re.compile(r"(?<=://)([^\s?#\"']*)\?[^\s#\"']*")


def json_text(
    value: Any, *, indent: int | None = 1, separators: tuple[str, str] | None = None
) -> str:
    """Encode as JSON; escape what controls a terminal, and leave other non-ASCII characters."""
    text = json.dumps(value, indent=indent, separators=separators, ensure_ascii=False)
    return text if text.isprintable() else _UNSAFE.sub(_escaped, text)


_UNSAFE = re.compile("[^ -~\n\u00a1-\u00ac\u00ae-\u00ff\u2190-\u21ff]")
"""Also matches safe characters that are rare in reports; _escaped() leaves those as they are."""


def _escaped(found: re.Match[str]) -> str:
    """Return the JSON escape, such as `\\u001b`; two surrogates beyond U+FFFF."""
    return found[0] if found[0].isprintable() else json.dumps(found[0])[1:-1]
