"""Two protocols one above the other, step under step, with what differs marked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher
from itertools import zip_longest
from typing import Any

from tracer.notation import parts, text, words
from tracer.protocol import Protocol

_WIDTH = 96
_GAP = "·"


def _tokens(protocol: Protocol) -> list[str]:
    """The words of the context, then the steps, then the states at return: as the text has them."""
    head, _ = parts(protocol)
    line = text(protocol)
    left = line.rpartition("→ ")[2] if "→ " in line else ""
    error = [word for word in line.partition("]")[2].split()[:1] if protocol.error]
    return [*(f"[{word}]" for word in head), *error, *words(protocol.steps), *([f"→ {left}"] if left else [])]


def differences(seen: Protocol, legal: Protocol) -> list[dict[str, Any]]:
    """The runs of steps that are equal or differ, in order."""
    ours, theirs = _tokens(seen), _tokens(legal)
    matcher = SequenceMatcher(None, ours, theirs, autojunk=False)
    return [{"op": op, "seen": ours[a:b], "legal": theirs[c:d]} for op, a, b, c, d in matcher.get_opcodes()]


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
        marks = [("^" if differs else " ") * size for (_, _, differs), size in zip(row, sizes, strict=True)]
        for name, cells in (("seen ", [ours for ours, _, _ in row]), ("legal", [theirs for _, theirs, _ in row]), ("     ", marks)):
            line = f"{name}  " + " ".join(cell.ljust(size) for cell, size in zip(cells, sizes, strict=True))
            if line.strip():
                lines.append(line.rstrip())
    return lines


def _rows(columns: Sequence[tuple[str, str, bool]], width: int) -> Iterator[list[tuple[str, str, bool]]]:
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
