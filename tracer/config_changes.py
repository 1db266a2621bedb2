"""What differs between two configurations: for the log of a reload."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

from tracer.config import Config
from tracer.printable import without_login


class Change(NamedTuple):
    """The old and the new value of a key, without a login or a query that a URL has."""

    was: Any
    now: Any


def changes(before: Config, after: Config) -> dict[str, Change]:
    """Return the keys that differ, in the order of the configuration; `maps.KEY` of that table."""
    return _changes(before, after, "")


def _changes(before: msgspec.Struct, after: msgspec.Struct, table: str) -> dict[str, Change]:
    found: dict[str, Change] = {}
    for name in before.__struct_fields__:
        was, now = getattr(before, name), getattr(after, name)
        if isinstance(was, msgspec.Struct):
            found |= _changes(was, now, f"{table}{name}.")
        elif was != now:
            found[table + name] = Change(_shown(was), _shown(now))
    return found


def _shown(value: Any) -> Any:
    return without_login(value) if isinstance(value, str) else value


def as_text(found: Mapping[str, Change]) -> str:
    """Return the changes in a line, values as the configuration file has them."""
    return ", ".join(
        f"{name} {_as_toml(change.was)} -> {_as_toml(change.now)}" for name, change in found.items()
    )


def _as_toml(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def as_json(found: Mapping[str, Change]) -> dict[str, dict[str, Any]]:
    """Return the changes as JSON values: name -> was, now."""
    return {name: change._asdict() for name, change in found.items()}
