"""Two protocols one above the other, step under step, with what differs marked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher
from itertools import zip_longest
from typing import Any

from tracer.protocol.model import Locking, Protocol, Step
from tracer.protocol.text import parts, text, words
from tracer.report.diff import Seen, bare

_WIDTH = 96
_GAP = "·"

Token = tuple[str, str]
"""What stands there, and what it is, whatever its lock states: tokens that are the same thing stand under each other."""


def _skeleton(protocol: Protocol) -> list[str]:
    """What it did besides locking, whoever held which lock."""
    return words(bare(step) for step in protocol.flat() if not isinstance(step, Locking))


def likeness(one: Protocol, other: Protocol) -> float:
    """How much two protocols of a function are alike: first in what they were about, then in what they did, then in how they locked."""
    pairs = (
        (parts(one)[0], parts(other)[0]),
        (_skeleton(one), _skeleton(other)),
        (words(one.flat()), words(other.flat())),
    )
    about, did, locked = (SequenceMatcher(None, *pair, autojunk=False).ratio() for pair in pairs)
    return 3 * about + 2 * did + locked


def nearest(own: Protocol, others: Sequence[Seen]) -> Seen | None:
    """The one that is most like it; of equals, the one that ran most."""
    return max(others, key=lambda other: (likeness(own, other.protocol), other.count), default=None)


def _head(protocol: Protocol) -> list[Token]:
    """The words of the context; of geometry and follows what they say is the state."""
    names = {"ok": "geometry", "anon=imported": "anon"}
    return [
        (f"[{word}]", names.get(word, word.partition("=")[0].partition(":")[0]))
        for word in parts(protocol)[0]
    ]


def _step(step: Step) -> Token:
    return words([step])[0], words([bare(step)])[0]


def _tail(protocol: Protocol) -> list[Token]:
    """How it ended: the states at return, where they are not those at entry, and the error."""
    line = text(protocol)
    left = f"→ {line.rpartition('→ ')[2]}" if "→ " in line else ""
    error = line.partition("]")[2].split()[0] if protocol.error else ""
    return [(word, kind) for word, kind in ((left, "left"), (error, "error")) if word]


def differences(seen: Protocol, legal: Protocol) -> list[dict[str, Any]]:
    """The runs of context, steps and end that are equal or differ, in order."""
    found = list[dict[str, Any]]()
    for of in (_head, lambda protocol: [_step(step) for step in protocol.steps], _tail):
        ours, theirs = of(seen), of(legal)
        matcher = SequenceMatcher(
            None, [kind for _, kind in ours], [kind for _, kind in theirs], autojunk=False
        )
        for op, a, b, c, d in matcher.get_opcodes():
            if op != "equal":  # unlike things stand beside each other
                found += [
                    {"op": "insert", "seen": [], "legal": [word for word, _ in theirs[c:d]]}
                ] * (d > c)
                found += [
                    {"op": "delete", "seen": [word for word, _ in ours[a:b]], "legal": []}
                ] * (b > a)
                continue
            for (own, _), (other, _) in zip(ours[a:b], theirs[c:d], strict=True):
                found.append(
                    {"op": "equal" if own == other else "replace", "seen": [own], "legal": [other]}
                )
    return found


def aligned(seen: Protocol, legal: Protocol, width: int = _WIDTH) -> list[str]:
    """Rows of three lines: seen, legal, and ^^^ under each step that differs."""
    columns = [
        (ours, theirs, run["op"] != "equal")
        for run in differences(seen, legal)
        for ours, theirs in zip_longest(run["seen"], run["legal"], fillvalue=_GAP)
    ]
    lines = []
    for row in _rows(columns, width):
        sizes = [max(len(ours), len(theirs)) for ours, theirs, _ in row]
        marks = [
            ("^" if differs else " ") * size
            for (_, _, differs), size in zip(row, sizes, strict=True)
        ]
        for name, cells in (
            ("seen ", [ours for ours, _, _ in row]),
            ("legal", [theirs for _, theirs, _ in row]),
            ("     ", marks),
        ):
            line = f"{name}  " + " ".join(
                cell.ljust(size) for cell, size in zip(cells, sizes, strict=True)
            )
            if line.strip():
                lines.append(line.rstrip())
    return lines


def _rows(
    columns: Sequence[tuple[str, str, bool]], width: int
) -> Iterator[list[tuple[str, str, bool]]]:
    row, used = list[tuple[str, str, bool]](), 0
    for column in columns:
        size = max(len(column[0]), len(column[1])) + 1
        if row and used + size > width:
            yield row
            row, used = [], 0
        row.append(column)
        used += size
    if row:
        yield row
