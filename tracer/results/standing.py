"""How a run stands: red, amber or green, with the reasons. Every output shows this decision.

Red: something is proven violated. Green: checks hold, and nothing is known that makes them worth
less. Amber: all else, with each reason in one sentence. A reason is also given where the colour is
red.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

STALE_SECONDS = 5.0
"""A snapshot older than this is not the present: a reader makes the judging loop take a new one at
once."""
STALLED_SECONDS = 60.0
"""A judging loop that is silent for this long hangs."""
UNVERIFIABLE_SHARE = 0.01
"""Of the checks of an invariant: above it, its silence says little (the same bound as the alert
RmapdChecksUnverifiable)."""
MOST_OUTSTANDING = 10_000
LEAST_GROWTH = 1_000
"""Migration entries that are outstanding at every look for a minute; and how many more in each of
three minutes."""


class Colour(enum.StrEnum):
    """The colours in rising order of alarm."""

    GREEN = "green"
    AMBER = "amber"
    RED = "red"

    @property
    def gauge(self) -> float:
        """The value of the metric: 0 green, 1 amber, 2 red."""
        return float(list(Colour).index(self))


class ReasonKind(enum.StrEnum):
    """The subject of a reason: a closed set, for metrics."""

    SUSPECT = "suspect"
    ENDED_EARLY = "ended_early"
    STALE = "stale"
    GATE = "gate"
    NOTHING = "nothing_checked"
    COVERAGE = "coverage"
    REQUIRED = "required"
    FIDELITY = "fidelity"
    HOOKS = "hooks"
    UNVERIFIABLE = "unverifiable"
    OUTSTANDING = "outstanding"
    LOST = "lost"


@dataclass(frozen=True)
class Facts:
    """All that the colour depends on.

    coverage: full, partial or none by invariant. checks: by invariant and verdict. off: hooks that
    are missing or denied, with the reason. taken_away: hooks that another program has switched off.
    outstanding: entries of a run that goes on; oldest_seconds: the age of the oldest; floors: the
    fewest of each of the last three minutes. unsettled: entries of a run that has ended; undecided:
    what else of it has no verdict, a sentence. stale: a sentence. gate_closed: of a daemon that
    still answers. ended_early: why, of each run that was cut short. killed: runs before the last
    one without an end.
    """

    coverage: Mapping[str, str]
    checks: Mapping[tuple[str, str], int]
    off: Mapping[str, str] = field(default_factory=dict)
    taken_away: Sequence[str] = ()
    lost: Mapping[str, int] = field(default_factory=dict)
    required: Sequence[str] = ()
    outstanding: int = 0
    oldest_seconds: float = 0.0
    age_limit_seconds: float = 10.0
    floors: Sequence[int] = ()
    unsettled: int = 0
    undecided: str = ""
    lowered_to: str = ""
    gate_closed: bool = False
    stale: str = ""
    ended_early: Sequence[str] = ()
    killed: int = 0

    def total(self, verdict: str) -> int:
        """Return the checks with this verdict."""
        return sum(count for (_, found), count in self.checks.items() if found == verdict)

    def having(self, verdict: str) -> list[str]:
        """Return the invariants with this verdict."""
        return sorted(
            name for (name, found), count in self.checks.items() if found == verdict and count
        )

    def at(self, *levels: str) -> list[str]:
        """Return the invariants with one of these levels of coverage."""
        return [name for name, level in self.coverage.items() if level in levels]


@dataclass(frozen=True)
class Standing:
    """The colour, and why.

    title: one sentence; it never claims that nothing is violated without the number of checks.
    coverage: a sentence.
    """

    colour: Colour
    title: str
    reasons: Mapping[ReasonKind, str]
    coverage: str

    def as_json(self) -> dict[str, object]:
        """Return it as reports have it."""
        reasons = [{"kind": kind.value, "text": text} for kind, text in self.reasons.items()]
        return {
            "colour": self.colour.value,
            "title": self.title,
            "reasons": reasons,
            "coverage": self.coverage,
        }

    def lines(self) -> list[str]:
        """Return lines for a terminal or a log: the colour as a word, then the reasons."""
        return [
            f"{self.colour.upper()}: {self.title}",
            *(f"  {text}" for text in self.reasons.values()),
        ]


def stand(facts: Facts) -> Standing:
    """Return the colour and its reasons."""
    reasons = {kind: text for kind, describe in _REASONS.items() if (text := describe(facts))}
    colour = Colour.RED if facts.having("violated") else Colour.AMBER if reasons else Colour.GREEN
    return Standing(colour, _title(facts, colour), reasons, _covered(facts))


def _title(facts: Facts, colour: Colour) -> str:
    for verdict, words in (("violated", "violated"), ("suspect", "under suspicion")):
        if invariants := facts.having(verdict):
            return f"{listed(invariants)} {words}"
    holds, unverifiable = facts.total("holds"), facts.total("unverifiable")
    if not holds and not facts.at("full", "partial"):
        return "Nothing is checked here"
    if not holds:
        return (
            f"None of {unverifiable:,} checks could be verified"
            if unverifiable
            else "Nothing was checked"
        )
    if colour is Colour.GREEN:
        return (
            f"Nothing violated in {holds:,} checks of {len(facts.at('full', 'partial'))} invariants"
        )
    return f"Not all is known: nothing violated in {holds:,} checks"


def _covered(facts: Facts) -> str:
    """Return how much is checked, in half a sentence."""
    full, part = len(facts.at("full")), len(facts.at("partial"))
    how = (
        f": {full} in full, {part} in part"
        if full and part
        else ", in full"
        if full
        else ", in part"
        if part
        else ""
    )
    return f"{full + part} of {len(facts.coverage)} invariants are checked here{how}"


def _suspect(facts: Facts) -> str:
    count = facts.total("suspect")
    are = "1 check is" if count == 1 else f"{count:,} checks are"
    return (
        f"{are} suspect: according to the events a rule was broken, and this could not be proven."
        if count
        else ""
    )


def _ended_early(facts: Facts) -> str:
    words = [f"The run ended early: {reason.rstrip('.')}." for reason in facts.ended_early]
    if facts.killed:
        runs = (
            "1 run before the last one has"
            if facts.killed == 1
            else f"{facts.killed} runs before the last one have"
        )
        words.append(f"{runs} no end: killed, and what was not judged then has no verdict.")
    return " ".join(words)


def _gate(facts: Facts) -> str:
    return "Recording has ended: this is what was found until then." if facts.gate_closed else ""


def _nothing(facts: Facts) -> str:
    if facts.checks and any(facts.checks.values()):
        return ""
    return "0 checks: no event that an invariant is about was recorded."


def _coverage(facts: Facts) -> str:
    none = facts.at("none")
    if 4 * len(none) <= len(facts.coverage) and facts.at("full"):
        return ""
    words = _covered(facts) + (f"; {len(none)} are not: {' '.join(none)}." if none else ".")
    why, count = next(iter(Counter(facts.off.values()).most_common(1)), ("", 0))
    return (
        f"{words} {count} of {len(facts.off)} missing hooks have one reason: {why}."
        if 2 * count > len(facts.off)
        else words
    )


def _required(facts: Facts) -> str:
    words = {"partial": "in part", "none": "not at all"}
    short = [
        f"{name} {words[level]}"
        for name in facts.required
        if (level := facts.coverage.get(name, "none")) in words
    ]
    return f"Required, and not checked in full: {', '.join(short)}." if short else ""


def _fidelity(facts: Facts) -> str:
    return (
        f"The governor has lowered fidelity to {facts.lowered_to}: less is probed than was asked"
        " for."
        if facts.lowered_to
        else ""
    )


def _hooks(facts: Facts) -> str:
    names = facts.taken_away
    some = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return f"Hooks were switched off by another program: {some}." if names else ""


def _unverifiable(facts: Facts) -> str:
    found = []
    for name in facts.having("unverifiable"):
        all_ = sum(count for (one, _), count in facts.checks.items() if one == name)
        count = facts.checks[name, "unverifiable"]
        if count > UNVERIFIABLE_SHARE * all_:
            found.append(f"{name} {count:,} of {all_:,}")
    return (
        f"Checks that could not be verified, more than {UNVERIFIABLE_SHARE:.0%} of all:"
        f" {', '.join(found)}."
        if found
        else ""
    )


def _outstanding(facts: Facts) -> str:
    if facts.unsettled or facts.undecided:
        left = f"{entries(facts.unsettled)} got no verdict." if facts.unsettled else ""
        return " ".join(filter(None, [left, facts.undecided]))
    there = f"{entries(facts.outstanding)} outstanding"
    if facts.oldest_seconds > facts.age_limit_seconds:
        return (
            f"{there}, the oldest for {facts.oldest_seconds:,.0f} s: longer than the age limit of"
            f" {facts.age_limit_seconds:g} s."
        )
    if facts.outstanding > MOST_OUTSTANDING and not facts.oldest_seconds:
        return f"{there}, and the ledger has no row of them: they get no verdict."
    floors = facts.floors
    if floors and all(later - sooner >= LEAST_GROWTH for sooner, later in pairwise(floors)):
        return (
            f"{there}, and the number grows: at least"
            f" {', then '.join(f'{floor:,}' for floor in floors)} in the last three minutes."
        )
    if floors and floors[-1] > MOST_OUTSTANDING:
        return f"{there}, and at least {floors[-1]:,} of them at every look of the last minute."
    return ""


def _lost(facts: Facts) -> str:
    """Return what was lost.

    Missed runs have a measure of their own: the checks they make unverifiable.
    """
    lost = {table: count for table, count in facts.lost.items() if count and table != "missed_runs"}
    if not lost:
        return ""
    tables = ", ".join(f"{table.replace('_', ' ')} {count:,}" for table, count in lost.items())
    return (
        f"{sum(lost.values()):,} events were lost, and what they were about is not checked:"
        f" {tables}."
    )


_REASONS: Mapping[ReasonKind, Callable[[Facts], str]] = {
    ReasonKind.SUSPECT: _suspect,
    ReasonKind.ENDED_EARLY: _ended_early,
    ReasonKind.STALE: lambda facts: facts.stale,
    ReasonKind.GATE: _gate,
    ReasonKind.NOTHING: _nothing,
    ReasonKind.COVERAGE: _coverage,
    ReasonKind.REQUIRED: _required,
    ReasonKind.FIDELITY: _fidelity,
    ReasonKind.HOOKS: _hooks,
    ReasonKind.UNVERIFIABLE: _unverifiable,
    ReasonKind.OUTSTANDING: _outstanding,
    ReasonKind.LOST: _lost,
}
"""In the order in which they are told: each returns its sentence, or nothing where it does not
apply."""


def entries(count: int) -> str:
    """Return `1 migration entry` or `N migration entries`."""
    return f"{count:,} migration {'entry' if count == 1 else 'entries'}"


def listed(words: Sequence[str]) -> str:
    """Return words as an English list: `a, b and c`."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def lost_text(lost: Mapping[str, int]) -> str:
    """Return what was lost, by what overflowed."""
    counts = (f"{kind.replace('_', ' ')} {count:,}" for kind, count in lost.items() if count)
    return ", ".join(counts) or "nothing"
