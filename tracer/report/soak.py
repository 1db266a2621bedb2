"""The result file of `rmapd soak`: what it has, how it is read, and as text.

A run is counted as what it was: `violated` (with the time to the first violation), `silent` (all
its time, and nothing violated), `cut` (watched until it was ended early: its time counts, and it is
not called silent), `lost` (nothing is known: it was not checked, or the load failed; no time
counts) or `unfinished` (it began, and the file has no end of it: the machine or rmapd died).
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from tracer import bounded_input, time_text
from tracer.errors import RmapdError
from tracer.printable import printable, shown
from tracer.report.survival import CONFIDENCE, Times, times_of

Outcome = Literal["violated", "silent", "cut", "lost", "unfinished"]
Level = Literal["none", "partial", "full"]
Seconds = Annotated[float, msgspec.Meta(ge=0)]
FORMAT = 1
_MOST_BYTES = 1 << 30
_HINT = "a file of rmapd soak --out"


class SoakFinding(msgspec.Struct, frozen=True):
    """A signature that a run violated, with the seconds from the load's start to its first time.

    0 where it was there before, or where the daemon that ran knew it from before.
    """

    id: str
    invariant: str
    summary: str
    count: int
    seconds: Seconds


class SoakPart(msgspec.Struct, frozen=True):
    """A part of a load in one run: how often it did its work, and failed, in all its workers.

    killed: signal -> how many of its workers died of it. note: why it failed last, if it did.
    """

    name: str
    done: int
    failed: int = 0
    killed: dict[str, int] = {}
    note: str = ""


class SoakRun(msgspec.Struct, frozen=True):
    """One run. seconds: to the first violation, or else how long the load was watched.

    at_once: the first violation was there before the load began. daemon: it was watched by the
    daemon that ran. lowered: fidelity was lower than full, at some time at least.
    """

    number: int
    outcome: Outcome
    started: str = ""
    seconds: Seconds = 0.0
    why: str = ""
    exit_code: int | None = None
    at_once: bool = False
    daemon: bool = False
    fidelity: str = ""
    lowered: bool = False
    coverage: dict[str, Level] = {}
    checks: dict[str, int] = {}
    lost: dict[str, int] = {}
    violations: list[SoakFinding] = []
    parts: list[SoakPart] = []
    report: str = ""


class SoakLimits(msgspec.Struct, frozen=True):
    """What the load may use. how: what enforces it; why: why that is not a cgroup."""

    memory_bytes: int
    tmpfs_bytes: int
    processes: int
    how: str
    why: str = ""


class SoakResult(msgspec.Struct, frozen=True):
    """A result file. seconds: the limit of a run; None: until a violation.

    left_out: parts that this machine cannot run, with the reason. versions: of what makes the load.
    """

    soak: int
    rmapd: str
    kernel: str
    host: str
    loads: list[str]
    repeat: int
    seconds: float | None
    seed: int
    limits: SoakLimits
    machine: dict[str, int]
    versions: dict[str, str]
    left_out: dict[str, str]
    runs: list[SoakRun] = []

    @property
    def times(self) -> Times:
        """The times that count."""
        counted = [run for run in self.runs if run.outcome in ("violated", "silent", "cut")]
        return times_of([(run.seconds, run.outcome == "violated") for run in counted])

    def of(self, outcome: Outcome) -> list[SoakRun]:
        """Return the runs with this outcome."""
        return [run for run in self.runs if run.outcome == outcome]

    def as_json(self) -> dict[str, Any]:
        """Return the file's content, with the statistics for readers that have none."""
        times = self.times
        interval = times.rate_interval()
        statistics = {
            "violated": len(times.violated),
            "watched_seconds": round(times.total, 3),
            "rate_per_second": _finite(times.rate),
            "rate_interval": [interval.low, _finite(interval.high)],
            "confidence": CONFIDENCE,
            "quantiles_seconds": {
                f"{share:g}": times.quantile(share) for share in (0.25, 0.5, 0.75)
            },
        }
        return {**msgspec.to_builtins(self), "statistics": statistics}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def read_if_soak(path: Path) -> SoakResult | None:
    """Read a result of a soak; None where the file is another one. RmapdError where it is damaged.

    A pipe can be read once only, and is left to who reads reports.
    """
    if not path.is_file():
        return None
    try:
        found = bounded_input.json_value(bounded_input.read(path, "", _MOST_BYTES))
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or "soak" not in found:
        return None
    try:
        result = msgspec.convert(shown(found), SoakResult)
        if result.soak != FORMAT:
            raise ValueError(f"its format is {result.soak}, and this rmapd reads {FORMAT}")
    except (ValueError, msgspec.ValidationError) as error:
        raise RmapdError(f"{path} is no result of a soak", why=str(error), hint=_HINT) from error
    return result


def head(result: SoakResult) -> str:
    """Return what was run, in one line."""
    limit = "until a violation" if result.seconds is None else time_text.two_units(result.seconds)
    times = f"{result.repeat} runs of {limit}" if result.repeat > 1 else f"one run, {limit}"
    return f"soak {', '.join(result.loads)} on {result.kernel}: {times}, seed {result.seed}"


def limits_text(limits: SoakLimits) -> str:
    """Return the limits in one line."""
    mib = 1 << 20
    return (
        f"limits: {limits.memory_bytes // mib:,} MiB of memory, of these"
        f" {limits.tmpfs_bytes // mib:,} MiB tmpfs, {limits.processes} processes; {limits.how}"
        + (f" ({limits.why})" if limits.why else "")
    )


def head_text(result: SoakResult) -> list[str]:
    """Return what is run, with its limits and what is left out."""
    lines = [head(result), limits_text(result.limits)]
    return lines + [f"left out: {name}: {why}" for name, why in result.left_out.items()]


def run_text(run: SoakRun) -> list[str]:
    """Return one run: a line, and one for each thing that must be known about it."""
    took = time_text.two_units(run.seconds)
    sentence = {
        "violated": f"first violation after {took}",
        "silent": f"nothing violated in {took}",
        "cut": f"ended early after {took}, nothing violated until then: {run.why}",
        "lost": f"not counted: {run.why}",
        "unfinished": "not counted: it began and has no end; the machine or rmapd died",
    }[run.outcome]
    lines = [f"run {run.number}: {sentence}"]
    if run.at_once:
        lines.append("  it was there before the load began, or in its first moment")
    for one in run.violations:
        after = f" (+{time_text.two_units(one.seconds)})" if one.seconds else ""
        lines.append(f"  {one.invariant} ×{one.count:,} [{one.id}] {one.summary}{after}")
    if run.checks and run.fidelity:
        levels = list(run.coverage.values())
        checks = ", ".join(f"{count:,} {name}" for name, count in run.checks.items())
        lines.append(
            f"  {len(levels) - levels.count('none')} of {len(levels)} invariants checked"
            f" ({levels.count('full')} in full), fidelity {run.fidelity}: {checks}"
        )
    if run.lowered:
        lines.append("  fidelity was not full all the time: less was probed")
    if lost := {name: count for name, count in run.lost.items() if count}:
        lines.append("  lost: " + ", ".join(f"{name} {count:,}" for name, count in lost.items()))
    for part in run.parts:
        if part.killed:
            deaths = ", ".join(f"{name} ×{count}" for name, count in part.killed.items())
            lines.append(f"  {part.name}: workers were killed by {deaths}")
        if part.note:
            lines.append(f"  {part.name}: {part.note}")
    if run.parts:
        work = ", ".join(
            f"{part.name} {part.done:,}" + (f" ({part.failed:,} failed)" if part.failed else "")
            for part in run.parts
        )
        lines.append(f"  work: {work}")
    if run.report:
        lines.append(f"  the report: {run.report}")
    return lines


def summary_text(result: SoakResult) -> list[str]:
    """Return the sentence that was measured, with its interval and its exceptions."""
    times = result.times
    counted = len(times.violated) + len(times.censored)
    not_counted = len(result.runs) - counted
    more = f"; {not_counted} more are not counted" if not_counted else ""
    lines = [
        f"{len(times.violated)} of {counted} runs violated, in"
        f" {time_text.two_units(times.total)} watched{more}"
    ]
    if not counted:
        return [f"nothing was measured{more}"]
    interval = times.rate_interval()
    if times.violated:
        lines.append(
            f"mean time to the first violation: {time_text.two_units(1 / times.rate)}"
            f" ({CONFIDENCE:.0%}: {_time(interval.high)} to {_time(interval.low)})"
        )
    else:
        lines.append(
            f"mean time to the first violation: more than {_time(interval.high)}"
            f" ({1 - (1 - CONFIDENCE) / 2:.1%}, if times are exponential)"
        )
    median = times.quantile(0.5)
    reached = "not reached" if median is None else time_text.two_units(median)
    lines.append(f"median (Kaplan-Meier): {reached}")
    return lines


def _time(rate: float) -> str:
    return time_text.two_units(1 / rate) if rate > 0 else "no limit"


def as_text(result: SoakResult) -> str:
    """Return the whole result as text."""
    runs = [line for run in result.runs for line in run_text(run)]
    lines = [*head_text(result), *runs, "", *summary_text(result)]
    return "\n".join(map(printable, lines)) + "\n"
