"""`rmapd report` as Markdown, for a mail, an issue or a terminal.

The lock graph is a Mermaid diagram; the other plots are tables.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import tracer
from tracer.report import plots
from tracer.report.alignment import aligned
from tracer.report.model import (
    ReportContents,
    ReportedHistogram,
    ReportedViolation,
    RunReport,
    StoredRun,
)
from tracer.report.similarity import legal_counterpart
from tracer.report.summary import (
    functions,
    headline,
    hook_groups,
    lost_events,
    notation,
    origin,
    tiles,
)
from tracer.time_text import before_last, short, utc

_MOST = 200
_BLOCKS = " ▁▂▃▄▅▆▇█"


def render(reported: ReportContents) -> str:
    """Return the document."""
    parts = (
        _head,
        _violations,
        _runs,
        _coverage,
        _locks,
        _durations,
        _protocols,
        _notation,
        _hooks,
    )
    return "\n".join(line for part in parts for line in part(reported)) + "\n"


def _text(text: object) -> str:
    """Escape Markdown in a line of text or in a cell of a table."""
    return re.sub(r"([\\`*{}\[\]<>|#~]|(?<!\w)_|_(?!\w))", r"\\\1", re.sub(r"\s+", " ", str(text)))


def _code(text: object) -> str:
    """Return inline code, also for a cell; the fence is longer than any backticks inside."""
    code = re.sub(r"\s+", " ", str(text)).replace("|", "\\|")
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", code)), default=0))
    return f"{fence} {code} {fence}" if "`" in code else f"`{code}`" if code else ""


def _fenced(lines: Iterable[str], kind: str = "") -> list[str]:
    return ["", f"```{kind}", *(line.replace("```", "` ` `") for line in lines), "```"]


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]], numbers: str = "") -> list[str]:
    """Return a table; numbers: an `r` at the place of each column of numbers, else a dot."""
    ruler = ["---:" if numbers[n : n + 1] == "r" else "---" for n in range(len(heads))]
    return ["", *(f"| {' | '.join(row)} |" for row in (heads, ruler, *rows))]


def _head(reported: ReportContents) -> Iterator[str]:
    report, top = reported.report, headline(reported)
    yield f"# {top.text}"
    yield ""
    yield ", ".join(f"{name} {_code(value)}" for name, value in origin(reported)) + "."
    yield f"\nWritten from {_code(reported.source)}, by rmapd {tracer.__version__}."
    yield f"\nStanding: **{top.colour}**" + (", because:" if top.reasons else "")
    if top.reasons:
        yield "\n" + "\n".join(f"- {_text(reason)}" for reason in top.reasons)
    for line in top.lines:
        yield f"\n{_text(line)}"
    yield "\n" + ", ".join(f"{tile['name']} **{tile['value']}**" for tile in tiles(reported))
    if report.command.argv:
        yield f"\nThe command {_code(' '.join(report.command.argv))} {report.command.ending}."


def _violations(reported: ReportContents) -> Iterator[str]:
    yield "\n## Violations and suspects"
    if not reported.violations:
        yield "\nNone, in the invariants that are checked."
    for v in reported.violations[:_MOST]:
        yield from _violation(v, reported.report_of(v))
    if hidden := len(reported.violations[_MOST:]):
        yield f"\nNot shown here: {hidden:,} more. `rmapd explain ID` prints each of them."


def _violation(v: ReportedViolation, report: RunReport) -> Iterator[str]:
    yield f"\n### {v.invariant} {v.verdict}: {_code(v.function + '()')} × {v.count:,}"
    yield f"\n{_text(v.summary)}"
    task = _code(f"{v.task.get('comm')}[{v.task.get('pid')}]") if v.task else "not known"
    yield f"\n{_code(v.id)}, first {utc(v.first_seen)}, last {utc(v.last_seen)}; task {task}"
    if v.hours:
        yield "\nPer hour: " + ", ".join(
            f"{utc(hour)} {count:,}" for hour, count in sorted(v.hours.items())
        )
    if v.protocol:
        both = legal_counterpart(v, report)
        yield from _fenced(
            [v.protocol, *(["", *aligned(both[0].protocol, both[1].protocol)] if both else [])]
        )
    if v.stack:
        yield from _fenced(v.stack)
    if v.evidence:
        yield from _fenced(
            json.dumps(v.evidence, indent=1, ensure_ascii=False).splitlines(), "json"
        )
    if v.trail:
        end = max(step.get("time_ns", 0) for step in v.trail)
        windows = "1 window" if len(v.trail) == 1 else f"{len(v.trail)} windows"
        yield f"\nThe trail, {windows}, the latest at the end:"
        yield from _table(
            ("when", "function", "protocol", ""), [_step(step, end) for step in v.trail], "r"
        )
    if note := v.evidence.get("trail_note"):
        yield f"\n{_text(note)}"


def _step(step: dict[str, Any], end: int) -> tuple[str, ...]:
    why = f"**{_text(step.get('why', 'at fault'))}**" if step.get("marked") else ""
    return (
        before_last(end - step.get("time_ns", end)),
        _code(step.get("function", "")),
        _code(step.get("protocol", "")),
        why,
    )


def _coverage(reported: ReportContents) -> Iterator[str]:
    yield "\n## Coverage and checks"
    rows = (
        (
            id,
            _text(one.title),
            one.coverage,
            *(f"{getattr(one.checks, verdict):,}" for verdict in _VERDICTS),
            _text(one.reason),
        )
        for id, one in reported.report.invariants.items()
    )
    yield from _table(("", "invariant", "coverage", *_VERDICTS, "why not full"), rows, "...rrrr")


_VERDICTS = ("holds", "violated", "suspect", "unverifiable")


def _locks(reported: ReportContents) -> Iterator[str]:
    graph = reported.report.lock_graph
    yield "\n## Locks taken under locks"
    if not graph.edges:
        yield "\nNo window took a lock while it held another."
        return
    rank, name = (
        {one.id: one.rank for one in graph.classes},
        {one.id: one.name for one in graph.classes},
    )
    against = [n for n, edge in enumerate(graph.edges) if rank[edge.taken] < rank[edge.held]]
    lines = [
        "flowchart TD",
        *(
            f'  c{one.rank}["{_label(one.name)}"]'
            for one in sorted(graph.classes, key=lambda one: one.rank)
        ),
    ]
    lines += [
        f'  c{rank[edge.held]} -->|"{edge.count:,}"| c{rank[edge.taken]}' for edge in graph.edges
    ]
    yield from _fenced(
        [*lines, *(f"  linkStyle {n} stroke:#c0272d,stroke-width:3px" for n in against)], "mermaid"
    )
    rows = (
        (
            _text(name[edge.held]),
            _text(name[edge.taken]),
            f"{edge.modes.get('write', 0):,}",
            f"{edge.modes.get('read', 0):,}",
            _text(", ".join(edge.functions)),
        )
        for edge in graph.edges
    )
    yield from _table(("held", "then taken", "for write", "for read", "in"), rows, "..rr")


def _label(name: str) -> str:
    return re.sub(r"[^\w .()-]", "", name)


def _durations(reported: ReportContents) -> Iterator[str]:
    yield "\n## How long it took"
    for name, title in _HISTOGRAMS:
        rows = [
            (label or "all", histogram)
            for label, histogram in plots.histograms(reported.report, name)
        ]
        if rows:
            as_text = short if name.endswith("_seconds") else "{:.0f}".format
            first = min(
                bound
                for _, histogram in rows
                for bound in histogram.without_zeros.bounds or histogram.bounds
            )
            heads = (
                title,
                "count",
                "not 0",
                "half of them below",
                "99 % below",
                f"from {as_text(first / 2)}, doubling",
            )
            cells = (_row(label, one, as_text, first) for label, one in rows)
            yield from _table(heads, cells, ".rrrr")


_HISTOGRAMS = (
    ("migration_entry_seconds", "lifetime of migration entries"),
    ("lock_wait_seconds", "waiting for locks"),
    ("lock_hold_seconds", "holding locks"),
    ("window_seconds", "windows"),
    ("rmap_walk_vmas", "VMAs visited by an rmap walk"),
)


def _row(
    label: str, histogram: ReportedHistogram, as_text: Callable[[float], str], first: float
) -> tuple[str, ...]:
    positive = histogram.without_zeros
    spread = (
        (as_text(positive.below(0.5)), as_text(positive.below(0.99)))
        if positive.count
        else ("", "")
    )
    return (
        _text(label),
        f"{histogram.count:,}",
        f"{positive.count:,}",
        *spread,
        _bars(positive, first),
    )


def _bars(histogram: ReportedHistogram, first: float) -> str:
    """Return a block character per power of two from `first` on, scaled to the highest count."""
    counts = {
        round(bound / first, 6): count
        for bound, count in zip(histogram.bounds, histogram.counts, strict=True)
    }
    most, at, bars = max(counts.values(), default=0), 1.0, ""
    while at <= max(counts, default=0):
        bars += _BLOCKS[-(-8 * counts.get(at, 0) // most)]
        at *= 2
    return _code(bars.replace(" ", "\u2007")) if bars else ""


def _protocols(reported: ReportContents) -> Iterator[str]:
    yield "\n## Protocols by function"
    for one in functions(reported.report):
        yield f"\n### {_code(one['function'])}: {one['windows']:,} windows"
        wrong = [
            " ".join(
                [
                    *(f"violates {id}" for id in row["violates"]),
                    *(f"suspect {id}" for id in row["suspect"]),
                ]
            )
            for row in one["rows"]
        ]
        rows = (
            (f"{row['count']:,}", _code(row["line"]), verdicts)
            for row, verdicts in zip(one["rows"], wrong, strict=True)
        )
        yield from _table(("windows", "protocol", ""), rows, "r")


def _runs(reported: ReportContents) -> Iterator[str]:
    if reported.runs:
        yield "\n## Runs"
        yield from _table(
            ("started", "ended", "kernel", "rmapd", *_VERDICTS[:3]),
            map(_run, reversed(reported.runs)),
            "....rrr",
        )
        yield "\nThe sections below are about the last run."


def _run(run: StoredRun) -> tuple[str, ...]:
    ended = utc(run.ended) if run.ended else "still runs, or was killed"
    return (
        utc(run.started),
        ended,
        _code(run.kernel),
        _text(run.rmapd),
        *(f"{run.report.checked(verdict):,}" for verdict in _VERDICTS[:3]),
    )


def _notation(reported: ReportContents) -> Iterator[str]:
    groups = notation(reported)
    if groups:
        yield "\n## How to read a protocol"
    for one in groups:
        rows = ((_code(row.sign), _code(row.ascii), _text(row.meaning)) for row in one.rows)
        yield from _table((_text(one.title), "in ASCII", "meaning"), rows)


def _hooks(reported: ReportContents) -> Iterator[str]:
    report, groups = reported.report, hook_groups(reported.report)
    yield "\n## Hooks and losses"
    yield f"\n{groups.head}."
    yield f"\nLost: {lost_events(report)}."
    for one in groups.off:
        yield f"\n- {_text(one.sentence)}: {', '.join(map(_code, one.names))}"
