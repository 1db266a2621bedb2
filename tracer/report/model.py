"""The report of a run as typed, checked values: what `report`, `explain` and `diff` work on.

Every key has a default, since reports of an older rmapd lack some. load.py reads them.
"""

from __future__ import annotations

import datetime
from typing import Annotated, Any, Literal

import msgspec

from tracer.results.evidence import ViolationDetails, read_details

Time = Annotated[datetime.datetime, msgspec.Meta(tz=True)]


class ReportedChecks(msgspec.Struct, frozen=True):
    """The number of checks of an invariant, by verdict."""

    holds: int = 0
    violated: int = 0
    suspect: int = 0
    unverifiable: int = 0


class ReportedInvariant(msgspec.Struct, frozen=True):
    """An invariant with its coverage and its checks; reason: why coverage is not full."""

    title: str
    coverage: Literal["full", "partial", "none"]
    checks: ReportedChecks
    reason: str = ""


class ReportedHook(msgspec.Struct, frozen=True):
    """A hook of the attach plan on this kernel; reason: why it is not attached."""

    state: str
    how: str = ""
    symbol: str = ""
    reason: str = ""


class ReportedProtocol(msgspec.Struct, frozen=True):
    """A protocol with the number of its windows, as text or as function, context and steps."""

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
            raise ValueError("a protocol without a function")

    @property
    def line(self) -> str:
        """The protocol in one line, in the notation of docs/PROTOCOLS.md."""
        return self.text or f"{self.function}[{' '.join(self.context)}]  {self.steps}"


class ReportedViolation(msgspec.Struct, frozen=True):
    """A violation or suspect.

    From a store it also has hours, the number of sightings in each hour, and runs, the ids of the
    first and the last run that saw it.
    """

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
        read_details(self)

    @property
    def details(self) -> ViolationDetails:
        """Its evidence, trail, task and machine as typed values."""
        return read_details(self)


class ReportedHistogram(msgspec.Struct, frozen=True):
    """A histogram over powers of two.

    counts[n]: the number of values in [bounds[n] / 2, bounds[n]), in seconds or VMAs.
    """

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
            raise ValueError("the sum of counts must be count")

    @property
    def unit(self) -> float:
        """The smallest value that is not 0: 1 ns or 1 VMA."""
        return 1e-9 if self.name.endswith("_seconds") else 1.0

    @property
    def without_zeros(self) -> ReportedHistogram:
        """The histogram without values of 0, such as locks that were free when asked for."""
        zeros = self.counts[0] if self.bounds and self.bounds[0] <= self.unit else None
        if zeros is None:
            return self
        return msgspec.structs.replace(
            self, bounds=self.bounds[1:], counts=self.counts[1:], count=self.count - zeros
        )

    def below(self, share: float) -> float:
        """Return the lowest bound with at least this share of the values below it, or 0."""
        so_far = 0
        for bound, count in zip(self.bounds, self.counts, strict=True):
            so_far += count
            if so_far >= share * self.count:
                return bound
        return 0.0


class ReportedLockClass(msgspec.Struct, frozen=True, rename={"id": "class"}):
    """A lock class; rank: its place in the order of mm/rmap.c, 0 for the outermost."""

    id: str
    name: str
    rank: int


class ReportedLockNesting(msgspec.Struct, frozen=True):
    """The lock class `taken` was acquired while `held` was held; modes and functions: how often."""

    held: str
    taken: str
    modes: dict[str, int] = {}
    functions: dict[str, int] = {}
    in_cycle: bool = False
    protocol: str = ""
    stack: list[str] = []

    @property
    def count(self) -> int:
        """How often it happened, in all functions."""
        return sum(self.functions.values())


class ReportedLockGraph(msgspec.Struct, frozen=True):
    """The lock classes seen, and which was taken while another was held."""

    classes: list[ReportedLockClass] = []
    edges: list[ReportedLockNesting] = []
    mmap_nestings: int = 0

    def __post_init__(self) -> None:
        known = {one.id for one in self.classes}
        if unknown := {node for edge in self.edges for node in (edge.held, edge.taken)} - known:
            raise ValueError(f"an edge of unknown lock classes: {', '.join(sorted(unknown))}")


class ReportedTimeline(msgspec.Struct, frozen=True):
    """Total counts at each of `seconds` since the gate opened."""

    seconds: list[float] = []
    totals: dict[str, list[int]] = {}

    def __post_init__(self) -> None:
        if (
            any(len(column) != len(self.seconds) for column in self.totals.values())
            or sorted(self.seconds) != self.seconds
        ):
            raise ValueError("seconds must rise, with one value of each total for each")


class ReportedProbeCost(msgspec.Struct, frozen=True):
    """The cost of a hook's programs, by the kernel's BPF statistics."""

    runs: int = 0
    seconds: float = 0.0
    missed: int = 0


class ReportedOverhead(msgspec.Struct, frozen=True):
    """The cost of rmapd's programs and of its own process.

    measured_seconds: for how long the kernel measured the hooks' programs; what they did in
    between is estimated from that. It is 0 in reports of versions that measured all the time, and
    longest_tick_gap_seconds in those of versions that did not measure it.
    """

    hooks: dict[str, ReportedProbeCost] = {}
    measured_seconds: float = 0.0
    user_seconds: float = 0.0
    rss_bytes: int = 0
    longest_tick_gap_seconds: float = 0.0


class ReportedCommand(msgspec.Struct, frozen=True):
    """The command of `exec`; exit_code is None if it had not ended, and in a daemon's report.

    signal: the name of the signal that killed it.
    """

    argv: list[str] = []
    exit_code: int | None = 0
    signal: str | None = None

    @property
    def ending(self) -> str:
        """How it ended, in words."""
        if self.signal:
            return f"was killed by {self.signal}"
        return "had not ended" if self.exit_code is None else f"exited with {self.exit_code}"


class ReportedMigration(msgspec.Struct, frozen=True):
    """Migration entries that are recorded and have neither been removed nor got a verdict."""

    outstanding: int = 0
    oldest_entry_seconds: float = 0.0
    age_limit_seconds: float = 10.0


class EndedEarly(msgspec.Struct, frozen=True):
    """Why a run ended early."""

    reason: str = "the reason is not known"


class ReportedDaemon(msgspec.Struct, frozen=True):
    """The daemon that `exec` used; the report is of a span of its time.

    known_before: ids of findings that it knew when the span began.
    """

    pid: int = 0
    fidelity_lowered: bool = False
    known_before: list[str] = []


class RunReport(msgspec.Struct, frozen=True):
    """The report of one run, with the keys of `rmapd exec --report` (docs/REPORTING.md)."""

    kernel: str
    invariants: dict[str, ReportedInvariant] = {}
    protocols: list[ReportedProtocol] = []
    violations: list[ReportedViolation] = []
    host: str = ""
    rmapd: str = ""
    fidelity: str = ""
    fidelity_changes: dict[str, int] = {}
    gate_open: bool = False
    required: list[str] = []
    ended_early: EndedEarly | None = None
    undecided: str = ""
    daemon: ReportedDaemon | None = None
    duration_seconds: float = 0.0
    started: Time | None = None
    ended: Time | None = None
    command: ReportedCommand = ReportedCommand()
    hooks: dict[str, ReportedHook] = {}
    windows: dict[str, int] = {}
    windows_unsampled: dict[str, int] = {}
    histograms: list[ReportedHistogram] = []
    lock_graph: ReportedLockGraph = ReportedLockGraph()
    timeline: ReportedTimeline = ReportedTimeline()
    lost: dict[str, int] = {}
    migration: ReportedMigration = ReportedMigration()
    overhead: ReportedOverhead = ReportedOverhead()
    beyond: dict[str, int] = {}

    @property
    def lowered_to(self) -> str:
        """The fidelity, if the governor had lowered it; else an empty text."""
        changes = self.fidelity_changes
        lowered = changes.get("lower", 0) > changes.get("raise", 0)
        return self.fidelity if lowered or (self.daemon and self.daemon.fidelity_lowered) else ""

    def checked(self, verdict: str) -> int:
        """Return the number of checks of all invariants with this verdict."""
        return sum(getattr(one.checks, verdict) for one in self.invariants.values())


class StoredRun(msgspec.Struct, frozen=True):
    """A run of a store; ended is None if it still runs or was killed."""

    id: str
    kernel: str
    started: Time
    rmapd: str
    report: RunReport
    ended: Time | None = None


class ReportContents(msgspec.Struct, frozen=True):
    """Everything that an HTML or Markdown report shows.

    source: the name of the file. report: the run that is shown in full. rest: the number of
    findings without a signature of their own, by "invariant verdict". runs: all runs of a store.
    silent_seconds: how long ago the last run, if it has not ended, was last written.
    """

    source: str
    report: RunReport
    violations: list[ReportedViolation]
    rest: dict[str, int]
    runs: list[StoredRun] = []
    silent_seconds: float = 0.0

    @property
    def reports(self) -> list[RunReport]:
        """The reports of all runs."""
        return [run.report for run in self.runs] or [self.report]

    def report_of(self, v: ReportedViolation) -> RunReport:
        """Return the report of the last run that saw it, or the main one if that was deleted."""
        return next((run.report for run in self.runs if run.id == v.runs.get("last")), self.report)

    def checked(self, verdict: str) -> int:
        """Return the number of checks with this verdict in all runs."""
        return sum(report.checked(verdict) for report in self.reports)
