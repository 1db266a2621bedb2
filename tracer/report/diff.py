"""`rmapd diff`: what one run's protocols have and another's have not, the most alarming first.

A protocol that only one run shows is set beside the nearest of the same function in the other. What is different by nature between two
kernels does not alarm: calls of functions that the other kernel does not have, lock classes that the function never takes there.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

from tracer.printable import printable
from tracer.protocol.model import (
    Call,
    Commit,
    Kind,
    Lock,
    Locking,
    Owner,
    Protocol,
    Step,
    TreeStep,
    Visit,
)
from tracer.protocol.text import parse, text, words
from tracer.report import model

_ENOUGH = 100  # windows of a function on either side, before their shares say anything
_TIMES = 10.0  # a share this many times another is told


class Grade(enum.IntEnum):
    """How alarming, the most first. Up to UNORDERED a kernel developer should look."""

    RULED = 1
    UNLOCKED = 2
    UNORDERED = 3
    STEPS = 4
    CONTEXT = 5
    RATE = 6
    FUNCTION = 7

    @property
    def alarms(self) -> bool:
        return self <= Grade.UNORDERED

    @property
    def says(self) -> str:
        return _SAYS[self]


_SAYS = {
    Grade.RULED: "ruled a violation or suspect",
    Grade.UNLOCKED: "a lock step is missing, or a lock is not held",
    Grade.UNORDERED: "locks are taken in another order",
    Grade.STEPS: "other steps",
    Grade.CONTEXT: "the same steps in a context not seen in the other",
    Grade.RATE: "another share of its function's windows",
    Grade.FUNCTION: "a function that only one has",
}


@dataclass(frozen=True)
class Seen:
    """A protocol as a report has it."""

    text: str
    count: int
    wrong: tuple[str, ...]
    protocol: Protocol

    @property
    def function(self) -> str:
        return self.protocol.window

    @property
    def same(self) -> str:
        """What makes it the same in two runs: not whether its window had to be rebuilt."""
        return text(replace(self.protocol, context=replace(self.protocol.context, rebuilt=False)))


@dataclass(frozen=True)
class ComparedRun:
    """What a report says of protocols. absent: functions that its kernel does not have, or does not let be probed, with the reason.
    unsampled: windows that were not booked: what is in one run only may be so by chance. why_none: why no window may have been seen."""

    name: str
    kernel: str
    seen: tuple[Seen, ...]
    windows: Mapping[str, int]
    absent: Mapping[str, str]
    unsampled: int = 0
    why_none: str = ""

    def of(self, function: str) -> list[Seen]:
        return [one for one in self.seen if one.function == function]

    def classes(self, function: str) -> set[Lock]:
        steps = (step for one in self.of(function) for step in one.protocol.flat())
        return {step.lock.family for step in steps if isinstance(step, Locking)}


@dataclass(frozen=True)
class Difference:
    """side: the run that has it. nearest: the other's nearest protocol of the same function."""

    grade: Grade
    side: str
    function: str
    text: str
    count: int
    nearest: str = ""
    why: str = ""


def read(path: Path) -> ComparedRun:
    """A report of `rmapd exec --report` or `rmapd protocols --save`. RmapdError where it is none."""
    report = model.as_given(path)
    hooks = {
        name: hook.reason
        for name, hook in report.hooks.items()
        if hook.state in ("missing", "denied")
    }
    seen = tuple(
        Seen(one.said, one.count, (*one.violates, *one.suspect), parse(one.said))
        for one in report.protocols
    )
    why_none = _why_none(report.fidelity, report.duration_seconds, hooks)
    return ComparedRun(
        path.name,
        report.kernel,
        seen,
        report.windows,
        hooks,
        sum(report.windows_unsampled.values()),
        why_none,
    )


def _why_none(fidelity: str, seconds: float, absent: Mapping[str, str]) -> str:
    """Why a run may have seen no window: its fidelity, what its kernel refuses, or that nothing happened."""
    if fidelity == "migration":
        return "at fidelity migration no window is recorded"
    reason, count = next(iter(Counter(absent.values()).most_common(1)), ("", 0))
    if 2 * count > len(absent):
        return f"{count} of its hooks are missing: {reason}"
    return f"no window ended in its {seconds:.3g} s"


def nothing_to_compare(a: ComparedRun, b: ComparedRun) -> str:
    """Why two runs cannot be compared: which side has no windows and why, or that no function is in both. Empty where they can be."""
    blind = [run for run in (a, b) if not run.seen]
    if blind:
        what = {run.name: "protocols" if run.windows else "windows" for run in blind}
        return " ".join(
            f"{run.name} ({run.kernel}) has no {what[run.name]}: {run.why_none}." for run in blind
        )
    ours, theirs = ({one.function for one in run.seen} for run in (a, b))
    if ours & theirs:
        return ""
    own, other = ", ".join(sorted(ours)), ", ".join(sorted(theirs))
    return f"No function is in both: {a.name} has windows of {own}; {b.name} of {other}."


def read_both(a: Path, b: Path) -> tuple[ComparedRun, ComparedRun]:
    """Two reports under names that tell them apart: those of the files, or their whole paths where those are the same."""
    ours, theirs = read(a), read(b)
    return (
        (replace(ours, name=str(a)), replace(theirs, name=str(b)))
        if ours.name == theirs.name
        else (ours, theirs)
    )


def compare(a: ComparedRun, b: ComparedRun) -> list[Difference]:
    """All differences, the most alarming first, then by count."""
    found = [*_only(a, b), *_only(b, a), *_rates(a, b)]
    return sorted(found, key=lambda d: (d.grade, -d.count, d.text))


def _only(a: ComparedRun, b: ComparedRun) -> Iterable[Difference]:
    """What a has and b has not."""
    known = {one.same for one in b.seen}
    for function in sorted({one.function for one in a.seen}):
        others, gone = b.of(function), b.absent
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
            if one.same in known:
                continue
            nearest = _nearest(one, others, gone, common)
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
    """Without calls of functions that the other does not have, and locks that the function never takes there."""
    return [
        step
        for step in steps
        if not (isinstance(step, Call) and step.window in absent)
        and not (isinstance(step, Locking) and step.lock.family not in classes)
    ]


def _nearest(
    one: Seen, others: Sequence[Seen], absent: Iterable[str], classes: set[Lock]
) -> Seen | None:
    own = words(_comparable(one.protocol.flat(), absent, classes))

    def near(other: Seen) -> tuple[bool, float, float, int]:
        ratio = SequenceMatcher(None, own, words(other.protocol.flat()), autojunk=False).ratio()
        heads = SequenceMatcher(
            None,
            one.text.partition("]")[0].split(),
            other.text.partition("]")[0].split(),
            autojunk=False,
        ).ratio()
        return not other.wrong, ratio, heads, other.count

    return max(others, key=near, default=None)


def _grade(one: Seen, nearest: Seen, a: ComparedRun, b: ComparedRun) -> tuple[Grade, str]:
    """How the protocol of `a` differs from its nearest of `b`."""
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
    """The lock steps and lock states that mine lacks, where it does something under locks and nothing else is different."""
    if not any(isinstance(step, TreeStep | Commit | Visit) for step in mine):
        return []
    (own, locking), (other, wanted) = _parted(mine), _parted(theirs)
    if [bare(step) for step in own] != [bare(step) for step in other]:
        return []
    differing = [(ours, their) for ours, their in zip(own, other, strict=True) if ours != their]
    lacking = Counter(words(wanted))
    lacking.subtract(Counter(words(locking)))
    if any(count < 0 for count in lacking.values()) or any(
        _held(ours) >= _held(their) for ours, their in differing
    ):
        return []
    return [*sorted(lacking.elements()), *words(their for _, their in differing)]


def _parted(steps: Sequence[Step]) -> tuple[list[Step], list[Step]]:
    """What is done, and the locking around it."""
    return [step for step in steps if not isinstance(step, Locking)], [
        step for step in steps if isinstance(step, Locking)
    ]


def bare(step: Step) -> Step:
    """Without the states of its locks."""
    match step:
        case TreeStep(tree, enters, owner) if owner is not None:
            return TreeStep(tree, enters, Owner.FREE)
        case Commit(parts):
            return Commit(tuple((part, Owner.FREE) for part, _ in parts))
        case Visit():
            return Visit(Owner.FREE)
    return step


def _held(step: Step) -> int:
    """How many of its locks are held for write, or by a walk at all."""
    match step:
        case TreeStep(_, _, owner):
            return int(owner is Owner.SELF)
        case Commit(parts):
            return sum(owner is Owner.SELF for _, owner in parts)
        case Visit(owner):
            return int(owner in (Owner.SELF, Owner.READ))
    return 0


def _acquired(steps: Iterable[Step]) -> list[str]:
    """The locks in the order in which they are waited for."""
    return [
        step.lock
        for step in steps
        if isinstance(step, Locking) and step.kind.blocks and step.kind is not Kind.DOWNGRADE_WRITE
    ]


def _rates(a: ComparedRun, b: ComparedRun) -> Iterable[Difference]:
    counts = {one.same: one.count for one in b.seen}
    for one in a.seen:
        whole, there = (
            sum(each.count for each in a.of(one.function)),
            sum(each.count for each in b.of(one.function)),
        )
        if one.same not in counts or min(whole, there) < _ENOUGH:
            continue
        ours, theirs = one.count / whole, counts[one.same] / there
        if (
            max(ours, theirs) >= _TIMES * min(ours, theirs)
            and max(ours, theirs) * min(whole, there) >= _ENOUGH
        ):
            side, count = (a.name, one.count) if ours > theirs else (b.name, counts[one.same])
            yield Difference(
                Grade.RATE,
                side,
                one.function,
                one.text,
                count,
                why=f"{ours:.2%} in {a.name}, {theirs:.2%} in {b.name}",
            )


def as_json(a: ComparedRun, b: ComparedRun, found: Sequence[Difference]) -> dict[str, Any]:
    """For machines."""
    rows = [
        {
            "grade": d.grade.name.lower(),
            "alarming": d.grade.alarms,
            "side": d.side,
            "function": d.function,
            "protocol": d.text,
        }
        | {"count": d.count, "nearest": d.nearest, "why": d.why}
        for d in found
    ]
    compared = {"comparable": not (why := nothing_to_compare(a, b)), "reason": why}
    return compared | {
        "a": {"file": a.name, "kernel": a.kernel},
        "b": {"file": b.name, "kernel": b.kernel},
        "differences": rows,
    }


def as_text(a: ComparedRun, b: ComparedRun, found: Sequence[Difference]) -> str:
    """For people: what alarms in full, of the rest a line each."""
    alarming = sum(d.grade.alarms for d in found)
    lines = [
        f"{run.name}: {run.kernel}, {len(run.seen)} protocols"
        + (f"; {run.unsampled:,} windows were not sampled" if run.unsampled else "")
        for run in (a, b)
    ]
    counted = f"{len(found)} differences, {alarming} of them alarming"
    why = nothing_to_compare(a, b)
    lines += (
        [f"There was nothing to compare. {why}"]
        if why and not alarming
        else [why, counted]
        if why
        else [counted]
    )
    grade = None
    for d in found:
        if d.grade is not grade:
            grade = d.grade
            lines += ["", f"{'!! ' if grade.alarms else ''}{grade.says}"]
        lines.append(
            f"{d.count:12,}  only {d.side}: {d.text}"
            if d.grade is not Grade.RATE
            else f"{d.count:12,}  {d.text}: {d.why}"
        )
        if d.grade is not Grade.RATE and d.why:
            lines.append(f"{'':14}{d.why}")
        if d.grade.alarms and d.nearest:
            lines.append(f"{'':14}nearest:   {d.nearest}")
    return "\n".join(map(printable, lines)) + "\n"
