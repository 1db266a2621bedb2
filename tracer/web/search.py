"""Search protocols by words, function and verdict. The text of each protocol is made only once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from tracer.invariants.verdict import Ruling
from tracer.protocol.model import Protocol
from tracer.results.json_form import protocol_json
from tracer.results.protocols import ProtocolVerdict
from tracer.results.snapshot import Snapshot

PAGE = 50
_KEPT = 8192
RULED = ("violated", "suspect", "unverifiable", "clean")
_KEYS = {"violated": "violates", "suspect": "suspect", "unverifiable": "unverifiable"}


@dataclass(frozen=True)
class Query:
    """A query; an empty member matches everything.

    words: must all be in the protocol's text or its ASCII form, in any case.
    """

    words: tuple[str, ...] = ()
    function: str = ""
    ruled: str = ""
    page: int = 1

    @classmethod
    def of(cls, fields: Mapping[str, str]) -> Query:
        """Return the query of a form; invalid values match everything."""
        page = fields.get("page", "")
        number = int(page) if page.isascii() and page.isdigit() and len(page) < 6 else 1
        ruled = fields.get("ruled", "")
        words = tuple(fields.get("q", "")[:200].casefold().split())
        return cls(
            words, fields.get("function", ""), ruled if ruled in RULED else "", max(1, number)
        )


@dataclass(frozen=True)
class Page:
    """One page of the `found` results."""

    rows: Sequence[Mapping[str, Any]]
    found: int
    number: int

    @property
    def last(self) -> int:
        """The number of the last page, from 1."""
        return max(1, -(-self.found // PAGE))


class Search:
    """Searches the protocols of a snapshot, and caches their texts."""

    def __init__(self) -> None:
        self._made = lru_cache(_KEPT)(self._make)

    @staticmethod
    def _make(
        protocol: Protocol, rulings: tuple[tuple[str, Ruling], ...]
    ) -> tuple[dict[str, Any], str]:
        made = protocol_json(ProtocolVerdict(protocol, 0, dict(rulings)))
        return made, f"{made['text']} {made['ascii']}".casefold()

    def everything(self, s: Snapshot) -> list[dict[str, Any]]:
        """Return all protocols by function, the most frequent first, as a report has them."""
        return [
            row
            for row, _ in self._rows(
                sorted(s.protocols, key=lambda one: (one.protocol.window, -one.windows))
            )
        ]

    def _rows(self, protocols: Iterable[ProtocolVerdict]) -> Iterable[tuple[dict[str, Any], str]]:
        for one in protocols:
            made, text = self._made(one.protocol, tuple(one.rulings.items()))
            yield made | {"count": one.windows}, text

    def all_found(self, s: Snapshot, query: Query) -> list[dict[str, Any]]:
        """Return all protocols that match, the most frequent first."""
        chosen = (one for one in s.protocols if query.function in ("", one.protocol.window))
        rows = [
            row
            for row, text in self._rows(chosen)
            if all(word in text for word in query.words) and _is(row, query.ruled)
        ]
        return sorted(rows, key=lambda row: (-row["count"], row["text"]))

    def page(self, s: Snapshot, query: Query) -> Page:
        """Return the page of the result that the query asks for, or the last one."""
        found = self.all_found(s, query)
        page = Page((), len(found), query.page)
        number = min(page.number, page.last)
        return replace(page, rows=found[(number - 1) * PAGE : number * PAGE], number=number)


def _is(row: Mapping[str, Any], ruled: str) -> bool:
    if ruled == "clean":
        return not any(row[key] for key in _KEYS.values())
    return not ruled or bool(row[_KEYS[ruled]])
