"""What a report comes to, in words and numbers: the same in HTML and Markdown."""

from __future__ import annotations

import datetime
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from tracer.reported import Protocol, Report, Reported


@dataclass(frozen=True)
class Headline:
    """verdict: violated, suspect, holds, or nothing where nothing was checked."""

    verdict: str
    text: str
    lines: list[str] = field(default_factory=list)


def headline(reported: Reported) -> Headline:
    """The one sentence, and what it must not be read without."""
    lines = [*_further(reported), _coverage(reported.report), *_losses(reported)]
    for verdict, said in (("violated", "violated"), ("suspect", "under suspicion")):
        invariants = _with(reported, verdict)
        if invariants:
            return Headline(verdict, f"{_and(invariants)} {said}", [*_findings(reported, verdict), *lines])
    checks = sum(reported.checked(verdict) for verdict in ("holds", "unverifiable"))
    if not reported.checked("holds"):
        return Headline("nothing", "Nothing was checked" if not checks else f"None of {checks:,} checks could be verified", lines)
    return Headline("holds", f"Nothing violated in {checks:,} checks", lines)


def _with(reported: Reported, verdict: str) -> list[str]:
    """Invariants with that verdict: by a finding, by one that has no signature of its own, or by the count of checks alone."""
    found = {v.invariant for v in reported.violations if v.verdict == verdict}
    found |= {name.partition(" ")[0] for name, count in reported.rest.items() if count and name.endswith(f" {verdict}")}
    return sorted(found | {id for report in reported.reports for id, one in report.invariants.items() if getattr(one.checks, verdict)})


def _findings(reported: Reported, verdict: str) -> list[str]:
    found = [v for v in reported.violations if v.verdict == verdict]
    where = sorted({f"{v.function}()" for v in found})
    return [f"{sum(v.count for v in found):,} findings of {_number(len(found), 'signature')}, in {_and(where)}."] if found else []


def _further(reported: Reported) -> list[str]:
    said = ", ".join(f"{name} {count:,}" for name, count in sorted(reported.rest.items()) if count)
    return [f"Further findings whose evidence was not kept: {said}."] if said else []


def _coverage(report: Report) -> str:
    by_level = defaultdict[str, list[str]](list)
    for id, one in report.invariants.items():
        by_level[one.coverage].append(id)
    said = (("full", "in full"), ("partial", "in part"), ("none", "not at all"))
    return "Checked " + "; ".join(f"{how}: {' '.join(by_level[level])}" for level, how in said if by_level[level]) + "."


def _losses(reported: Reported) -> list[str]:
    lost = Counter[str]()
    for report in reported.reports:
        lost.update({book: count for book, count in report.lost.items() if count})
    unverifiable = reported.checked("unverifiable")
    if not lost and not unverifiable:
        return []
    books = ", ".join(f"{book.replace('_', ' ')} {count:,}" for book, count in lost.items())
    return [f"{unverifiable:,} checks could not be verified" + (f"; events lost: {books}." if books else ".")]


def _and(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _number(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def tiles(reported: Reported) -> list[dict[str, str]]:
    """A few numbers in large type, of all runs; kind: how alarming."""
    counts = {verdict: sum(v.count for v in reported.violations if v.verdict == verdict) for verdict in ("violated", "suspect")}
    for name, count in reported.rest.items():
        counts[name.partition(" ")[2]] = counts.get(name.partition(" ")[2], 0) + count
    unsampled = sum(sum(report.windows_unsampled.values()) for report in reported.reports)
    rows = [
        ("violations", f"{counts['violated']:,}", "bad" if counts["violated"] else ""),
        ("suspects", f"{counts['suspect']:,}", "warn" if counts["suspect"] else ""),
        ("checks that hold", f"{reported.checked('holds'):,}", ""),
        ("windows", f"{sum(sum(report.windows.values()) for report in reported.reports):,}", ""),
        *([("not sampled", f"{unsampled:,}", "warn")] if unsampled else []),
        ("protocols", f"{len({one.said for report in reported.reports for one in report.protocols}):,}", ""),
        ("duration", lasted(sum(report.duration_seconds for report in reported.reports)), ""),
        ("runs", f"{len(reported.runs):,}", "") if reported.runs else ("fidelity", reported.report.fidelity or "–", ""),
    ]
    return [{"name": name, "value": value, "kind": kind} for name, value, kind in rows]


def lasted(seconds: float) -> str:
    """A long duration in its two largest units."""
    if seconds < 90:
        return f"{seconds:.3g} s"
    for (unit, size), (smaller, small) in pairwise((("d", 86400), ("h", 3600), ("min", 60), ("s", 1))):
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
    by_function = defaultdict[str, list[Protocol]](list)
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
                    {"count": one.count, "share": round(100 * one.count / max(most, 1), 1), "said": one.said}
                    | {"violates": one.violates, "suspect": one.suspect}
                    for one in rows
                ],
            }
        )
    return sorted(found, key=lambda each: (not each["wrong"], -each["windows"]))
