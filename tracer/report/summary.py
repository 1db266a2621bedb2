"""What a report comes to, in words and numbers: the same in HTML and Markdown."""

from __future__ import annotations

import datetime
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from tracer.report.model import Report, Reported, ReportedProtocol
from tracer.results.standing import Facts, listed, stand


@dataclass(frozen=True)
class Headline:
    """colour: red, amber or green; reasons: why not green; lines: what the sentence must not be read without."""

    colour: str
    text: str
    reasons: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)


def headline(reported: Reported) -> Headline:
    """How all runs stand, as every output says it, and the findings behind it."""
    found = stand(facts(reported))
    worst = next(
        (
            verdict
            for verdict in _WORST
            if reported.violations and any(v.verdict == verdict for v in reported.violations)
        ),
        "",
    )
    lines = [
        *_findings(reported, worst),
        *_further(reported),
        _coverage(reported.report),
        *_losses(reported),
    ]
    return Headline(found.colour.value, found.title, list(found.reasons.values()), lines)


_WORST = ("violated", "suspect")
_SILENT_SECONDS = 180.0
"""A daemon writes its run into the store once a minute."""


def facts(reported: Reported) -> Facts:
    """What the standing depends on: coverage and what is under way of the last run, everything else of all runs."""
    last, reports = reported.report, reported.reports
    changes = last.fidelity_changes
    ended = [report for report in reports if report is not last or not report.gate_open]
    return Facts(
        coverage={name: one.coverage for name, one in last.invariants.items()},
        checks=_checks(reported),
        off={
            name: hook.reason
            for name, hook in last.hooks.items()
            if hook.state in ("missing", "denied")
        },
        taken_away=[name for name, hook in last.hooks.items() if hook.state == "detached"],
        lost=_lost(reported),
        required=last.required,
        outstanding=last.migration.outstanding if last.gate_open else 0,
        oldest_seconds=last.migration.oldest_entry_seconds if last.gate_open else 0.0,
        age_limit_seconds=last.migration.age_limit_seconds,
        unsettled=sum(report.migration.outstanding for report in ended),
        lowered_to=last.fidelity if changes.get("lower", 0) > changes.get("raise", 0) else "",
        stale=_silent(reported),
        ended_early=[report.ended_early.reason for report in reports if report.ended_early],
        killed=sum(run.ended is None and not run.report.ended_early for run in reported.runs[:-1]),
    )


def _checks(reported: Reported) -> dict[tuple[str, str], int]:
    """By the counts of checks; by findings where there are more, as in a store whose first runs are forgotten."""
    counted, found = Counter[tuple[str, str]](), Counter[tuple[str, str]]()
    for report in reported.reports:
        for name, one in report.invariants.items():
            counted.update(
                {
                    (name, verdict): getattr(one.checks, verdict)
                    for verdict in ("holds", *_WORST, "unverifiable")
                }
            )
    for v in reported.violations:
        found[v.invariant, v.verdict] += v.count
    for key, count in reported.rest.items():
        name, _, verdict = key.partition(" ")
        found[name, verdict] += count
    return dict(counted | found)


def _silent(reported: Reported) -> str:
    silent = reported.silent_seconds
    return (
        f"The last run has no end and wrote nothing for {lasted(silent)}: it was killed, or hangs."
        if silent > _SILENT_SECONDS
        else ""
    )


def _findings(reported: Reported, verdict: str) -> list[str]:
    found = [v for v in reported.violations if v.verdict == verdict]
    where = sorted({f"{v.function}()" for v in found})
    return (
        [
            f"{sum(v.count for v in found):,} findings of {_number(len(found), 'signature')}, in {listed(where)}."
        ]
        if found
        else []
    )


def _further(reported: Reported) -> list[str]:
    said = ", ".join(f"{name} {count:,}" for name, count in sorted(reported.rest.items()) if count)
    return [f"Further findings whose evidence was not kept: {said}."] if said else []


def _coverage(report: Report) -> str:
    by_level = defaultdict[str, list[str]](list)
    for id, one in report.invariants.items():
        by_level[one.coverage].append(id)
    said = (("full", "in full"), ("partial", "in part"), ("none", "not at all"))
    return (
        "Checked "
        + "; ".join(f"{how}: {' '.join(by_level[level])}" for level, how in said if by_level[level])
        + "."
    )


def _lost(reported: Reported) -> Counter[str]:
    lost = Counter[str]()
    for report in reported.reports:
        lost.update({table: count for table, count in report.lost.items() if count})
    return lost


def _losses(reported: Reported) -> list[str]:
    lost = _lost(reported)
    unverifiable = reported.checked("unverifiable")
    if not lost and not unverifiable:
        return []
    books = ", ".join(f"{book.replace('_', ' ')} {count:,}" for book, count in lost.items())
    return [
        f"{unverifiable:,} checks could not be verified"
        + (f"; events lost: {books}." if books else ".")
    ]


def _number(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def tiles(reported: Reported) -> list[dict[str, str]]:
    """A few numbers in large type, of all runs; kind: how alarming."""
    counts = {
        verdict: sum(v.count for v in reported.violations if v.verdict == verdict)
        for verdict in ("violated", "suspect")
    }
    for name, count in reported.rest.items():
        counts[name.partition(" ")[2]] = counts.get(name.partition(" ")[2], 0) + count
    unsampled = sum(sum(report.windows_unsampled.values()) for report in reported.reports)
    outstanding = sum(report.migration.outstanding for report in reported.reports)
    rows = [
        ("violations", f"{counts['violated']:,}", "bad" if counts["violated"] else ""),
        ("suspects", f"{counts['suspect']:,}", "warn" if counts["suspect"] else ""),
        ("checks that hold", f"{reported.checked('holds'):,}", ""),
        ("entries outstanding", f"{outstanding:,}", "warn" if outstanding else ""),
        ("windows", f"{sum(sum(report.windows.values()) for report in reported.reports):,}", ""),
        *([("not sampled", f"{unsampled:,}", "warn")] if unsampled else []),
        (
            "protocols",
            f"{len({one.said for report in reported.reports for one in report.protocols}):,}",
            "",
        ),
        ("duration", lasted(sum(report.duration_seconds for report in reported.reports)), ""),
        ("runs", f"{len(reported.runs):,}", "")
        if reported.runs
        else ("fidelity", reported.report.fidelity or "–", ""),
    ]
    return [{"name": name, "value": value, "kind": kind} for name, value, kind in rows]


def lasted(seconds: float) -> str:
    """A long duration in its two largest units."""
    if seconds < 90:
        return f"{seconds:.3g} s"
    for (unit, size), (smaller, small) in pairwise(
        (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))
    ):
        if seconds >= size:
            return f"{seconds // size:.0f} {unit} {seconds % size // small:.0f} {smaller}"
    return ""


def moment(when: datetime.datetime) -> str:
    """To the second, in UTC."""
    return when.astimezone(datetime.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def span(ns: int) -> str:
    """How long before the last one."""
    if not ns:
        return "0"
    for unit, size in (("s", 1e9), ("ms", 1e6), ("µs", 1e3)):
        if ns >= size:
            return f"−{ns / size:.3g} {unit}" if ns < 1000 * size else f"−{ns / size:,.0f} {unit}"
    return f"−{ns} ns"


def functions(report: Report) -> list[dict[str, Any]]:
    """Protocols by function: what was ruled a violation first, then by windows."""
    by_function = defaultdict[str, list[ReportedProtocol]](list)
    for one in report.protocols:
        by_function[one.function].append(one)
    found = []
    for function, rows in by_function.items():
        rows.sort(key=lambda one: (not (one.violates or one.suspect), -one.count))
        most = max(one.count for one in rows)
        found.append(
            {
                "function": function,
                "windows": report.windows.get(function, sum(one.count for one in rows)),
                "wrong": sorted({id for one in rows for id in (*one.violates, *one.suspect)}),
                "rows": [
                    {
                        "count": one.count,
                        "share": round(100 * one.count / max(most, 1), 1),
                        "said": one.said,
                    }
                    | {"violates": one.violates, "suspect": one.suspect}
                    for one in rows
                ],
            }
        )
    return sorted(found, key=lambda each: (not each["wrong"], -each["windows"]))
