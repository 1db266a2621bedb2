"""Two protocols printed one above the other, step under step, with the differences marked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher
from itertools import zip_longest
from typing import Any

from tracer.protocol.model import Protocol, Step
from tracer.protocol.text import parts, text, words
from tracer.report.similarity import without_lock_states

_WIDTH = 96
_GAP = "·"

Token = tuple[str, str]
"""A printed word, and the same without lock states. Tokens with equal second parts are aligned."""


def _head(protocol: Protocol) -> list[Token]:
    """Return the words of the context; the values of geometry and follows count as states."""
    names = {"ok": "geometry", "anon=imported": "anon"}
    return [
        (f"[{word}]", names.get(word, word.partition("=")[0].partition(":")[0]))
        for word in parts(protocol)[0]
    ]


def _step(step: Step) -> Token:
    return words([step])[0], words([without_lock_states(step)])[0]


def _tail(protocol: Protocol) -> list[Token]:
    """Return the lock states at return, if they differ from those at entry, and the error."""
    line = text(protocol)
    left = f"→ {line.rpartition('→ ')[2]}" if "→ " in line else ""
    error = line.partition("]")[2].split()[0] if protocol.error else ""
    return [(word, kind) for word, kind in ((left, "left"), (error, "error")) if word]


def differences(seen: Protocol, legal: Protocol) -> list[dict[str, Any]]:
    """Compare context, steps and end of two protocols.

    Returns in order the parts that are equal or differ: `op` is equal, replace (the same action
    with other lock states), insert (only `legal` has it) or delete (only `seen` has it); `seen`
    and `legal` are the words of each.
    """
    found = list[dict[str, Any]]()
    for of in (_head, lambda protocol: [_step(step) for step in protocol.steps], _tail):
        ours, theirs = of(seen), of(legal)
        matcher = SequenceMatcher(
            None, [kind for _, kind in ours], [kind for _, kind in theirs], autojunk=False
        )
        for op, a, b, c, d in matcher.get_opcodes():
            if op != "equal":  # different actions get columns of their own
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
    """Return rows of three lines: seen, legal, and ^^^ under each step that differs."""
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
