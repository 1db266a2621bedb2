"""The answers of the API as typed values: what the clients read of them (docs/API.md).

Keys that are not read here are left out. Names are printable, because they are made for people.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec

from tracer.report.model import ReportedInvariant

Time = Annotated[datetime.datetime, msgspec.Meta(tz=True)]


class Reason(msgspec.Struct, frozen=True):
    """Why the standing is not green."""

    kind: str
    text: str


class Standing(msgspec.Struct, frozen=True):
    """The state of the run in one colour."""

    colour: Literal["green", "amber", "red"]
    title: str
    reasons: list[Reason]
    coverage: str


class FoundTask(msgspec.Struct, frozen=True):
    """The task of a finding."""

    comm: str = ""
    pid: int = 0


class Finding(msgspec.Struct, frozen=True):
    """A violation or suspect, without its evidence."""

    id: str
    invariant: str
    verdict: Literal["violated", "suspect"]
    function: str
    count: int
    first_seen: Time
    last_seen: Time
    summary: str
    task: FoundTask = FoundTask()


class Migration(msgspec.Struct, frozen=True):
    """Migration entries by event. Times are in seconds."""

    outstanding: int
    oldest_entry_seconds: float = 0.0
    age_limit_seconds: float = 10.0
    entries_recorded: int = 0
    entries_removed: int = 0


class Audit(msgspec.Struct, frozen=True):
    """How far the state audit has come; reason: why there is none."""

    ready: bool
    reason: str
    doubts: dict[str, int]
    open_doubts: int
    known_mms: int
    oldest_look_seconds: float
    cpu_seconds: float
    budget: float
    passes: int = 0
    mms: int = 0
    vmas: int = 0
    nodes: int = 0
    climbs: int = 0


class Oracle(msgspec.Struct, frozen=True):
    """Whether page tables can be read; reason: why not."""

    ready: bool
    reason: str


class Store(msgspec.Struct, frozen=True):
    """The daemon's store; reason: why it cannot be written now."""

    path: str
    reason: str
    unwritten: int


class Costs(msgspec.Struct, frozen=True):
    """What the daemon costs; shares are of one CPU over the last minute, None: not known yet.

    longest_tick_gap_seconds: 0 where the daemon does not measure it.
    """

    probe_share: float | None
    user_share: float | None
    rss_bytes: int
    cpus: int
    longest_tick_gap_seconds: float = 0.0


class Status(msgspec.Struct, frozen=True):
    """The daemon on one screen."""

    rmapd: str
    run: str
    host: str
    kernel: str
    fidelity: str
    gate_open: bool
    standing: Standing
    duration_seconds: float
    taken: Time
    required: list[str]
    invariants: dict[str, ReportedInvariant]
    findings: list[Finding]
    beyond: dict[str, int]
    lost: dict[str, int]
    migration: Migration
    oracle: Oracle
    audit: Audit
    store: Store | None
    overhead: Costs

    @property
    def worst_first(self) -> list[Finding]:
        """The findings: violated before suspect, the latest first."""
        latest = sorted(self.findings, key=lambda one: one.last_seen, reverse=True)
        return sorted(latest, key=lambda one: one.verdict != "violated")

    def checks(self, verdict: str) -> int:
        """Return the checks of all invariants with this verdict."""
        return sum(getattr(one.checks, verdict) for one in self.invariants.values())


class Seen(msgspec.Struct, frozen=True):
    """A status as it came. exact: with names as they are. age_seconds: of what it shows."""

    status: Status
    exact: dict[str, Any]
    age_seconds: float


class Times(msgspec.Struct, frozen=True):
    """How often something took place and how long it took; bounds are powers of two."""

    count: int
    seconds: float
    p50_seconds: float
    p99_seconds: float
    longest_seconds: float


class Function(Times, frozen=True):
    """The windows of a function."""

    function: str
    unsampled: int


class Lock(msgspec.Struct, frozen=True):
    """How long tasks waited for a lock class and held it."""

    lock: str
    mode: str
    where: str
    wait: Times
    hold: Times

    @property
    def name(self) -> str:
        """The class, with the mode where it is known."""
        return self.lock if self.mode == "any" else f"{self.lock} {self.mode}"


class Entry(msgspec.Struct, frozen=True):
    """Outstanding migration entries at one address."""

    age_seconds: float
    migration_seconds: float | None
    tgid: int
    tid: int
    addr: str
    level: str
    count: int


class Rates(msgspec.Struct, frozen=True):
    """Counts since the gate opened, in columns: one row for each of `seconds`."""

    seconds: list[float]
    checks: dict[str, list[int]]
    unverifiable: list[int]
    windows: list[int]
    entries: list[int]
    outstanding: list[int]
    lost: list[int]
    probe_seconds: list[float]
    user_seconds: list[float]

    def __post_init__(self) -> None:
        columns: list[list[Any]] = [*self.checks.values(), self.windows, self.entries]
        columns += [self.outstanding, self.lost, self.probe_seconds, self.user_seconds]
        columns.append(self.unverifiable)
        if any(len(column) != len(self.seconds) for column in columns):
            raise ValueError("a column has another length than seconds")


Exact = Mapping[str, Any]
"""A part of an answer with names as they are."""
