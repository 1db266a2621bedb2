"""A session over a model kernel: complete when it exists; snapshots that only read; resuming."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest

from tests.support.model_kernel import ModelKernel
from tests.support.native import LAYOUTS, attach_plan, synthetic_kernel
from tracer.attach.attach_process import AttachReply
from tracer.attach.attached import AttachedProbes
from tracer.attach.plan import HookState
from tracer.config import Config
from tracer.daemon.probes import Probes
from tracer.daemon.recorder import Recorder, resume
from tracer.daemon.session import Session
from tracer.daemon.snapshots import build_snapshot, build_totals, catch_up
from tracer.invariants.base import Coverage
from tracer.invariants.verdict import Verdict
from tracer.supervision.checkpoint import CheckpointMemory, read
from tracer.supervision.takeover import TakeoverRecord

ADDR = 0x7F0000000000


class Bench:
    """A model kernel with sessions over its maps. All hooks but the oracle's count as attached."""

    def __init__(self) -> None:
        self.model, self.events = ModelKernel(), os.eventfd(0)
        self.memory = CheckpointMemory(1 << 20)
        hooks = [
            replace(hook, state=HookState.MISSING, reason="left out by the test")
            if hook.probe_object == "page_tables"
            else hook.attached(0)
            for one in attach_plan().probe_objects
            for hook in one.hooks
            if hook.methods
        ]
        ring = SimpleNamespace(fd=self.events, read=self.model.native.events)
        self.probes = Probes(
            synthetic_kernel(),
            AttachedProbes(hooks=hooks, maps=cast(Any, self.model.native.maps)),
            LAYOUTS,
            self.model.tables,
            cast(Any, ring),
            64,
            "full",
        )

    def session(self, config: Config | None = None) -> Session:
        recorder = Recorder(self.memory)
        recorder.begin(TakeoverRecord(AttachReply(), [], "full", 0, "", []))
        return Session(config or Config(), self.probes, recorder, lambda: self.model.now)

    def remove_late(self) -> None:
        """Let a migration entry be removed after 30 s, three times the age limit."""
        mm, migration = self.model.new_mm(), self.model.start(77)
        pfn = self.model.map_page(mm, ADDR)
        self.model.unmap_folio(migration, pfn)
        self.model.tick(30 * 10**9)
        self.model.remap_folio(migration, pfn)
        self.model.end(migration)

    def gate(self) -> int:
        return int(self.model.tables.params.get().gate)


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    os.close(made.events)


def test_session_is_complete_when_it_exists(bench: Bench) -> None:
    session = bench.session()
    assert session.oracle_reason.startswith("calibrate: left out by the test")
    assert session.covered_at_start == session.fidelity.covered >= {"M1", "L1", "V1"}
    assert session.step(0) is True
    snapshot = build_snapshot(session)
    assert (snapshot.gate_open, snapshot.fidelity) == (True, "full")


def test_snapshot_and_totals_read_without_side_effects(bench: Bench) -> None:
    session = bench.session()
    bench.remove_late()
    before = build_snapshot(session)
    build_totals(session)
    assert build_snapshot(session).checks == before.checks
    assert before.checked("M4", Verdict.SUSPECT) == 0
    assert session.checker.new_findings == ()
    assert catch_up(session) == []
    assert build_snapshot(session).checks["M4", Verdict.SUSPECT] == 1


def test_snapshot_names_the_oldest_entries_outstanding(bench: Bench) -> None:
    session = bench.session()
    mm, addresses = bench.model.new_mm(), []
    for number in range(25):
        migration = bench.model.start(100 + number)
        addr = ADDR + 4096 * number
        bench.model.unmap_folio(migration, bench.model.map_page(mm, addr))
        addresses.append(addr)
        bench.model.tick(10**6)
    snapshot = build_snapshot(session, catch_up(session))
    assert [one.addr for one in snapshot.oldest] == addresses[:20]
    first = snapshot.oldest[0]
    assert first.age_seconds == snapshot.oldest_entry_seconds
    assert first.migration_seconds is not None
    assert first.migration_seconds >= first.age_seconds >= 0.025
    assert (first.tid, first.level, first.count) == (100, 1, 1)


def test_run_is_the_one_of_the_store_or_of_its_start(bench: Bench) -> None:
    session = bench.session()
    assert build_snapshot(session).run == f"{session.started_ns:016x}"
    session.recorder.run = "0123456789abcdef"
    assert build_snapshot(session).run == "0123456789abcdef"


def test_coverage_of_a_snapshot_does_not_change_later(bench: Bench) -> None:
    session = bench.session()
    before = build_snapshot(session)
    name = min(session.fidelity.covered)
    session.fidelity.doubt({name: "runs were missed"})
    assert "runs were missed" not in before.coverage[name][1]
    level, reason = build_snapshot(session).coverage[name]
    assert (level, "runs were missed" in reason) == (Coverage.PARTIAL, True)


def test_stop_closes_the_gate_and_checks_the_rest(bench: Bench) -> None:
    session = bench.session(Config(settle_seconds=0.0))
    bench.remove_late()
    session.stop()
    assert (bench.gate(), session.stopped) == (0, True)
    snapshot = build_snapshot(session, catch_up(session))
    assert (snapshot.gate_open, snapshot.checks["M4", Verdict.SUSPECT]) == (False, 1)


def test_change_takes_over_what_needs_no_restart_and_nothing_else(bench: Bench) -> None:
    session = bench.session()
    wanted = msgspec.structs.replace(Config(), max_entry_age_seconds=7.0, strict=True)
    session.change(wanted)
    assert bench.model.tables.params.get().max_entry_age_ns == 7 * 10**9
    assert session.config == msgspec.structs.replace(Config(), max_entry_age_seconds=7.0)


def test_session_resumes_from_the_log_of_a_dead_one(bench: Bench) -> None:
    first = bench.session()
    bench.remove_late()
    catch_up(first)
    first.commit()
    expected, left = build_snapshot(first), read(bench.memory)
    second = bench.session()
    resume(left, second.checker, second.protocol_events.rulings)
    assert build_snapshot(second).checks == expected.checks
    assert build_snapshot(second).entries == expected.entries
    catch_up(second)
    assert build_snapshot(second).checks == expected.checks, "nothing is counted twice"
