"""The parameters of the API's paths, as openapi.json describes them: no second list exists."""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import parse_qsl

_MOST_FIELDS = 20
_ESCAPE = re.compile(r"%(?![0-9a-fA-F]{2})")


class BadQuery(Exception):
    """A query that a path cannot answer: what is wrong, why, and what to try."""

    def __init__(self, what: str, why: str, hint: str) -> None:
        super().__init__(what)
        self.what, self.why, self.hint = what, why, hint


class Parameters:
    """Reads queries. description: openapi.json."""

    def __init__(self, description: bytes) -> None:
        self._by_path: dict[str, dict[str, Mapping[str, Any]]] = {
            path.strip("/"): {
                one["name"]: one
                for one in operations["get"].get("parameters", ())
                if one["in"] == "query"
            }
            for path, operations in json.loads(description)["paths"].items()
        }

    @property
    def paths(self) -> frozenset[str]:
        """The paths without the slash at their beginning."""
        return frozenset(self._by_path)

    def read(self, path: str, query: str) -> dict[str, Any]:
        """Return the values of the query's parameters by name; an empty one is left out.

        BadQuery if the path has no such parameter, or if a value is not of the parameter's kind.
        """
        known, found = self._by_path[path], dict[str, Any]()
        seen: set[str] = set()
        for name, text in _split(query):
            if name not in known:
                raise _unknown(name, known)
            if name in seen:
                raise BadQuery(
                    f"the parameter {name!r} is given twice",
                    "a parameter has one value",
                    f"leave one {name} out",
                )
            seen.add(name)
            if text:
                found[name] = _value(known[name], text)
        return found


def _split(query: str) -> list[tuple[str, str]]:
    hint = "write each parameter as NAME=VALUE, with & between them and UTF-8 in %XX"
    if escape := _ESCAPE.search(query):
        raise BadQuery(
            "the query is not well formed",
            f"at {query[escape.start() : escape.start() + 3]!r}: two hexadecimal digits follow a %",
            hint,
        )
    try:
        return parse_qsl(
            query, keep_blank_values=True, max_num_fields=_MOST_FIELDS, errors="strict"
        )
    except UnicodeDecodeError:
        why = "its %XX are not UTF-8"
    except ValueError:
        why = f"it has more than {_MOST_FIELDS} parameters"
    raise BadQuery("the query is not well formed", why, hint)


def _unknown(name: str, known: Iterable[str]) -> BadQuery:
    names = list(known)
    like = difflib.get_close_matches(name, names, 1)
    return BadQuery(
        f"no such parameter: {name!r}",
        f"this path has the {'parameter' if len(names) == 1 else 'parameters'} {', '.join(names)}"
        if names
        else "this path has no parameters",
        f"{like[0]} in its place" if like else f"leave {name!r} out",
    )


def _value(parameter: Mapping[str, Any], text: str) -> Any:
    """Return the value of a text by the parameter's schema."""
    name, schema = parameter["name"], parameter["schema"]
    if choices := schema.get("enum"):
        if text not in choices:
            raise _invalid(name, text, f"it is one of {', '.join(choices)}")
        return text
    if schema["type"] == "number":
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise _invalid(name, text, f"it is a number: {parameter['description']}")
        return value
    if len(text) > schema.get("maxLength", math.inf):
        raise _invalid(name, f"{text[:20]}…", f"it has at most {schema['maxLength']} characters")
    return text


def _invalid(name: str, text: str, why: str) -> BadQuery:
    return BadQuery(
        f"the parameter {name!r} cannot be {text!r}", why, f"another value, or leave {name} out"
    )
