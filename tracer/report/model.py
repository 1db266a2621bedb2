"""What a report file or a store says of runs, read back and checked: what is drawn from it need not ask again.

Reports of an older rmapd lack keys; what depends on them is empty. What no report ever was is an RmapdError. `report`, `explain` and `diff`
all read by this: what one of them takes, the others take."""

from __future__ import annotations

import datetime
import time
from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from tracer import bounded_input
from tracer.errors import RmapdError
from tracer.outputs.store import reader
from tracer.printable import shown
from tracer.results.evidence import Told, told

_HINT = "a file of rmapd exec --report, rmapd protocols --save or rmapd exec --format json"
_MOST_BYTES = 1 << 30

Time = Annotated[datetime.datetime, msgspec.Meta(tz=True)]


class Checks(msgspec.Struct, frozen=True):
    """Checks of an invariant, by verdict."""

    holds: int = 0
    violated: int = 0
    suspect: int = 0
    unverifiable: int = 0

    @property
    def all(self) -> int:
        return self.holds + self.violated + self.suspect + self.unverifiable


class ReportedInvariant(msgspec.Struct, frozen=True):
    """An invariant: how far it was checked, and with what verdicts."""

    title: str
    coverage: Literal["full", "partial", "none"]
    checks: Checks
    reason: str = ""


class ReportedHook(msgspec.Struct, frozen=True):
    """A hook of the attach plan on this kernel."""

    state: str
    how: str = ""
    symbol: str = ""
    reason: str = ""


class ReportedProtocol(msgspec.Struct, frozen=True):
    """A protocol of the table; text, or function, context and steps."""

    count: int
    function: str = ""
    context: list[str] = []
    steps: str = ""
    violates: list[str] = []
    suspect: list[str] = []
    unverifiable: list[str] = []
    text: str = ""

    def __post_init__(self) -> None:
        if not self.function:
            msgspec.structs.force_setattr(self, "function", self.text.partition("[")[0])
        if not self.function:
            raise ValueError("a protocol without its function")

    @property
    def said(self) -> str:
        return self.text or f"{self.function}[{' '.join(self.context)}]  {self.steps}"


class ReportedViolation(msgspec.Struct, frozen=True):
    """A violation or suspect. hours: how often in each hour, runs: the first and the last run that met it, where a store kept it."""

    id: str
    invariant: str
    verdict: Literal["violated", "suspect"]
    function: str
    signature: str
    count: int
    first_seen: Time
    last_seen: Time
    summary: str
    task: dict[str, Any] = {}
    protocol: str = ""
    stack: list[str] = []
    evidence: dict[str, Any] = {}
    trail: list[dict[str, Any]] = []
    machine: dict[str, Any] = {}
    runs: dict[str, str] = {}
    hours: dict[Time, int] = {}

    def __post_init__(self) -> None:
        told(self)

    @property
    def told(self) -> Told:
        """Its evidence, trail, task and machine with their types."""
        return told(self)


class ReportedHistogram(msgspec.Struct, frozen=True):
    """counts[n]: values below bounds[n] and not below the bound before; a bound is twice the one before."""

    name: str
    labels: dict[str, str]
    bounds: list[float]
    counts: list[int]
    count: int
    sum: float

    def __post_init__(self) -> None:
        if (
            len(self.bounds) != len(self.counts)
            or sorted(self.bounds) != self.bounds
            or any(bound <= 0 for bound in self.bounds)
        ):
            raise ValueError("bounds must rise, one for each count")
        if any(count < 0 for count in self.counts) or sum(self.counts) != self.count:
            raise ValueError("the counts do not add up to count")

    @property
    def unit(self) -> float:
        """The bound below which only 0 is: 1 ns, or 1 VMA."""
        return 1e-9 if self.name.endswith("_seconds") else 1.0

    @property
    def some(self) -> ReportedHistogram:
        """Without the values that are 0: the locks that nobody had to wait for."""
        zeros = self.counts[0] if self.bounds and self.bounds[0] <= self.unit else None
        if zeros is None:
            return self
        return msgspec.structs.replace(
            self, bounds=self.bounds[1:], counts=self.counts[1:], count=self.count - zeros
        )

    def below(self, share: float) -> float:
        """The bound below which this share of the values is."""
        so_far = 0
        for bound, count in zip(self.bounds, self.counts, strict=True):
            so_far += count
            if so_far >= share * self.count:
                return bound
        return 0.0


class LockClass(msgspec.Struct, frozen=True, rename={"id": "class"}):
    """A class of locks; rank: its place in the documented order, outermost first."""

    id: str
    name: str
    rank: int


class Edge(msgspec.Struct, frozen=True):
    """`taken` was waited for with `held` held."""

    held: str
    taken: str
    modes: dict[str, int] = {}
    functions: dict[str, int] = {}
    in_cycle: bool = False
    protocol: str = ""
    stack: list[str] = []

    @property
    def count(self) -> int:
        return sum(self.functions.values())


class ReportedLockGraph(msgspec.Struct, frozen=True):
    """The classes met and their edges."""

    classes: list[LockClass] = []
    edges: list[Edge] = []
    mmap_nestings: int = 0

    def __post_init__(self) -> None:
        known = {one.id for one in self.classes}
        if lost := {node for edge in self.edges for node in (edge.held, edge.taken)} - known:
            raise ValueError(f"an edge of {', '.join(sorted(lost))}, which is no class here")


class Timeline(msgspec.Struct, frozen=True):
    """Totals at moments, seconds since the gate opened."""

    seconds: list[float] = []
    totals: dict[str, list[int]] = {}

    def __post_init__(self) -> None:
        if (
            any(len(column) != len(self.seconds) for column in self.totals.values())
            or sorted(self.seconds) != self.seconds
        ):
            raise ValueError("as many totals as seconds, and seconds that rise")


class ProbeCost(msgspec.Struct, frozen=True):
    """What a hook's programs cost, by the kernel's account."""

    runs: int = 0
    seconds: float = 0.0
    missed: int = 0


class Overhead(msgspec.Struct, frozen=True):
    """What rmapd itself cost."""

    hooks: dict[str, ProbeCost] = {}
    user_seconds: float = 0.0
    rss_bytes: int = 0


class ReportedCommand(msgspec.Struct, frozen=True):
    """What exec ran; exit_code is None where it had not ended, and in what a daemon serves."""

    argv: list[str] = []
    exit_code: int | None = 0

    @property
    def ending(self) -> str:
        """What became of it, in words."""
        return "had not ended" if self.exit_code is None else f"exited with {self.exit_code}"


class Migration(msgspec.Struct, frozen=True):
    """Migration entries that were recorded and neither removed nor judged."""

    outstanding: int = 0
    oldest_entry_seconds: float = 0.0
    age_limit_seconds: float = 10.0


class EndedEarly(msgspec.Struct, frozen=True):
    """Why a run was cut short."""

    reason: str = "nobody knows why"


class Report(msgspec.Struct, frozen=True):
    """A run."""

    kernel: str
    invariants: dict[str, ReportedInvariant] = {}
    protocols: list[ReportedProtocol] = []
    violations: list[ReportedViolation] = []
    rmapd: str = ""
    fidelity: str = ""
    fidelity_changes: dict[str, int] = {}
    gate_open: bool = False
    required: list[str] = []
    ended_early: EndedEarly | None = None
    duration_seconds: float = 0.0
    started: Time | None = None
    ended: Time | None = None
    command: ReportedCommand = ReportedCommand()
    hooks: dict[str, ReportedHook] = {}
    windows: dict[str, int] = {}
    windows_unsampled: dict[str, int] = {}
    histograms: list[ReportedHistogram] = []
    lock_graph: ReportedLockGraph = ReportedLockGraph()
    timeline: Timeline = Timeline()
    lost: dict[str, int] = {}
    migration: Migration = Migration()
    overhead: Overhead = Overhead()
    beyond: dict[str, int] = {}

    def checked(self, verdict: str) -> int:
        return sum(getattr(one.checks, verdict) for one in self.invariants.values())


class StoredRun(msgspec.Struct, frozen=True):
    """A run as a store knows it; ended is None where it runs, or was killed."""

    id: str
    kernel: str
    started: Time
    rmapd: str
    report: Report
    ended: Time | None = None


class Reported(msgspec.Struct, frozen=True):
    """All that a page is made of: where it comes from, the run that is shown in full, violations, and of a store all its runs.
    rest: findings that have no signature of their own, by invariant and verdict. silent_seconds: for how long the last run has written
    nothing, where it has no end."""

    source: str
    report: Report
    violations: list[ReportedViolation]
    rest: dict[str, int]
    runs: list[StoredRun] = []
    silent_seconds: float = 0.0

    @property
    def reports(self) -> list[Report]:
        return [run.report for run in self.runs] or [self.report]

    def report_of(self, v: ReportedViolation) -> Report:
        """Of the last run that met it, if it is not forgotten."""
        return next((run.report for run in self.runs if run.id == v.runs.get("last")), self.report)

    def checked(self, verdict: str) -> int:
        """Of all runs."""
        return sum(report.checked(verdict) for report in self.reports)


def read(path: Path) -> dict[str, Any]:
    """A report file as it is, once it is known to be one: names in it are not escaped."""
    try:
        found = bounded_input.json_value(bounded_input.read(path, "", _MOST_BYTES, _HINT))
        msgspec.convert(
            shown(found), Report
        )  # not as it is: half a surrogate pair, which argv may have, is no key to msgspec
    except (ValueError, RecursionError, msgspec.ValidationError) as error:
        raise RmapdError(f"{path} is no report of rmapd", why=str(error), hint=_HINT) from error
    return dict(found)


def as_given(path: Path) -> Report:
    """A report file, names as they are, without its violations."""
    found = read(path) | {"violations": []}
    try:
        return msgspec.convert(found, Report)
    except msgspec.ValidationError:
        return msgspec.convert(shown(found), Report)


def of_report(path: Path) -> Reported:
    """Of one report file, for people: every name in it is printable. RmapdError where it cannot be read or is none."""
    report = msgspec.convert(shown(read(path)), Report)
    return Reported(
        shown(path.name),
        report,
        sorted(report.violations, key=lambda v: (v.verdict != "violated", v.first_seen)),
        report.beyond,
    )


def of_store(path: Path) -> Reported:
    """Of a store, with its last run in full and its violations, the last met first. RmapdError where it cannot be read or has no run."""
    found = reader.read(path)
    if not found.runs:
        raise RmapdError(
            f"there is no run in the store {path}",
            why="none was written yet",
            hint="the same in a minute, with rmapd run",
        )
    try:
        runs = [
            msgspec.convert(shown(run | {"report": run["report"] | {"violations": []}}), StoredRun)
            for run in found.runs
        ]
        violations = msgspec.convert(shown(found.violations), list[ReportedViolation])
    except (msgspec.ValidationError, TypeError, RecursionError) as error:
        raise RmapdError(
            f"the store {path} has what no rmapd wrote",
            why=str(error),
            hint="another one with --store",
        ) from error
    rest = Counter[str]()
    for (_, invariant, verdict), count in found.rest.items():
        rest[f"{invariant} {verdict}"] += count
    violations.sort(key=lambda v: v.last_seen, reverse=True)
    violations.sort(key=lambda v: v.verdict != "violated")
    last = runs[-1]
    silent = (
        time.time() - last.report.ended.timestamp()
        if last.ended is None and last.report.ended
        else 0.0
    )
    return Reported(shown(str(path)), last.report, violations, dict(rest), runs, silent)
