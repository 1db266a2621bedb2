"""The summary of a report in words and numbers, which HTML and Markdown share."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any

from tracer.attach.plan import ABSENCES, Hook, HookState, PlannedHook
from tracer.protocol.legend import LegendGroup, legend
from tracer.report.model import ReportContents, ReportedHook, ReportedProtocol, RunReport
from tracer.results.hook_groups import HookGroups, blocked_by, group
from tracer.results.standing import Facts, listed, lost_text, stand
from tracer.time_text import two_units, utc


def origin(reported: ReportContents) -> list[tuple[str, str]]:
    """Return where and when a report comes from: names and values, each time with its zone.

    Of a store, of its last run.
    """
    report, last = reported.report, reported.runs[-1] if reported.runs else None
    began, ended = report.started, last.ended if last else report.ended
    rows = [
        ("host", report.host),
        ("kernel", f"Linux {report.kernel}"),
        ("rmapd", report.rmapd),
        ("recorded from", utc(began) if began else ""),
        ("until", utc(ended) if ended else "it still runs, or was killed" if last else ""),
    ]
    return [(name, value) for name, value in rows if value]


def hook_groups(report: RunReport) -> HookGroups:
    """Return the hooks of a report by the reason why they are attached or are not.

    A report does not have which hooks a kernel allowed in vain: those are with the refused ones.
    """
    hooks = [
        PlannedHook("", Hook(name, _candidates(one), ""), HookState(one.state), reason=one.reason)
        for name, one in report.hooks.items()
        if one.state in tuple(HookState)
    ]
    return group(hooks, {})


def _candidates(hook: ReportedHook) -> list[str]:
    """Return a candidate of the method that a reason of absence is about: it is named after it."""
    beginnings = {method: text.partition("{}")[0] for method, text in ABSENCES.items()}
    return [f"{method}:" for method, begin in beginnings.items() if hook.reason.startswith(begin)]


@dataclass(frozen=True)
class Headline:
    """The top of a report.

    colour: red, amber or green. reasons: why it is not green. lines: findings, coverage and losses,
    which the title needs as context.
    """

    colour: str
    text: str
    reasons: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)


def headline(reported: ReportContents) -> Headline:
    """Return the standing of all runs, in the words of every output, and the findings."""
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
"""Three times the interval at which a daemon writes its run to the store."""


def facts(reported: ReportContents) -> Facts:
    """Return the facts that the standing depends on.

    Coverage and outstanding entries are those of the last run, everything else of all runs.
    """
    last, reports = reported.report, reported.reports
    ended = [report for report in reports if report is not last or not report.gate_open]
    return Facts(
        coverage={name: one.coverage for name, one in last.invariants.items()},
        checks=_checks(reported),
        off={
            name: blocked_by(hook.reason) or hook.reason
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
        undecided=last.undecided,
        lowered_to=last.lowered_to,
        stale=_silent(reported),
        ended_early=[report.ended_early.reason for report in reports if report.ended_early],
        killed=sum(run.ended is None and not run.report.ended_early for run in reported.runs[:-1]),
    )


def _checks(reported: ReportContents) -> dict[tuple[str, str], int]:
    """Return checks by invariant and verdict.

    Findings count if there are more of them: the first runs of a store may have been deleted.
    """
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


def _silent(reported: ReportContents) -> str:
    silent = reported.silent_seconds
    return (
        f"The last run has no end and wrote nothing for {two_units(silent)}: "
        "it was killed, or hangs."
        if silent > _SILENT_SECONDS
        else ""
    )


def _findings(reported: ReportContents, verdict: str) -> list[str]:
    found = [v for v in reported.violations if v.verdict == verdict]
    where = sorted({f"{v.function}()" for v in found})
    count, signatures = sum(v.count for v in found), _number(len(found), "distinct defect")
    return [f"{signatures}, found {_times(count)}, in {listed(where)}."] if found else []


def _further(reported: ReportContents) -> list[str]:
    counts = (f"{name} {count:,}" for name, count in sorted(reported.rest.items()) if count)
    further = ", ".join(counts)
    return (
        [f"Without evidence, as there are more defects than are kept: {further}."]
        if further
        else []
    )


def _coverage(report: RunReport) -> str:
    by_level = defaultdict[str, list[str]](list)
    for id, one in report.invariants.items():
        by_level[one.coverage].append(id)
    levels = (("full", "in full"), ("partial", "in part"), ("none", "not at all"))
    parts = (f"{how}: {' '.join(by_level[level])}" for level, how in levels if by_level[level])
    return f"Checked {'; '.join(parts)}."


def _lost(reported: ReportContents) -> Counter[str]:
    lost = Counter[str]()
    for report in reported.reports:
        lost.update({kind: count for kind, count in report.lost.items() if count})
    return lost


def _losses(reported: ReportContents) -> list[str]:
    lost = _lost(reported)
    unverifiable = reported.checked("unverifiable")
    if not lost and not unverifiable:
        return []
    kinds = ", ".join(f"{kind.replace('_', ' ')} {count:,}" for kind, count in lost.items())
    return [
        f"{unverifiable:,} checks could not be verified"
        + (f"; events lost: {kinds}." if kinds else ".")
    ]


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count:,} times"


def _number(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def tiles(reported: ReportContents) -> list[dict[str, str]]:
    """Return the numbers that the report shows in large type: name, value and kind (its colour)."""
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
            f"{len({one.line for report in reported.reports for one in report.protocols}):,}",
            "",
        ),
        ("duration", two_units(sum(report.duration_seconds for report in reported.reports)), ""),
        ("runs", f"{len(reported.runs):,}", "")
        if reported.runs
        else ("fidelity", reported.report.fidelity or "–", ""),
    ]
    return [{"name": name, "value": value, "kind": kind} for name, value, kind in rows]


def lost_events(report: RunReport) -> str:
    """Return what was lost, by kind; `not known` where the report does not have it."""
    return lost_text(report.lost) if report.lost else "not known"


def notation(reported: ReportContents) -> tuple[LegendGroup, ...]:
    """Return the legend of protocols; empty where a report shows none."""
    shown = reported.report.protocols or any(v.protocol for v in reported.violations)
    return legend() if shown else ()


def functions(report: RunReport) -> list[dict[str, Any]]:
    """Return the protocols of each function: violated and suspect first, then by windows.

    Each function has `function`, `windows`, `wrong` (ids of invariants) and `rows`; each row has
    `count`, `share` (in percent of the most frequent protocol), `line`, `violates` and `suspect`.
    """
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
                        "line": one.line,
                    }
                    | {"violates": one.violates, "suspect": one.suspect}
                    for one in rows
                ],
            }
        )
    return sorted(found, key=lambda each: (not each["wrong"], -each["windows"]))
