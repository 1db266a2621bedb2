"""A session: prepare, load, attach, open the gate, read and judge, close the gate, detach. One thread owns all of it."""

from __future__ import annotations

import contextlib
import os
import resource
import select
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType

import msgspec

import tracer
from tracer.attach import attach_process
from tracer.attach.liveness import LivenessCheck
from tracer.bpf import programs as program
from tracer.bpf.links import attached_to
from tracer.bpf.maps import Map
from tracer.bpf.programs import Program, RunStatistics
from tracer.checking.cases import OpenCases
from tracer.checking.checker import Checker, CheckerTables
from tracer.checking.findings import ENUMS, Findings
from tracer.checking.protocol_events import ProtocolEvents, ProtocolTables
from tracer.checking.second_walks import SecondWalks
from tracer.config import CHANGEABLE, LEVELS, Config
from tracer.daemon import required
from tracer.daemon.fidelity import Fidelity, probe_objects, runs
from tracer.daemon.governor import Governor, Pace
from tracer.daemon.losses import LossTracker
from tracer.daemon.recorder import Recorder
from tracer.invariants.base import Coverage
from tracer.invariants.catalogue import discover
from tracer.invariants.migration_walks import PASSED_OVER
from tracer.invariants.verdict import Tally, Verdict
from tracer.kernel.btf import FUNC
from tracer.kernel.running import Kernel
from tracer.kernel.symbolizer import Symbols
from tracer.kernel.taint import machine
from tracer.memory import calibration, objects
from tracer.memory.page_tables import Oracle
from tracer.process.privileges import User
from tracer.results.checks import all_checks
from tracer.results.snapshot import Snapshot
from tracer.supervision.checkpoint import Memory
from tracer.supervision.handed_down import HandedDown
from tracer.tables.c_structs import Layouts
from tracer.tables.tables import Tables

_TICK_SECONDS = 1.0
_COALESCE_SECONDS = 0.02


def probes_folder() -> Path:
    """Where the stems are: beside the package in a checkout, inside it in an installed wheel."""
    package = Path(tracer.__file__).parent
    inside = package / "probes"
    return inside if inside.exists() else package.parent / "probes"


def running_kernel() -> Kernel:
    """The running kernel, with the one capability probe that needs bpf(2)."""
    return Kernel.running(
        fentry_probe=lambda types: program.fentry_refused(types.find("schedule", FUNC) or 0)
    )


class Session:
    """Everything between attaching and detaching. Use as a context manager; the gate opens on entry.

    memory: where what is recorded outlives this process."""

    def __init__(
        self,
        config: Config,
        kernel: Kernel,
        folders: Sequence[Path] = (),
        clock: Callable[[], int] = time.monotonic_ns,
        memory: Memory | None = None,
    ) -> None:
        self.config, self.kernel, self.invariants = config, kernel, discover()
        self._clock, self._folders = clock, list(folders) or [probes_folder()]
        self._stopped, self.recorder = False, Recorder(memory)
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Session:
        try:
            self._attach()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self._stopped:
            self.tables.params.set(gate=0)
        self._stack.close()

    def _attach(self) -> None:
        include = self._folders[0] / "include"
        layouts = Layouts.read(include / "shared.h")
        level = LEVELS[0] if self.config.fidelity == "auto" else self.config.fidelity
        sizes, cache = (
            self.config.maps.sizes(),
            Path(self.config.cache) if self.config.cache else None,
        )
        enums = (*ENUMS, objects.PAGE_FLAGS)
        order = attach_process.AttachOrder(
            self._folders,
            probe_objects(level),
            layouts.constants,
            sizes,
            self.config.statistics,
            enums,
            cache,
        )
        self._build(attach_process.attach(self.kernel, order), layouts, level)
        required.check(self.config, self.invariants, self.coverage, self.oracle_reason)
        described = attach_process.describe(
            self.loaded, self._page_size, self.kernel.known_enums, links=False
        )
        self.recorder.begin(
            HandedDown.of(*described, self.fidelity, self._started_ns, self.oracle_reason)
        )
        self.tables.params.set(gate=1)

    def _build(self, attached: attach_process.AttachOutcome, layouts: Layouts, level: str) -> None:
        """All that judges, over what is attached."""
        self.kernel.known_enums |= attached.enums
        self._page_size = attached.page_size
        self.loaded = self._stack.enter_context(attached.probes)
        self.tables = Tables.of(self.recorder.tables(self.loaded), layouts)
        levels = 5 if self.kernel.five_level_paging else 4
        welcome_ns = int(self.config.max_entry_age_seconds * 1e9)
        self.tables.params.set(levels=levels, max_entry_age_ns=welcome_ns)
        oracle = self._oracle(layouts, levels, attached.page_size)
        self.open_cases = OpenCases(
            self.tables.ledger,
            oracle,
            levels,
            welcome_ns,
            int(self.config.scan_seconds * 1e9),
            self._clock,
        )
        features = {"oracle"} if oracle else ()
        self._fidelity = Fidelity(
            level,
            self.loaded,
            self.tables.params,
            self.tables.epochs,
            self.tables.window_times,
            self.tables.allowances,
            self.invariants,
            features,
            self.config.sampled_windows,
        )
        checked = self._fidelity.checked
        self._covered_at_start = checked
        symbols = self._symbols = Symbols(self.kernel)
        seen = objects.ObjectReader(
            self.loaded.maps,
            next(iter(self.loaded.programs.get("look", [])), None),
            layouts,
            self.kernel,
        )
        self.protocol_events = ProtocolEvents(
            ProtocolTables.of(self.tables), layouts, symbols, self.invariants, checked, seen
        )
        findings = Findings(
            self.tables.stacks, self.kernel, symbols, self._clock, seen, self.protocol_events.trails
        )
        self.watch = LivenessCheck(self.loaded.attachments, self._runs)
        self.losses = LossTracker(
            self.loaded, self.watch, self._fidelity, self.invariants, self._clock
        )
        self.judge = Checker(
            tables=CheckerTables.of(self.tables),
            invariants=self.invariants,
            covered=checked,
            tally=Tally(lambda: machine(self.kernel.release)),
            open_cases=self.open_cases,
            second_walks=SecondWalks(
                self.tables.visits, self.losses.unbroken[PASSED_OVER.id], levels, self._clock
            ),
            findings=findings,
            protocol_events=self.protocol_events,
            hooks=self.losses,
            age_limit_ns=welcome_ns,
            clock=self._clock,
        )
        self._ring = self.loaded.ring("events", self.recorder.note_event)
        self._stack.callback(self._ring.close)
        self._poll = select.poll()
        self._poll.register(self._ring.fd, select.POLLIN)
        self._started_ns = self._next_tick_ns = self._clock()
        self._base_user = resource.getrusage(resource.RUSAGE_SELF).ru_utime
        self.recorder.bind(self.judge, self.protocol_events.rulings, self._fidelity)

    @property
    def fidelity(self) -> str:
        return self._fidelity.level

    @property
    def coverage(self) -> Mapping[str, tuple[Coverage, str]]:
        return self._fidelity.coverage

    def govern(self, pace: Pace | None = None, who: User | None = None) -> list[str]:
        """Keep within the budget by the levels that are returned, where fidelity is `auto`; it takes BPF statistics.
        who: the user of the process that attaches again."""
        levels = self._fidelity.offered(self.config)
        if self.config.fidelity != "auto" or self.loaded.statistics_fd < 0 or len(levels) == 1:
            return levels[:1]
        if self.config.drop_privileges:
            self.loaded.start_reattach_helper(
                [
                    hook.probe_object
                    for hook in self.loaded.hooks
                    if not runs(hook.probe_object, levels[-1])
                ],
                who,
            )
        self._fidelity.governor = Governor(levels, self.config.budget, os.cpu_count() or 1, pace)
        return levels

    def warm(self) -> None:
        """Read the kernel's symbols now: some tenth of a second, that the first violation need not wait for."""
        self._symbols.name(0)

    def _runs(self) -> dict[str, int]:
        """How often each hook's programs ran, where it is we who have the kernel count: what others switch on they may switch off."""
        counts = self.loaded.statistics_fd >= 0
        return (
            {name: one.runs + one.missed for name, one in self.loaded.statistics().items()}
            if counts
            else {}
        )

    def _oracle(self, layouts: Layouts, levels: int, page_size: int) -> Oracle | None:
        maps, programs = (
            self.loaded.maps,
            {name: points[0] for name, points in self.loaded.programs.items()},
        )
        needed = {"walk", "sweep_upper", "sweep_leaf", "calibrate", "tasks"}
        self.oracle_reason = ""
        if absent := needed - self.loaded.attached():
            hooks = {hook.hook.name: hook for hook in self.loaded.hooks}
            self.oracle_reason = (
                "; ".join(f"{name}: {hooks[name].reason}" for name in sorted(absent & set(hooks)))
                or "its probes are missing"
            )
            return None
        oracle = Oracle(
            maps,
            programs,
            self.loaded.iterator("tasks"),
            self.tables.params,
            self.tables.swap_types,
            self.tables.other_mms,
            layouts,
            levels,
            self.kernel.page_tables,
        )
        self.oracle_reason = self._calibrate(maps, programs, oracle, layouts, page_size)
        return None if self.oracle_reason else oracle

    def _calibrate(
        self,
        maps: Mapping[str, Map],
        programs: Mapping[str, Program],
        oracle: Oracle,
        layouts: Layouts,
        page_size: int,
    ) -> str:
        """Why the oracle cannot be used, or empty."""
        return calibration.calibrate(
            maps, programs, oracle, self.tables.params, layouts, page_size, self.kernel.address_of
        ).reason

    def change(self, config: Config) -> list[str]:
        """Take over from `config` what a running session can change (config.CHANGEABLE); the names of what differs and needs a restart."""
        stay = [
            name
            for name in Config.__struct_fields__
            if name not in CHANGEABLE and getattr(config, name) != getattr(self.config, name)
        ]
        self.config = msgspec.structs.replace(
            self.config, **{name: getattr(config, name) for name in CHANGEABLE}
        )
        welcome_ns = int(config.max_entry_age_seconds * 1e9)
        self.tables.params.set(max_entry_age_ns=welcome_ns)
        self._fidelity.sample(config.sampled_windows)
        if self._fidelity.governor:
            self._fidelity.governor.budget = config.budget
        self.judge.change(welcome_ns, int(config.scan_seconds * 1e9))
        return stay

    def rehearse(self) -> tuple[object, ...]:
        """All that judging asks of the kernel, once: the same again, or a privilege is missing that it needs. /proc/kallsyms is opened the
        first time and kept, so a stack that is explained later has its names."""
        self.tables.params.set(gate=1)
        self.tables.protocol_table.counts()
        ledger = self.loaded.maps.get("ledger")
        taken = ledger.take(bytes(ledger.key_size)) if ledger else None  # no row has this key
        statistics, oracle, searched = self.snapshot().statistics, self.open_cases.oracle, False
        if oracle:
            first = oracle.mms()[:1]  # init's
            searched = (
                bool(oracle.ask([(mm, 0) for mm in first])) and oracle.sweep(first).tables > 0
            )
        standing = [attached_to(one.link.fd) for one in self.loaded.attachments()]
        return (
            taken,
            searched,
            self.kernel.shows_addresses(),
            standing,
            self.watch.check(),
            [(name, ran.program_id) for name, ran in statistics.items()],
        )

    def step(self, timeout: float = _TICK_SECONDS) -> bool:
        """Sleep until the kernel, the desk or the clock has work, then do it. True where a tick (once a second) was done."""
        self.recorder.beat()
        now, due = self._clock(), self.open_cases.due_ns()
        until = min(
            self._next_tick_ns,
            due if due is not None else self._next_tick_ns,
            now + int(timeout * 1e9),
        )
        ready = self._poll.poll(max(0.0, (until - now) / 1e6))
        if due is None and any(fd == self._ring.fd for fd, _ in ready):
            time.sleep(
                _COALESCE_SECONDS
            )  # let the rest of a burst arrive: one pass over the ledger serves it all
        known = len(self.judge.new_findings)
        self.judge.read_events(self._ring.read())
        if len(self.judge.new_findings) > known and self._clock() < self._next_tick_ns:
            self.recorder.commit()
            return False  # to be told before suspects are asked about and swept for: that may take long
        self.judge.work()
        if self._clock() < self._next_tick_ns:
            if len(self.judge.new_findings) > known:
                self.recorder.commit()
            return False
        self._next_tick_ns = self._clock() + int(_TICK_SECONDS * 1e9)
        self.judge.tick()
        self._fidelity.doubt(self.judge.doubts())
        self.open_cases.scan()
        self._fidelity.look(self._clock() / 1e9, self.judge.count_protocols)
        self.recorder.commit()
        return True

    def wake_by(self, fd: int) -> None:
        """From now on step() also wakes when this descriptor can be read; it is the caller who reads it."""
        self._poll.register(fd, select.POLLIN)

    def settle(self, seconds: float) -> None:
        """Let migrations that are under way end, and decide what is on the desk."""
        end = self._clock() + int(seconds * 1e9)
        while self._clock() < end:
            self.step(0.02)
            if not self.open_cases.cases and not self.judge.outstanding(
                self.tables.counters.read()
            ):
                return

    def stop(self) -> None:
        """Close the gate, judge what is left, keep the results; the programs stay until the context ends."""
        self.tables.params.set(gate=0)
        self.judge.read_events(self._ring.read())
        self.judge.close(max(1.0, self.config.settle_seconds))
        self.recorder.commit()
        self._stopped = True

    def totals(self) -> tuple[float, dict[str, int]]:
        """Seconds since the gate opened, and counts for a timeline: cheaper than a snapshot."""
        self.judge.count_protocols()
        counters = self.tables.counters.read()
        counted = self._checks(counters, self.loaded.statistics())
        totals = {
            verdict.value: sum(count for (_, found), count in counted.items() if found is verdict)
            for verdict in Verdict
        }
        totals |= {
            "windows": self.protocol_events.rulings.windows,
            "migration_entries": counters["ENTRIES_RECORDED"] + counters["ENTRIES_COPIED"],
        }
        return (self._clock() - self._started_ns) / 1e9, totals

    def _checks(
        self, counters: Mapping[str, int], statistics: Mapping[str, RunStatistics]
    ) -> dict[tuple[str, Verdict], int]:
        return all_checks(
            self.invariants.values(),
            self._covered_at_start,
            self.judge.tally.checks,
            counters,
            {name: run.missed for name, run in statistics.items()},
        )

    def snapshot(self) -> Snapshot:
        """Read everything once. What that finds is among the judge's new findings, and in the snapshot."""
        rows = [] if self._stopped else self.judge.catch_up().rows
        counters = self.tables.counters.read()
        outstanding = self.judge.outstanding(counters)
        oldest = max((self._clock() - row.first_ns for row in rows), default=0) / 1e9
        statistics = self.loaded.statistics()
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return Snapshot(
            kernel=self.kernel.release,
            fidelity=self._fidelity.level,
            fidelity_changes=self._fidelity.changes,
            gate_open=not self._stopped,
            running_seconds=(self._clock() - self._started_ns) / 1e9,
            hooks=tuple(self.loaded.hooks),
            invariants=self.invariants,
            coverage=self.coverage,
            checks=self._checks(counters, statistics),
            violations={v.first.id: v for v in self.judge.tally.violations.values()},
            statistics=statistics,
            histograms=self.tables.histograms.read(),
            window_times=self.tables.window_times.windows(),
            windows_unsampled=self.tables.allowances.unsampled(),
            lock_waits=self.tables.window_times.lock_waits(),
            lock_holds=self.tables.window_times.lock_holds(),
            protocols=tuple(self.protocol_events.rulings.protocols()),
            lock_graph=tuple(self.protocol_events.rulings.lock_graph()),
            unreadable=self.protocol_events.rulings.windows_unreadable,
            counters=counters,
            entries=dict(self.judge.entries),
            outstanding=outstanding,
            oldest_entry_seconds=oldest,
            oracle={**self.open_cases.answers, "sweeps": self.open_cases.sweeps},
            oracle_reason=self.oracle_reason,
            user_seconds=usage.ru_utime - self._base_user,
            peak_rss_bytes=usage.ru_maxrss * 1024,
            taken_seconds=time.time(),
            cpus=os.cpu_count() or 1,
            rest=dict(self.judge.tally.rest),
            required=required.required(self.config, self.invariants),
            age_limit_seconds=self.config.max_entry_age_seconds,
        )
