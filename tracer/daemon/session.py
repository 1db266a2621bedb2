"""A session: attached probes, and everything that checks what they record. One thread owns it."""

from __future__ import annotations

import contextlib
import resource
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from tracer.attach import attach_process
from tracer.attach.liveness import LivenessCheck
from tracer.checking.audit_findings import AuditFindings
from tracer.checking.cases import OpenCases
from tracer.checking.checker import Checker, CheckerTables
from tracer.checking.findings import Findings
from tracer.checking.kernel_reports import KernelReports
from tracer.checking.lock_owners import LockOwners
from tracer.checking.page_cache import KINDS as CACHE_EVENTS
from tracer.checking.page_cache import PageCache
from tracer.checking.protocol_events import ProtocolEvents, ProtocolTables
from tracer.checking.second_walks import SecondWalks
from tracer.checking.stalls import Stalls
from tracer.checking.state_audit import StateAudit
from tracer.checking.verdicts import Verdicts
from tracer.config import CHANGEABLE, Config
from tracer.daemon import probes as probes_module
from tracer.daemon import required
from tracer.daemon.audit_setup import make_audit, make_tree_reader
from tracer.daemon.event_loop import TICK_SECONDS, EventLoop
from tracer.daemon.fidelity import Fidelity
from tracer.daemon.kernel_log_setup import open_kernel_log
from tracer.daemon.losses import LossTracker, run_counts
from tracer.daemon.oracle_setup import calibrate, make_oracle
from tracer.daemon.owners_setup import make_lock_owners, make_owner_reader
from tracer.daemon.probes import Probes
from tracer.daemon.program_costs import ProgramCosts
from tracer.daemon.program_statistics import ProgramStatistics, is_emulated
from tracer.daemon.recorder import Recorder
from tracer.daemon.waits_setup import make_long_waits
from tracer.invariants.base import Coverage
from tracer.invariants.catalogue import discover
from tracer.invariants.kernel_reports import KERNEL_LOG
from tracer.invariants.lock_balance import OWNERS
from tracer.invariants.lock_waits import WRITER_WAITS
from tracer.invariants.maple_tree import AUDIT
from tracer.invariants.migration_walks import PASSED_OVER
from tracer.invariants.verdict import Tally
from tracer.kernel.kernel_log import KernelLog
from tracer.kernel.running import Kernel
from tracer.kernel.symbolizer import Symbols
from tracer.kernel.taint import machine
from tracer.memory.objects import ObjectReader
from tracer.results.audit import AuditProgress
from tracer.results.snapshot import ConfigRead
from tracer.supervision.checkpoint import CheckpointMemory
from tracer.supervision.takeover import TakeoverRecord
from tracer.tables.events import Event


class Session:
    """Checks what attached probes record. It owns no probe: open_session() detaches them.

    checker turns what is recorded into verdicts; fidelity has the level and the coverage; losses
    tracks what is not seen; loop waits for work. started_ns is when the session began, on `clock`.
    covered_at_start are the invariants that were covered then. oracle_reason says why there is no
    page-table oracle; it is empty where there is one. statistics has what the programs cost. audit
    looks at the trees of all mms; None where it cannot, and audit_reason says why. owners follows
    the locks that it finds owned. long_waits finds tasks that wait for themselves, in a ring, or
    for long.
    """

    def __init__(
        self,
        config: Config,
        probes: Probes,
        recorder: Recorder,
        clock: Callable[[], int] = time.monotonic_ns,
        *,
        oracle_reason: str | None = None,
        started_ns: int | None = None,
        kernel_log: KernelLog | str = "it is not read here",
    ) -> None:
        """Build the checker over attached probes; the gate stays as it is.

        clock: CLOCK_MONOTONIC in nanoseconds. oracle_reason and started_ns are those of the session
        that attached the probes, where that was another one; None: calibrate the oracle here.
        kernel_log: its reader, or why there is none.
        """
        kernel, loaded, tables = probes.kernel, probes.loaded, probes.tables
        loaded.closed = recorder.beat
        age_limit_ns = int(config.max_entry_age_seconds * 1e9)
        self.config, self.probes, self.recorder, self.clock = config, probes, recorder, clock
        self.config_read = ConfigRead(success_seconds=time.time())
        self.invariants, self.symbols, self.stopped = discover(), Symbols(kernel), False
        tables.params.set(max_entry_age_ns=age_limit_ns)
        if oracle_reason is None:
            tables.params.set_page_format(kernel.page_format())
        oracle, reason = make_oracle(loaded, tables, probes.layouts, kernel)
        if oracle and oracle_reason is None:
            reason = calibrate(oracle, loaded, tables, probes.layouts, kernel, probes.page_size)
        elif oracle and oracle_reason is not None:
            reason = oracle_reason
        page_format = tables.params.page_format()
        self.oracle_reason, oracle = reason, None if reason else oracle
        trees, self.audit_reason = make_tree_reader(probes, oracle, reason, config.audit_budget)
        owner_reader, why = make_owner_reader(loaded, probes.layouts)
        self.statistics = ProgramStatistics(loaded, throughout=is_emulated(), clock=clock)
        self.fidelity = Fidelity(
            probes.level,
            loaded,
            tables.params,
            tables.epochs,
            ProgramCosts(loaded, self.statistics, tables.window_times, tables.allowances),
            self.invariants,
            {
                name
                for name, part in (("oracle", oracle), (AUDIT, trees), (OWNERS, owner_reader))
                if part
            }
            | ({KERNEL_LOG} if isinstance(kernel_log, KernelLog) else set())
            | (set() if kernel.realtime else {WRITER_WAITS}),
            config.sampled_windows,
            {name: lacks for name, lacks in ((AUDIT, self.audit_reason), (OWNERS, why)) if lacks}
            | ({KERNEL_LOG: kernel_log} if isinstance(kernel_log, str) else {}),
        )
        self.covered_at_start = self.fidelity.covered
        self.liveness = LivenessCheck(
            loaded.attachments, lambda: run_counts(loaded), self.statistics.counting
        )
        self.losses = LossTracker(loaded, self.liveness, self.fidelity, self.invariants, clock)
        reader = next(iter(loaded.programs.get("look", [])), None)
        objects = ObjectReader(loaded.maps, reader, probes.layouts, kernel)
        self.protocol_events = ProtocolEvents(
            ProtocolTables.of(tables),
            probes.layouts,
            self.symbols,
            self.invariants,
            self.covered_at_start,
            objects,
        )
        trails = self.protocol_events.trails
        open_cases = OpenCases(
            tables.ledger,
            oracle,
            page_format,
            age_limit_ns,
            int(config.scan_seconds * 1e9),
            clock,
            time.thread_time_ns,
        )
        verdicts = Verdicts(Tally(lambda: machine(kernel.release)))
        stalls = Stalls(int(TICK_SECONDS * 1e9))
        self.long_waits = make_long_waits(
            loaded,
            probes.layouts,
            tables.stacks,
            self.symbols,
            trails,
            verdicts,
            int(config.max_wait_seconds * 1e9),
            stalls,
            clock,
            preempts_programs=kernel.realtime,
        )
        self.kernel_reports: KernelReports | None = None
        if isinstance(kernel_log, KernelLog):
            self.kernel_reports = KernelReports(
                kernel_log,
                tables.events,
                tables.stacks,
                self.symbols,
                trails,
                tables.flight_recorder,
                verdicts,
                lambda: "complaint" in loaded.attached(),
                clock,
            )
        page_cache = PageCache(verdicts, tables.stacks, self.symbols, objects, oracle, trails)
        self.checker = Checker(
            tables=CheckerTables.of(tables),
            invariants=self.invariants,
            covered=self.covered_at_start,
            verdicts=verdicts,
            open_cases=open_cases,
            second_walks=SecondWalks(
                tables.visits, self.losses.unbroken[PASSED_OVER.id], page_format, clock
            ),
            findings=Findings(tables.stacks, kernel, self.symbols, clock, objects, trails),
            protocol_events=self.protocol_events,
            handlers={
                "WAITS_FOR_ITSELF": self.long_waits.read_event,
                "COMPLAINT": self.kernel_reports.read_event if self.kernel_reports else _ignore,
                **dict.fromkeys(CACHE_EVENTS, page_cache.read_event),
            },
            hooks=self.losses,
            stalls=stalls,
            age_limit_ns=age_limit_ns,
            clock=clock,
        )
        self.owners: LockOwners | None = None
        if owner_reader:
            self.owners = make_lock_owners(
                owner_reader, loaded, self.checker.verdicts, objects.vma, clock
            )
        self.audit: StateAudit | None = None
        if trees:
            self.audit = make_audit(
                trees,
                probes,
                self.invariants,
                self.checker.verdicts,
                AuditFindings(self.invariants, trees, objects, trails, clock),
                self.owners.note if self.owners else lambda _locks: None,
                config.audit_budget,
                clock,
            )
        self.loop = EventLoop(
            probes.ring,
            self.checker,
            open_cases,
            [
                part
                for part in (self.audit, self.owners, self.long_waits, self.kernel_reports)
                if part
            ],
            self.fidelity,
            stalls=stalls,
            beat=recorder.beat,
            commit=self.commit,
            clock=clock,
        )
        if self.kernel_reports:
            self.loop.wake_by(self.kernel_reports.fd)
        self.started_ns = clock() if started_ns is None else started_ns
        self.user_seconds_at_start = resource.getrusage(resource.RUSAGE_SELF).ru_utime

    @property
    def coverage(self) -> Mapping[str, tuple[Coverage, str]]:
        """The coverage of each invariant now, with the reason where it is not full."""
        return self.fidelity.coverage

    def open_gate(self) -> None:
        """Let the programs record from now on."""
        self.probes.tables.params.set(gate=1)

    def close_gate(self) -> None:
        """Let the programs record nothing from now on."""
        self.probes.tables.params.set(gate=0)

    def step(self, timeout: float = TICK_SECONDS) -> bool:
        """Sleep until there is work, `timeout` seconds at most, and do it.

        Returns whether a tick was done, which happens once a second.
        """
        return self.loop.step(timeout)

    def settle(self, seconds: float) -> None:
        """Let migrations in progress end and decide open cases, for `seconds` at most."""
        self.loop.settle(seconds, self.outstanding)

    def outstanding(self) -> int:
        """Return how many recorded migration entries are neither removed nor decided."""
        return self.checker.outstanding(self.probes.tables.counters.read())

    def stop(self) -> None:
        """Close the gate and check what is left; the programs stay attached."""
        self.close_gate()
        if self.owners:
            self.owners.close()
        self.long_waits.close()
        self.loop.drain()
        if self.kernel_reports:
            self.kernel_reports.close()
        self.checker.close(max(1.0, self.config.settle_seconds))
        self.commit()
        self.stopped = True

    def commit(self, *, stored: bool = False) -> None:
        """Keep the results in the memory that outlives this process; stored: the store has them."""
        rulings = self.protocol_events.rulings
        self.recorder.commit(self.checker, rulings, self.fidelity.level, stored=stored)

    def audit_now(self) -> None:
        """Make a whole pass of the state audit, where there is one, and decide what it doubts."""
        if self.audit:
            self.audit.whole_pass(time.sleep)
        if self.owners:
            self.owners.settle(time.sleep)

    def audit_progress(self) -> AuditProgress:
        """Return how far the state audit has come."""
        return self.audit.progress() if self.audit else AuditProgress(reason=self.audit_reason)

    def change(self, config: Config) -> None:
        """Take over the keys of `config` that a running session can change (config.CHANGEABLE)."""
        self.config = msgspec.structs.replace(
            self.config, **{name: getattr(config, name) for name in CHANGEABLE}
        )
        age_limit_ns = int(config.max_entry_age_seconds * 1e9)
        self.probes.tables.params.set(max_entry_age_ns=age_limit_ns)
        self.long_waits.limit_ns = int(config.max_wait_seconds * 1e9)
        self.fidelity.sample(config.sampled_windows)
        if self.fidelity.governor:
            self.fidelity.governor.budget = config.budget
        self.checker.change(age_limit_ns, int(config.scan_seconds * 1e9))

    def load_symbols(self) -> None:
        """Read the kernel's symbols now: some 0.1 s that the first violation need not wait for."""
        self.symbols.name(0)


def _ignore(_event: Event, _raw: bytes) -> None:
    """Take an event that nothing waits for."""


@contextlib.contextmanager
def open_session(
    config: Config,
    kernel: Kernel,
    folders: Sequence[Path] = (),
    clock: Callable[[], int] = time.monotonic_ns,
    memory: CheckpointMemory | None = None,
) -> Iterator[Session]:
    """Attach, open the gate, and yield a session; close the gate and detach at the exit.

    folders: of probe objects, if not rmapd's own. memory: where results outlive this process.
    Raises RmapdError where attaching fails, or a required invariant cannot be checked.
    """
    recorder = Recorder(memory)
    with (
        probes_module.attach(config, kernel, recorder, folders) as probes,
        open_kernel_log(probes.level, clock) as kernel_log,
    ):
        session = Session(config, probes, recorder, clock, kernel_log=kernel_log)
        required.check(config, session.invariants, session.coverage, session.oracle_reason)
        described = attach_process.describe(
            probes.loaded, probes.page_size, kernel.known_enums, links=False
        )
        level, started_ns = session.fidelity.level, session.started_ns
        recorder.begin(TakeoverRecord.create(*described, level, started_ns, session.oracle_reason))
        session.open_gate()
        try:
            yield session
        finally:
            if not session.stopped:
                session.close_gate()
