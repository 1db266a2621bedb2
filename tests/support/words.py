"""Words that this project does not use, as patterns.

They are metaphors that only the authors know, and programs that speak like people. Each pattern
leaves ordinary uses alone (bookworm, runbook, `path.stem`, desktop, bare metal, the user
`nobody`). Identifiers count: `_` ends a word, so `entries_booked` is found. `way` (now: attach
method) is not listed as a word of prose, because it is plain English.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

_SPEAKS = r"(?:says?|said|saying|tells?|told|telling)"
_PROGRAMS = (
    r"(?:rmapd|doctor|daemon|checker|judge|kernel|verifier|log|page|report|recorder|oracle|metric"
    r"|tracepoint|event|step|steps|table|test|message|output|docstring|owner field|help)"
)


class Retired(NamedTuple):
    """A retired word: the pattern that finds it, and what to write instead."""

    pattern: re.Pattern[str]
    instead: str


def _word(forms: str, instead: str, *, after: str = "", before: str = "") -> Retired:
    """Return the pattern of a whole word or part of an identifier.

    forms: alternatives. after, before: look-ahead, and characters, that make it another word.
    """
    return Retired(
        re.compile(rf"(?<![a-zA-Z{before}])(?:{forms})(?![a-zA-Z]){after}", re.IGNORECASE), instead
    )


def _phrase(pattern: str, instead: str) -> Retired:
    return Retired(re.compile(rf"\b{pattern}\b", re.IGNORECASE), instead)


RETIRED = (
    _word("(?:un)?book(?:s|ed|ing)?", "record, recorded; tables"),
    _word("stems?", "probe object", before="."),  # path.stem is Python's
    _word("desks?|dockets?|courts?", "cases, queue, checker"),
    _word("scenes?", "object info"),
    Retired(  # patches are welcome
        re.compile(r"(?<!are )(?<!is )(?<!be )(?<![a-z])welcomes?(?![a-z])", re.IGNORECASE),
        "age limit (max_entry_age_seconds)",
    ),
    _word("patrol(?:s|led|ling)?", "periodic scan (scan_seconds)"),
    _word("resting", "paused"),
    _word("bare", "without evidence", after=r"(?![- ]metal)"),
    _word("heirs?", "inheriting VMA"),
    _word("keepers?", "reattach helper"),
    _word("pulses?", "liveness check; timeline"),
    _phrase(r"(?:come|comes|came|coming) by", "called from"),
    _phrase(r"(?:the|a|an|each|every|that|this|another) judge", "checker"),
    _phrase(r"somebody(?: else)?(?:'s)?", "the task, the caller, another program"),
    Retired(  # not people: "the developer who reads a report"
        re.compile(
            r"(?:(?<![a-z] )\b[Ww]ho|\b(?:task|process|thread|code|lock) who)"
            r" (?:waits?|asks|holds|reads|comes|goes|left|hangs|maps)\b"
        ),
        "a waiter, the caller, the task that",
    ),
    _phrase(rf"{_PROGRAMS} {_SPEAKS}", "reports, prints, shows"),
    Retired(re.compile(r"\bclass Way\b|\bWay\("), "attach method"),
)


def retired(text: str) -> Iterator[tuple[int, str, str]]:
    """Yield each use of a retired word: line number, the word, and what to write instead."""
    for number, line in enumerate(text.splitlines(), start=1):
        for word in RETIRED:
            for found in word.pattern.finditer(line):
                yield number, found.group(), word.instead
