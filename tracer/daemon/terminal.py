"""The live table of `rmapd run` on a terminal."""

from __future__ import annotations

import io
from collections.abc import Sequence

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from tracer.invariants.verdict import Verdict
from tracer.results.history import HistoryPoint
from tracer.results.hook_groups import group
from tracer.results.snapshot import Snapshot
from tracer.results.standing import lost_text
from tracer.results.standing_facts import standing
from tracer.screen import COVERAGE_STYLES, NARROW, STANDING_STYLES

_WIDTH_FOR_TITLES = 112
_LEAST_ROWS = 5
_ENOUGH = 1000


def import_early() -> None:
    """Draw a table to nowhere, so that rich imports its modules now.

    The daemon's user may not be able to read them later.
    """
    drawn = Table(title="12:30 · é:x:", caption="·")
    drawn.add_row(Text("x", style="bold red"))
    with Live(drawn, console=Console(file=io.StringIO(), force_terminal=True, width=40)):
        pass


def table(
    now: Snapshot,
    before: Snapshot | None,
    where: str,
    points: Sequence[HistoryPoint] = (),
    width: int = NARROW,
    height: int = _ENOUGH,
) -> Table:
    """Draw the standing, coverage, counts, and rates since `before`.

    The standing, what is not checked and what was lost come first. where: the URL; points: history;
    width: columns, in few of which the invariants have no titles; height: lines, in few of which
    the last invariants of which nothing is wrong are only named.
    """
    head = _head(now, where, points)
    shown = [name for name in now.invariants if now.coverage[name][0] != "none"]
    room = max(_LEAST_ROWS, height - len(head.wrap(Console(width=width), width)) - 3)
    quiet = [name for name in reversed(shown) if _is_quiet(now, name)]
    named = sorted(quiet[: len(shown) - room], key=shown.index) if len(shown) > room else []
    seconds = max(now.running_seconds - before.running_seconds, 1e-9) if before else 1.0
    titled = width >= _WIDTH_FOR_TITLES
    out = Table(
        title=head,
        title_justify="left",
        title_style="",
        box=None,
        padding=(0, 2, 0, 0),
        header_style="bold",
        caption=f"nothing is wrong with {' '.join(named)} either" if named else None,
        caption_justify="left",
        caption_style="",
    )
    out.add_column("", no_wrap=True)
    if titled:
        out.add_column("invariant", no_wrap=True)
    out.add_column("coverage", no_wrap=True)
    for verdict in Verdict:
        out.add_column(verdict.value, justify="right", no_wrap=True)
    out.add_column("checks/s", justify="right", no_wrap=True)
    for name in shown:
        if name in named:
            continue
        level = now.coverage[name][0]
        counts = [now.checked(name, verdict) for verdict in Verdict]
        rate = (
            (sum(counts) - sum(before.checked(name, v) for v in Verdict)) / seconds
            if before
            else 0.0
        )
        cells = [
            Text(f"{count:,}", style="bold red" if v is Verdict.VIOLATED and count else "")
            for v, count in zip(Verdict, counts, strict=True)
        ]
        out.add_row(
            name,
            *([now.invariants[name].title] if titled else []),
            Text(level.value, style=COVERAGE_STYLES[level.value]),
            *cells,
            f"{rate:,.0f}",
        )
    return out


def _is_quiet(now: Snapshot, name: str) -> bool:
    return not any(now.checked(name, v) for v in Verdict if v is not Verdict.HOLDS)


def _head(now: Snapshot, where: str, points: Sequence[HistoryPoint]) -> Text:
    """Return the lines above the table."""
    none = [name for name in now.invariants if now.coverage[name][0] == "none"]
    counts = {
        "cleared by the oracle": now.oracle.get("cleared", 0),
        "windows not sampled": sum(now.windows_unsampled.values()),
    }
    counted = "".join(f" · {name} {count:,}" for name, count in counts.items() if count)
    hooks = group(now.hooks, now.invariants)
    stands = standing(now, points, hooks=False)
    return Text("\n").join(
        [
            Text(
                f"rmapd on {now.kernel}, {now.running_seconds:.0f} s, fidelity {now.fidelity},"
                f" {where}"
            ),
            Text("\n".join(stands.lines()), style=STANDING_STYLES[stands.colour]),
            Text(
                f"not checked here: {' '.join(none) or 'none'} · {hooks.head}"
                f" · entries outstanding {now.outstanding}{counted}"
                f" · lost: {lost_text(now.lost)} · Ctrl-C ends"
            ),
        ]
    )
