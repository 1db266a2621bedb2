"""The state of the daemon at one moment. Outputs and reports read this and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from tracer.attach.plan import PlannedHook
from tracer.bpf.programs import RunStatistics
from tracer.invariants.base import Coverage, Invariant
from tracer.invariants.verdict import Verdict, Violation
from tracer.results.audit import AuditProgress
from tracer.results.checks import lost_events
from tracer.results.protocols import LockNesting, ProtocolVerdict
from tracer.tables.histogram import Histogram


@dataclass(frozen=True)
class StoreState:
    """The state of the store.

    reason: why it cannot be written now. unwritten: findings that are counted in memory only.
    seconds: spent writing. forgotten: signatures deleted for size or age. violated_since: the
    invariants that earlier runs of this boot have proven violated, with the Unix time of the first
    violation.
    """

    path: str = ""
    reason: str = ""
    unwritten: int = 0
    writes: int = 0
    failures: int = 0
    seconds: float = 0.0
    forgotten: int = 0
    violated_since: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class ConfigRead:
    """How the last reading of the configuration ended.

    successful: it was taken over. success_seconds: Unix time of the last one that was.
    """

    successful: bool = True
    success_seconds: float = 0.0

    def after(self, successful: bool, now: float) -> ConfigRead:
        """Return the state after another reading at the Unix time `now`."""
        return ConfigRead(successful, now if successful else self.success_seconds)

    def and_rules(self, taken: bool) -> ConfigRead:
        """Return the state where `web_config`, which is read by itself, was taken over or not."""
        return replace(self, successful=self.successful and taken)


@dataclass(frozen=True)
class OldEntry:
    """Migration entries at one address that are neither removed nor judged.

    age_seconds: since the first was inserted. migration_seconds: since their migration began; None
    outside of one. tgid, tid: of the task that migrates. level: 1 PTE, 2 PMD. count: of entries at
    this address, in all mms.
    """

    age_seconds: float
    migration_seconds: float | None
    tgid: int
    tid: int
    addr: int
    level: int
    count: int


@dataclass(frozen=True)
class Snapshot:
    """Counts since the gate opened; immutable. Times are in seconds.

    taken_seconds: since the epoch. began_seconds: when the counts began, since the epoch; 0:
    running_seconds before they were taken.
    host: its name. run: an id of this run of the daemon; another run has another one. oldest: the
    oldest entries that are outstanding, the oldest first. rest: findings beyond the bound on
    signatures. required: invariants that must be checkable. ended_early: why the run was cut short,
    in a sentence. entries: recorded migration entries whose removal was not seen, by M1's verdict
    on them. At every moment, recorded and copied entries are those removed, those in `entries`, and
    those outstanding. fidelity_lowered: of a span of a run (difference.py), the governor had
    lowered it at some time of it; None: fidelity_changes shows that. undecided: of a span, what has
    no verdict besides outstanding entries, in a sentence. longest_tick_gap_seconds: the longest
    time between two ticks of the checker, which are a second apart if nothing keeps it.
    statistics_seconds: for how long the kernel measured the programs; in between `statistics` is
    estimated. budget: the share of all CPUs' time that programs may take, by the configuration.
    """

    kernel: str
    fidelity: str
    gate_open: bool
    running_seconds: float
    hooks: tuple[PlannedHook, ...]
    invariants: Mapping[str, Invariant]
    coverage: Mapping[str, tuple[Coverage, str]]
    checks: Mapping[tuple[str, Verdict], int]
    violations: Mapping[str, Violation]
    statistics: Mapping[str, RunStatistics] = field(default_factory=dict)
    histograms: Mapping[str, Histogram] = field(default_factory=dict)
    window_times: Mapping[str, Histogram] = field(default_factory=dict)
    windows_unsampled: Mapping[str, int] = field(default_factory=dict)
    lock_waits: Mapping[str, Histogram] = field(default_factory=dict)
    lock_holds: Mapping[str, Histogram] = field(default_factory=dict)
    protocols: tuple[ProtocolVerdict, ...] = ()
    lock_graph: tuple[LockNesting, ...] = ()
    unreadable: int = 0
    counters: Mapping[str, int] = field(default_factory=dict)
    entries: Mapping[Verdict, int] = field(default_factory=dict)
    outstanding: int = 0
    oldest_entry_seconds: float = 0.0
    oldest: tuple[OldEntry, ...] = ()
    oracle: Mapping[str, int] = field(default_factory=dict)
    oracle_reason: str = ""
    audit: AuditProgress = field(default_factory=AuditProgress)
    otlp: Mapping[str, int] = field(default_factory=dict)
    statistics_seconds: float = 0.0
    user_seconds: float = 0.0
    peak_rss_bytes: int = 0
    longest_tick_gap_seconds: float = 0.0
    taken_seconds: float = 0.0
    began_seconds: float = 0.0
    cpus: int = 1
    fidelity_changes: Mapping[str, int] = field(default_factory=dict)
    rest: Mapping[tuple[str, Verdict], int] = field(default_factory=dict)
    store: StoreState | None = None
    required: tuple[str, ...] = ()
    age_limit_seconds: float = 10.0
    budget: float = 0.01
    config_read: ConfigRead = field(default_factory=ConfigRead)
    ended_early: str = ""
    run: str = ""
    host: str = ""
    fidelity_lowered: bool | None = None
    undecided: str = ""

    @property
    def lost(self) -> dict[str, int]:
        """Events that could not be recorded by what overflowed, and runs that the kernel missed."""
        missed = sum(run.missed for run in self.statistics.values())
        return lost_events(self.invariants.values(), self.counters, self.unreadable, missed)

    @property
    def lowered_to(self) -> str:
        """The fidelity, if the governor has lowered it; else an empty text."""
        changes = self.fidelity_changes
        lowered = changes.get("lower", 0) > changes.get("raise", 0)
        if self.fidelity_lowered is not None:
            lowered = self.fidelity_lowered
        return self.fidelity if lowered else ""

    @property
    def decided(self) -> dict[str, int]:
        """Recorded migration entries whose removal was not seen, by the name of their verdict."""
        words = {Verdict.HOLDS: "cleared"}
        return {
            words.get(verdict, verdict.value): self.entries.get(verdict, 0) for verdict in Verdict
        }

    @property
    def violated_since(self) -> dict[str, float]:
        """Since when invariants are known to be violated on this boot, in Unix time.

        By this run, and by earlier ones that are in the store. Violations that are only counted
        have no time of their own: they count from when this run began.
        """
        found = dict(self.store.violated_since) if self.store else {}
        for one in self.violations.values():
            if one.first.verdict is Verdict.VIOLATED:
                name, since = one.first.invariant, one.first_seen
                found[name] = min(since, found.get(name, since))
        began = float(round(self.began))
        counted = (name for name in self.invariants if self.checked(name, Verdict.VIOLATED))
        return {**dict.fromkeys(counted, began), **found}

    @property
    def began(self) -> float:
        """When the counts began, in seconds since the epoch."""
        return self.began_seconds or self.taken_seconds - self.running_seconds

    def total(self, verdict: Verdict) -> int:
        """Return the checks with this verdict, of all invariants."""
        return sum(count for (_, found), count in self.checks.items() if found is verdict)

    def checked(self, invariant: str, verdict: Verdict) -> int:
        """Return the checks of an invariant with this verdict."""
        return self.checks.get((invariant, verdict), 0)
