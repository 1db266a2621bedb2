"""Protocols as HTML, for reports and for the daemon's pages: steps by kind, and differences."""

from __future__ import annotations

import re

from markupsafe import Markup, escape

from tracer.protocol.text import ACQUIRED, RELEASED
from tracer.report.alignment import differences
from tracer.report.similarity import ObservedProtocol

_WORD = re.compile(r"commit\([^)]*\)|\S+")


def one_line(line: str) -> Markup:
    """Mark up a protocol, so that acquisitions, releases and commits look different."""
    head, bracket, steps = line.partition("]")
    function, _, context = head.partition("[")
    out = Markup("<b>{}</b>").format(function)
    out += Markup("<i>[{}]</i> ").format(context) if bracket else Markup("")
    return out + Markup(" ").join(_step(word) for word in _WORD.findall(steps))


def compared(seen: ObservedProtocol, legal: ObservedProtocol) -> tuple[Markup, Markup]:
    """Return both protocols with the steps marked that only one of them has."""
    heads: dict[str, list[Markup]] = {"seen": [], "legal": []}
    steps: dict[str, list[Markup]] = {"seen": [], "legal": []}
    for run in differences(seen.protocol, legal.protocol):
        for side in ("seen", "legal"):
            for word in run[side]:
                is_head = word.startswith("[")
                one = escape(word[1:-1]) if is_head else _step(word)
                if run["op"] != "equal":
                    one = Markup('<mark class="{}">{}</mark>').format(side, one)
                (heads if is_head else steps)[side].append(one)
    return _whole(seen, heads["seen"], steps["seen"]), _whole(legal, heads["legal"], steps["legal"])


def _whole(one: ObservedProtocol, head: list[Markup], steps: list[Markup]) -> Markup:
    blank = Markup(" ")
    return Markup("<b>{}</b><i>[{}]</i> {}").format(
        one.function, blank.join(head), blank.join(steps)
    )


def _step(word: str) -> Markup:
    kind = (
        "take"
        if ACQUIRED in word
        else "give"
        if RELEASED in word
        else "commit"
        if word.startswith("commit")
        else ""
    )
    return Markup('<span class="{}">{}</span>').format(kind, word) if kind else escape(word)
