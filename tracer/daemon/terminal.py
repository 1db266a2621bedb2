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
from tracer.results.snapshot import Snapshot
from tracer.results.standing import Colour
from tracer.results.standing_facts import standing

_COLOURS = {"full": "green", "partial": "yellow", "none": "dim"}
_STANDS = {Colour.GREEN: "green", Colour.AMBER: "yellow", Colour.RED: "bold red"}


def warm() -> None:
    """Draw a table to nowhere. rich imports modules when it first needs them; later the daemon's user may not be able to read them."""
    drawn = Table(title="12:30 · é:x:", caption="·")
    drawn.add_row(Text("x", style="bold red"))
    with Live(drawn, console=Console(file=io.StringIO(), force_terminal=True, width=40)):
        pass


def table(
    now: Snapshot, before: Snapshot | None, where: str, points: Sequence[HistoryPoint] = ()
) -> Table:
    """Coverage, counts and rates since the snapshot before."""
    seconds = max(now.running_seconds - before.running_seconds, 1e-9) if before else 1.0
    out = Table(
        title=f"rmapd on {now.kernel}, {now.running_seconds:.0f} s, fidelity {now.fidelity}, {where}",
        title_justify="left",
    )
    out.add_column("")
    out.add_column("invariant")
    out.add_column("coverage")
    for verdict in Verdict:
        out.add_column(verdict.value, justify="right")
    out.add_column("checks/s", justify="right")
    for name, invariant in now.invariants.items():
        level = now.coverage[name][0]
        if level == "none":
            continue
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
            invariant.title,
            Text(level.value, style=_COLOURS[level.value]),
            *cells,
            f"{rate:,.0f}",
        )
    none = [name for name in now.invariants if now.coverage[name][0] == "none"]
    lost, unsampled = sum(now.lost.values()), sum(now.windows_unsampled.values())
    stands = standing(now, points)
    said = Text("\n".join(stands.lines()) + "\n", style=_STANDS[stands.colour])
    out.caption = said + Text(
        f"not checked here: {' '.join(none)} · entries outstanding {now.outstanding} · cleared by the oracle {now.oracle.get('cleared', 0)}"
        + (f" · windows not sampled {unsampled:,}" if unsampled else "")
        + f" · lost {lost} · signatures {len(now.violations)} · Ctrl-C ends"
    )
    return out
