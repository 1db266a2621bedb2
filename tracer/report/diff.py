"""`rmapd diff`: compare the protocols of two runs, the most alarming difference first.

A protocol that only one run has is compared with the most similar one of the same function in the
other run. Expected differences between two kernels raise no alarm: calls of functions that the
other kernel does not have, and lock classes that the function never takes there.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from pathlib import Path

from tracer.protocol.model import (
    Call,
    Commit,
    Kind,
    Lock,
    Locking,
    Owner,
    Step,
    TreeStep,
    Visit,
)
from tracer.protocol.text import parse, words
from tracer.report.load import read_report
from tracer.report.similarity import ObservedProtocol, without_lock_states

_MIN_WINDOWS = 100
"""Shares of a function are compared if both runs have this many windows of it."""
_MIN_FACTOR = 10.0
"""Two shares of a protocol are reported if one is at least this many times the other."""


class Grade(enum.IntEnum):
    """How alarming a difference is, the most alarming first.

    Grades up to UNORDERED need a kernel developer's attention.
    """

    RULED = 1
    UNLOCKED = 2
    UNORDERED = 3
    STEPS = 4
    CONTEXT = 5
    RATE = 6
    FUNCTION = 7

    @property
    def alarms(self) -> bool:
        """Whether `rmapd diff` exits with 3 because of it."""
        return self <= Grade.UNORDERED

    @property
    def heading(self) -> str:
        """The line above the differences of this grade."""
        return _HEADINGS[self]


_HEADINGS = {
    Grade.RULED: "violated or suspect protocol",
    Grade.UNLOCKED: "a lock operation is missing, or a lock is not held",
    Grade.UNORDERED: "locks are taken in a different order",
    Grade.STEPS: "different steps",
    Grade.CONTEXT: "the same steps in a context that the other run does not have",
    Grade.RATE: "a different share of the function's windows",
    Grade.FUNCTION: "a function that only one run has",
}


@dataclass(frozen=True)
class ComparedRun:
    """The protocols of one report.

    absent: functions that the kernel does not have or cannot hook, with the reason. unsampled: the
    number of windows that were not recorded, so that a protocol may be missing by chance.
    why_none: why the run may have no windows.
    """

    name: str
    kernel: str
    protocols: tuple[ObservedProtocol, ...]
    windows: Mapping[str, int]
    absent: Mapping[str, str]
    unsampled: int = 0
    why_none: str = ""

    def of(self, function: str) -> list[ObservedProtocol]:
        """Return the protocols of a function."""
        return [one for one in self.protocols if one.function == function]

    def classes(self, function: str) -> set[Lock]:
        """Return the lock classes that a function takes or releases in this run."""
        steps = (step for one in self.of(function) for step in one.protocol.flat())
        return {step.lock.family for step in steps if isinstance(step, Locking)}


@dataclass(frozen=True)
class Difference:
    """One difference.

    side: the name of the run that has the protocol `text`. nearest: the most similar protocol of
    the same function in the other run.
    """

    grade: Grade
    side: str
    function: str
    text: str
    count: int
    nearest: str = ""
    why: str = ""


def read(path: Path) -> ComparedRun:
    """Read the protocols of a report; RmapdError if the file is no report of rmapd."""
    report = read_report(path).exact_report
    hooks = {
        name: hook.reason
        for name, hook in report.hooks.items()
        if hook.state in ("missing", "denied")
    }
    protocols = tuple(
        ObservedProtocol(one.line, one.count, (*one.violates, *one.suspect), parse(one.line))
        for one in report.protocols
    )
    why_none = _why_none(report.fidelity, report.duration_seconds, hooks)
    return ComparedRun(
        path.name,
        report.kernel,
        protocols,
        report.windows,
        hooks,
        sum(report.windows_unsampled.values()),
        why_none,
    )


def _why_none(fidelity: str, seconds: float, absent: Mapping[str, str]) -> str:
    """Return why a run may have no windows: fidelity, missing hooks, or an idle machine."""
    if fidelity == "migration":
        return "at fidelity migration no window is recorded"
    reason, count = next(iter(Counter(absent.values()).most_common(1)), ("", 0))
    if 2 * count > len(absent):
        return f"{count} of its hooks are missing: {reason}"
    return f"no window ended in its {seconds:.3g} s"


def nothing_to_compare(a: ComparedRun, b: ComparedRun) -> str:
    """Return why two runs cannot be compared, or an empty text if they can.

    Either a run has no windows, or the two have no function in common.
    """
    empty = [run for run in (a, b) if not run.protocols]
    if empty:
        what = {run.name: "protocols" if run.windows else "windows" for run in empty}
        return " ".join(
            f"{run.name} ({run.kernel}) has no {what[run.name]}: {run.why_none}." for run in empty
        )
    ours, theirs = ({one.function for one in run.protocols} for run in (a, b))
    if ours & theirs:
        return ""
    own, other = ", ".join(sorted(ours)), ", ".join(sorted(theirs))
    return f"No function is in both: {a.name} has windows of {own}; {b.name} of {other}."


def read_both(a: Path, b: Path) -> tuple[ComparedRun, ComparedRun]:
    """Read two reports and name them by their files, or by their paths if the names are equal."""
    ours, theirs = read(a), read(b)
    return (
        (replace(ours, name=str(a)), replace(theirs, name=str(b)))
        if ours.name == theirs.name
        else (ours, theirs)
    )


def compare(a: ComparedRun, b: ComparedRun) -> list[Difference]:
    """Return all differences, the most alarming first, then by count."""
    found = [*_only(a, b), *_only(b, a), *_rates(a, b)]
    return sorted(found, key=lambda d: (d.grade, -d.count, d.text))


def _only(a: ComparedRun, b: ComparedRun) -> Iterable[Difference]:
    """Yield what only `a` has: functions and protocols."""
    known = {one.identity for one in b.protocols}
    for function in sorted({one.function for one in a.protocols}):
        others, absent = b.of(function), b.absent
        if not others and function != "outside":
            count = a.windows.get(function, sum(one.count for one in a.of(function)))
            yield Difference(
                Grade.FUNCTION,
                a.name,
                function,
                f"{function}()",
                count,
                why=b.absent.get(function, "it did not run there"),
            )
        common = b.classes(function)
        for one in a.of(function):
            if one.identity in known:
                continue
            nearest = _most_similar(one, others, absent, common)
            if one.wrong:
                why = f"violates {', '.join(one.wrong)}"
                yield Difference(
                    Grade.RULED,
                    a.name,
                    function,
                    one.text,
                    one.count,
                    nearest.text if nearest else "",
                    why,
                )
            elif nearest:
                grade, why = _grade(one, nearest, a, b)
                yield Difference(grade, a.name, function, one.text, one.count, nearest.text, why)


def _comparable(steps: Sequence[Step], absent: Iterable[str], classes: set[Lock]) -> list[Step]:
    """Drop calls of functions that the other kernel lacks, and lock classes never taken there."""
    return [
        step
        for step in steps
        if not (isinstance(step, Call) and step.window in absent)
        and not (isinstance(step, Locking) and step.lock.family not in classes)
    ]


def _most_similar(
    one: ObservedProtocol,
    others: Sequence[ObservedProtocol],
    absent: Iterable[str],
    classes: set[Lock],
) -> ObservedProtocol | None:
    """Return the most similar protocol, a legal one if there is any."""
    own = words(_comparable(one.protocol.flat(), absent, classes))

    def rank(other: ObservedProtocol) -> tuple[bool, float, float, int]:
        steps = SequenceMatcher(None, own, words(other.protocol.flat()), autojunk=False).ratio()
        heads = SequenceMatcher(
            None,
            one.text.partition("]")[0].split(),
            other.text.partition("]")[0].split(),
            autojunk=False,
        ).ratio()
        return not other.wrong, steps, heads, other.count

    return max(others, key=rank, default=None)


def _grade(
    one: ObservedProtocol, nearest: ObservedProtocol, a: ComparedRun, b: ComparedRun
) -> tuple[Grade, str]:
    """Return how a protocol of `a` differs from the most similar one of `b`, and a reason."""
    mine = _comparable(one.protocol.flat(), b.absent, b.classes(one.function))
    theirs = _comparable(nearest.protocol.flat(), a.absent, a.classes(one.function))
    if mine == theirs:
        return Grade.CONTEXT, ""
    if lost := _missing(mine, theirs):
        return Grade.UNLOCKED, f"without {' '.join(lost)}"
    if (first := _acquired(mine)) != (other := _acquired(theirs)) and Counter(first) == Counter(
        other
    ):
        return Grade.UNORDERED, f"{' '.join(first)}, not {' '.join(other)}"
    return Grade.STEPS, ""


def _missing(mine: Sequence[Step], theirs: Sequence[Step]) -> list[str]:
    """Return the lock operations and lock states that only `theirs` has.

    Empty unless `mine` changes or walks a tree and the actions of both are the same: a window that
    returned early needs no locks.
    """
    if not any(isinstance(step, TreeStep | Commit | Visit) for step in mine):
        return []
    (own, locking), (other, wanted) = _split(mine), _split(theirs)
    if [without_lock_states(step) for step in own] != [without_lock_states(step) for step in other]:
        return []
    differing = [(ours, their) for ours, their in zip(own, other, strict=True) if ours != their]
    lacking = Counter(words(wanted))
    lacking.subtract(Counter(words(locking)))
    if any(count < 0 for count in lacking.values()) or any(
        _held(ours) >= _held(their) for ours, their in differing
    ):
        return []
    return [*sorted(lacking.elements()), *words(their for _, their in differing)]


def _split(steps: Sequence[Step]) -> tuple[list[Step], list[Step]]:
    """Split steps into actions and lock operations."""
    return [step for step in steps if not isinstance(step, Locking)], [
        step for step in steps if isinstance(step, Locking)
    ]


def _held(step: Step) -> int:
    """Return how many locks of the step are held as needed: for write; by a walk also for read."""
    match step:
        case TreeStep(_, _, owner):
            return int(owner is Owner.SELF)
        case Commit(parts):
            return sum(owner is Owner.SELF for _, owner in parts)
        case Visit(owner):
            return int(owner in (Owner.SELF, Owner.READ))
    return 0


def _acquired(steps: Iterable[Step]) -> list[str]:
    """Return the locks in the order of the acquisitions that may block."""
    return [
        step.lock
        for step in steps
        if isinstance(step, Locking) and step.kind.blocks and step.kind is not Kind.DOWNGRADE_WRITE
    ]


def _rates(a: ComparedRun, b: ComparedRun) -> Iterable[Difference]:
    """Yield protocols of both runs with very different shares of their function's windows."""
    counts = {one.identity: one.count for one in b.protocols}
    for one in a.protocols:
        whole, there = (
            sum(each.count for each in a.of(one.function)),
            sum(each.count for each in b.of(one.function)),
        )
        if one.identity not in counts or min(whole, there) < _MIN_WINDOWS:
            continue
        ours, theirs = one.count / whole, counts[one.identity] / there
        if (
            max(ours, theirs) >= _MIN_FACTOR * min(ours, theirs)
            and max(ours, theirs) * min(whole, there) >= _MIN_WINDOWS
        ):
            side, count = (a.name, one.count) if ours > theirs else (b.name, counts[one.identity])
            yield Difference(
                Grade.RATE,
                side,
                one.function,
                one.text,
                count,
                why=f"{ours:.2%} in {a.name}, {theirs:.2%} in {b.name}",
            )
