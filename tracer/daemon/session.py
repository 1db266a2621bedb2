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
from tracer.checking.cases import OpenCases
from tracer.checking.checker import Checker, CheckerTables
from tracer.checking.findings import Findings
from tracer.checking.protocol_events import ProtocolEvents, ProtocolTables
from tracer.checking.second_walks import SecondWalks
from tracer.config import CHANGEABLE, Config
from tracer.daemon import probes as probes_module
from tracer.daemon import required
from tracer.daemon.event_loop import TICK_SECONDS, EventLoop
from tracer.daemon.fidelity import Fidelity
from tracer.daemon.losses import LossTracker, run_counts
from tracer.daemon.oracle_setup import calibrate, make_oracle, page_table_levels
from tracer.daemon.probes import Probes
from tracer.daemon.program_costs import ProgramCosts
from tracer.daemon.recorder import Recorder
from tracer.invariants.base import Coverage
from tracer.invariants.catalogue import discover
from tracer.invariants.migration_walks import PASSED_OVER
from tracer.invariants.verdict import Tally
from tracer.kernel.running import Kernel
from tracer.kernel.symbolizer import Symbols
from tracer.kernel.taint import machine
from tracer.memory.objects import ObjectReader
from tracer.supervision.checkpoint import CheckpointMemory
from tracer.supervision.takeover import TakeoverRecord


class Session:
    """Checks what attached probes record. It owns no probe: open_session() detaches them.

    checker turns what is recorded into verdicts; fidelity has the level and the coverage; losses
    tracks what is not seen; loop waits for work. started_ns is when the session began, on `clock`.
    covered_at_start are the invariants that were covered then. oracle_reason says why there is no
    page-table oracle; it is empty where there is one.
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
    ) -> None:
        """Build the checker over attached probes; the gate stays as it is.

        clock: CLOCK_MONOTONIC in nanoseconds. oracle_reason and started_ns are those of the session
        that attached the probes, where that was another one; None: calibrate the oracle here.
        """
        kernel, loaded, tables = probes.kernel, probes.loaded, probes.tables
        levels, age_limit_ns = page_table_levels(kernel), int(config.max_entry_age_seconds * 1e9)
        self.config, self.probes, self.recorder, self.clock = config, probes, recorder, clock
        self.invariants, self.symbols, self.stopped = discover(), Symbols(kernel), False
        tables.params.set(levels=levels, max_entry_age_ns=age_limit_ns)
        oracle, reason = make_oracle(loaded, tables, probes.layouts, kernel)
        if oracle and oracle_reason is None:
            reason = calibrate(oracle, loaded, tables, probes.layouts, kernel, probes.page_size)
        elif oracle and oracle_reason is not None:
            reason = oracle_reason
        self.oracle_reason, oracle = reason, None if reason else oracle
        self.fidelity = Fidelity(
            probes.level,
            loaded,
            tables.params,
            tables.epochs,
            ProgramCosts(loaded, tables.window_times, tables.allowances),
            self.invariants,
            {"oracle"} if oracle else (),
            config.sampled_windows,
        )
        self.covered_at_start = self.fidelity.covered
        self.liveness = LivenessCheck(loaded.attachments, lambda: run_counts(loaded))
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
            levels,
            age_limit_ns,
            int(config.scan_seconds * 1e9),
            clock,
            time.thread_time_ns,
        )
        self.checker = Checker(
            tables=CheckerTables.of(tables),
            invariants=self.invariants,
            covered=self.covered_at_start,
            tally=Tally(lambda: machine(kernel.release)),
            open_cases=open_cases,
            second_walks=SecondWalks(
                tables.visits, self.losses.unbroken[PASSED_OVER.id], levels, clock
            ),
            findings=Findings(tables.stacks, kernel, self.symbols, clock, objects, trails),
            protocol_events=self.protocol_events,
            hooks=self.losses,
            age_limit_ns=age_limit_ns,
            clock=clock,
        )
        self.loop = EventLoop(
            probes.ring,
            self.checker,
            open_cases,
            self.fidelity,
            beat=recorder.beat,
            commit=self.commit,
            clock=clock,
        )
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
        self.loop.drain()
        self.checker.close(max(1.0, self.config.settle_seconds))
        self.commit()
        self.stopped = True

    def commit(self, *, stored: bool = False) -> None:
        """Keep the results in the memory that outlives this process; stored: the store has them."""
        rulings = self.protocol_events.rulings
        self.recorder.commit(self.checker, rulings, self.fidelity.level, stored=stored)

    def change(self, config: Config) -> list[str]:
        """Take over the keys of `config` that a running session can change (config.CHANGEABLE).

        Returns the other keys that differ: they need a restart.
        """
        stay = [
            name
            for name in Config.__struct_fields__
            if name not in CHANGEABLE and getattr(config, name) != getattr(self.config, name)
        ]
        self.config = msgspec.structs.replace(
            self.config, **{name: getattr(config, name) for name in CHANGEABLE}
        )
        age_limit_ns = int(config.max_entry_age_seconds * 1e9)
        self.probes.tables.params.set(max_entry_age_ns=age_limit_ns)
        self.fidelity.sample(config.sampled_windows)
        if self.fidelity.governor:
            self.fidelity.governor.budget = config.budget
        self.checker.change(age_limit_ns, int(config.scan_seconds * 1e9))
        return stay

    def load_symbols(self) -> None:
        """Read the kernel's symbols now: some 0.1 s that the first violation need not wait for."""
        self.symbols.name(0)


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
    with probes_module.attach(config, kernel, recorder, folders) as probes:
        session = Session(config, probes, recorder, clock)
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
