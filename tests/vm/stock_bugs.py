"""Bugs of stock kernels (stock_bugs.toml): run their workloads, and write what was found.

usage: python -m tests.vm.stock_bugs [-k KERNEL]... NUMBER...     (root; boots guests)
       python -m tests.vm.stock_bugs --all
       python -m tests.vm.stock_bugs --tables

Runs the rows of these numbers, or all that have a workload, on each of their kernels or on those of
-k, keeps the results in stock_bugs.json beside the rows, and writes the tables of DETECTION.md
anew. --tables boots no guest. Exits with 1 if a guest failed or a run gave what its row denies.
"""

from __future__ import annotations

import argparse
import datetime
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from tests.support import made_parts
from tests.vm.guest import ROOT, GuestError, Result, run

ROWS = Path(__file__).parent / "stock_bugs.toml"
RESULTS = ROWS.with_suffix(".json")
PAGE = ROOT / "docs/measurements/DETECTION.md"
_BEGINS = re.compile(r"^(begins|moves|struck) ([\d.]+)", re.MULTILINE)
"""When the workload begins, and where it knows it, when it did what the bug needs."""
WRONG = ("violated", "suspect")


class Bug(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One row of stock_bugs.toml, which describes the members."""

    number: int
    name: str
    versions: str
    what: str
    workload: str = ""
    nodes: int = 1
    seconds: int = 0
    one_thread: bool = False
    within: float = 0
    found: tuple[str, ...] = ()
    also: tuple[str, ...] = ()
    function: str = ""
    bad: tuple[str, ...] = ()
    good: tuple[str, ...] = ()
    could: str = ""
    missing: str = ""
    cannot: str = ""


class Found(msgspec.Struct, frozen=True):
    """What one invariant found.

    seconds: from the workload's beginning, or from the strike, to the first finding. function: that
    it is attributed to. culprit: the function that the trail, or the evidence, points at.
    """

    count: int
    seconds: float
    function: str
    culprit: str
    summary: str


class Outcome(msgspec.Struct, frozen=True):
    """What one run of a bug's workload on one kernel gave.

    release: of the kernel. found: by invariant. holds: checks that hold, by invariant that the row
    names. gap: the longest time between two ticks of the checker, in seconds.
    """

    number: int
    kernel: str
    release: str
    date: str
    found: dict[str, Found]
    holds: dict[str, int]
    gap: float


class _File(msgspec.Struct, forbid_unknown_fields=True):
    bug: list[Bug]


def rows() -> list[Bug]:
    return msgspec.toml.decode(ROWS.read_bytes(), type=_File).bug


def outcomes() -> list[Outcome]:
    return msgspec.json.decode(RESULTS.read_bytes(), type=list[Outcome])


def walk(bug: Bug, kernel: str) -> tuple[Outcome, dict[str, Any], Result]:
    """Run the workload on the kernel under `rmapd exec`; return also the report.

    Raises GuestError where the kernel dies, or where there is no report.
    """
    limit = f"--timeout {bug.seconds} --grace 3 " if bug.seconds else ""
    workload = f"echo begins $(date +%s.%N); exec python -m tests.workloads.{bug.workload}"
    command = f"rmapd exec {limit}--report $OUT/r.json -- sh -c '{workload}'; echo exit $?"
    result = run(
        kernel,
        command,
        nodes=bug.nodes,
        label=f"bug-{bug.number}",
        timeout=1500,
        expect_bug="K1" in bug.found and kernel in bug.bad,
        one_thread=bug.one_thread,
    )
    report = result.report()
    return outcome_of(bug, kernel, report, result.output), report, result


def outcome_of(bug: Bug, kernel: str, report: dict[str, Any], output: str) -> Outcome:
    """Return what a run gave. output: of the workload and of `rmapd exec`."""
    told = dict(_BEGINS.findall(output))
    begun = float(told.get("struck") or told.get("moves") or told["begins"])
    found = dict[str, Found]()
    for violation in sorted(report["violations"], key=lambda one: str(one["first_seen"])):
        if violation["verdict"] not in WRONG:
            continue
        name, seen = violation["invariant"], violation["first_seen"]
        first = found.get(name) or Found(
            0,
            round(datetime.datetime.fromisoformat(seen).timestamp() - begun, 2),
            violation["function"],
            _culprit(violation),
            violation["summary"],
        )
        found[name] = msgspec.structs.replace(first, count=first.count + violation["count"])
    holds = {name: report["invariants"][name]["checks"]["holds"] for name in bug.found}
    gap = round(report["overhead"]["longest_tick_gap_seconds"], 2)
    return Outcome(bug.number, kernel, report["kernel"], _today(), found, holds, gap)


def _today() -> str:
    return datetime.datetime.now(datetime.UTC).date().isoformat()


def _culprit(violation: dict[str, Any]) -> str:
    marked = (step["function"] for step in violation["trail"] if step.get("marked"))
    return str(next(marked, violation["evidence"].get("culprit", {}).get("function", "")))


def keep(new: Outcome) -> None:
    """Keep an outcome beside the rows; it replaces that of the same bug on the same kernel."""
    known = outcomes() if RESULTS.exists() else []
    kept = [one for one in known if (one.number, one.kernel) != (new.number, new.kernel)]
    ordered = sorted([*kept, new], key=lambda one: (one.number, one.kernel))
    made_parts.keep(RESULTS, ordered)


def _results(bug: Bug, results: Iterable[Outcome]) -> Iterable[str]:
    for one in results:
        if one.number != bug.number:
            continue
        if one.kernel in bug.good:
            wrong = "; ".join(f"{name} ×{found.count}" for name, found in one.found.items())
            yield _line(bug, one, wrong or "silent")
        for name, found in one.found.items():
            if one.kernel in bug.bad and name in bug.found:
                yield _line(
                    bug,
                    one,
                    f"{name} ×{found.count:,}",
                    f"{found.seconds:.1f} s",
                    f"`{found.function}()`",
                    f"`{found.culprit}()`" if found.culprit else "no function",
                    found.summary.replace("|", "\\|"),
                )


def _line(bug: Bug, one: Outcome, found: str, *more: str) -> str:
    cells = [str(bug.number), one.release, found, *more]
    return f"| {' | '.join([*cells, *[''] * (7 - len(cells))])} |"


def tried(bugs: Sequence[Bug], results: Sequence[Outcome]) -> str:
    """Return the table of what was run."""
    columns = ("#", "kernel", "found", "after", "function", "the trail points at", "the finding")
    lines = [f"| {' | '.join(columns)} |", "|" + "-|" * len(columns)]
    for bug in bugs:
        lines += _results(bug, results)
    return "\n".join(lines)


def _shown(bug: Bug) -> str:
    if bug.workload:
        fixed = f"; silent on {', '.join(bug.good)}" if bug.good else ""
        return (
            f"**shown** by {' and '.join(bug.found)} on {', '.join(bug.bad)}{fixed}"
            f" (`{bug.workload.split()[0]}.py`)"
        )
    return f"could be shown {bug.could}; missing: {bug.missing}" if bug.could else bug.cannot


def every(bugs: Sequence[Bug]) -> str:
    """Return the table of all bugs, and the score."""
    lines = ["| # | bug | versions | shown? |", "|-|-|-|-|"]
    for bug in bugs:
        cannot = "cannot: " if bug.cannot else ""
        lines.append(
            f"| {bug.number} | {bug.name}: {bug.what} | {bug.versions} | {cannot}{_shown(bug)} |"
        )
    return "\n".join([*lines, "", score(bugs)])


def score(bugs: Sequence[Bug]) -> str:
    shown, could = sum(bool(b.workload) for b in bugs), sum(bool(b.could) for b in bugs)
    return (
        f"Of {len(bugs)}: {shown} shown, {could} could be shown,"
        f" {len(bugs) - shown - could} cannot be shown."
    )


def page(text: str, parts: dict[str, str]) -> str:
    """Return the page with each part between its two comments replaced."""
    for name, part in parts.items():
        begin, end = f"<!-- {name}: made by tests.vm.stock_bugs -->", f"<!-- end of {name} -->"
        text = made_parts.replaced(text, begin, end, part)
    return text


def write_page() -> None:
    PAGE.write_text(page(PAGE.read_text(), parts()))


def parts() -> dict[str, str]:
    bugs = rows()
    return {"tried": tried(bugs, outcomes()), "every bug": every(bugs)}


def as_expected(bug: Bug, outcome: Outcome) -> bool:
    """Return whether a bad kernel violates what the row names, and a good one none of it."""
    expected = {*bug.found} if outcome.kernel in bug.bad else set()
    return {*outcome.found} - {*bug.also} == expected


def planned(numbers: Sequence[int], kernels: Sequence[str]) -> list[tuple[Bug, str]]:
    """Return what is to be run. Both are empty for all; a kernel counts in rows that name it."""
    return [
        (bug, kernel)
        for bug in rows()
        if bug.workload and (not numbers or bug.number in numbers)
        for kernel in (*bug.bad, *bug.good)
        if not kernels or kernel in kernels
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.vm.stock_bugs", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.usage = argparse.SUPPRESS
    parser.add_argument("numbers", type=int, nargs="*", metavar="NUMBER")
    parser.add_argument("-k", "--kernel", action="append", default=[], dest="kernels")
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--tables", action="store_true")
    asked = parser.parse_args(arguments)
    if sum(map(bool, (asked.numbers, asked.all, asked.tables))) != 1:
        parser.error("name the rows, or --all, or --tables")
    plan = [] if asked.tables else planned(asked.numbers, asked.kernels)
    if not plan and not asked.tables:
        parser.error("no such row has a workload on such a kernel")
    failed = 0
    for bug, kernel in plan:
        try:
            outcome = walk(bug, kernel)[0]
        except GuestError as error:
            print(f"#{bug.number} on {kernel}: {error}", file=sys.stderr, flush=True)
            failed += 1
            continue
        print(outcome, flush=True)
        failed += not as_expected(bug, outcome)
        keep(outcome)
    write_page()
    print(score(rows()))
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
