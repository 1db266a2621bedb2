"""Adding an invariant touches its own file: everything else reads what it declares."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest

import tracer.invariants
from tests.support.native import LAYOUTS, PROBES, ROOT
from tests.support.snapshots import snapshot
from tracer.attach import plan
from tracer.checking.protocol_verdicts import ProtocolVerdicts
from tracer.invariants.base import Coverage, Invariant
from tracer.invariants.catalogue import discover
from tracer.invariants.lock_waits import WRITER_WAITS
from tracer.invariants.verdict import Tally, Verdict
from tracer.outputs.prometheus import SnapshotCollector
from tracer.protocol.codec import Encoding
from tracer.protocol.text import parse
from tracer.report.explain import invariant_text
from tracer.results.checks import all_checks
from tracer.results.json_form import as_json

RUNBOOK = "/".join(("docs/runbooks", "P1.md"))  # there is no such page

MODULE = "invented_for_this_test"
NEW = """
from tracer.invariants.base import CheckCounters, Invariant, Loss, UnbrokenRuns
from tracer.invariants.verdict import Ruling, Verdict
from tracer.protocol.model import Protocol


def judge_moves(protocol: Protocol) -> Ruling | None:
    if protocol.window != "copy_vma":
        return None
    return Ruling(Verdict.VIOLATED, "move_page_tables() left a page table behind")


INVARIANTS = (
    Invariant(
        id="P1",
        title="moved page tables arrive",
        claim="After move_page_tables() the old range is empty.",
        stated="move_page_tables(), mm/mremap.c",
        not_violations="A range that was empty before.",
        confirmed="By the steps.",
        needs=("copy_vma", "move_page_tables"),
        lacking={"move_ptes": "single entries are not seen"},
        judge=judge_moves,
        counters=CheckCounters(holds=("P1_HOLDS",), violated=("P1_VIOLATED",)),
        losses=(Loss("moves", counters=("MOVES_LOST",), missed_runs=("move_page_tables",)),),
        unbroken=UnbrokenRuns("vma", ("move_page_tables",), "page-table moves"),
    ),
)
"""
COUNTERS = dict.fromkeys(LAYOUTS.enums["counter"], 0) | {
    "P1_HOLDS": 40,
    "P1_VIOLATED": 5,
    "MOVES_LOST": 3,
}


@pytest.fixture
def known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Invariant]]:
    """The catalogue with one module more, in a folder of its own."""
    (tmp_path / f"{MODULE}.py").write_text(NEW)
    monkeypatch.setattr(tracer.invariants, "__path__", [*tracer.invariants.__path__, str(tmp_path)])
    yield discover()
    sys.modules.pop(f"tracer.invariants.{MODULE}")


def test_new_module_is_discovered_after_the_known_families(known: dict[str, Invariant]) -> None:
    assert list(known)[-1] == "P1"
    assert known["P1"].runbook == RUNBOOK


def test_two_modules_with_one_id_are_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "another_m1.py").write_text(NEW.replace('"P1"', '"M1"'))
    monkeypatch.setattr(tracer.invariants, "__path__", [*tracer.invariants.__path__, str(tmp_path)])
    with pytest.raises(ValueError, match="declares M1"):
        discover()
    sys.modules.pop("tracer.invariants.another_m1")


def test_coverage_follows_the_declared_hooks(known: dict[str, Invariant]) -> None:
    one = known["P1"]
    assert one.coverage({"copy_vma"}) == (Coverage.NONE, "needs move_page_tables")
    assert one.coverage(one.needs) == (Coverage.PARTIAL, "single entries are not seen")
    assert one.coverage(one.hooks) == (Coverage.FULL, "")
    assert one.coverage(one.hooks, sampled="windows are sampled")[0] is Coverage.PARTIAL


def test_windows_are_judged_and_counted(known: dict[str, Invariant]) -> None:
    encoding, tally = Encoding(LAYOUTS), Tally()
    verdicts = ProtocolVerdicts(encoding, known, frozenset({"P1"}))
    verdicts.update({encoding.encode(parse("copy_vma[anon mmap:w ok]  {}".format(""))): 2})
    (finding,) = verdicts.report(tally, 0.0)
    assert (finding.invariant, finding.verdict) == ("P1", Verdict.VIOLATED)
    assert tally.checks == {("P1", Verdict.VIOLATED): 2}


def test_counters_and_losses_are_checks_as_declared(known: dict[str, Invariant]) -> None:
    decided = {("P1", Verdict.VIOLATED): 2}
    missed = {"move_page_tables": 10, "down_write": 1000}
    found = all_checks(known.values(), {"P1"}, decided, COUNTERS, missed)
    assert found == {
        ("P1", Verdict.HOLDS): 40,
        ("P1", Verdict.VIOLATED): 5,
        ("P1", Verdict.UNVERIFIABLE): 3 + 10,
    }


def test_losses_cost_an_uncovered_invariant_nothing(known: dict[str, Invariant]) -> None:
    found = all_checks(known.values(), (), {}, COUNTERS, {"move_page_tables": 10})
    assert ("P1", Verdict.UNVERIFIABLE) not in found


def test_report_and_metrics_export_it(known: dict[str, Invariant]) -> None:
    checks = all_checks(known.values(), {"P1"}, {}, COUNTERS, {})
    coverage = {name: one.coverage(known["P1"].needs) for name, one in known.items()}
    shown = snapshot(invariants=known, coverage=coverage, checks=checks, counters=COUNTERS)
    report = as_json(shown, ["true"], 0)
    assert report["invariants"]["P1"] == {
        "title": "moved page tables arrive",
        "coverage": "partial",
        "reason": "single entries are not seen",
        "checks": {"holds": 40, "violated": 5, "suspect": 0, "unverifiable": 3},
    }
    assert report["lost"]["moves"] == 3
    registry = CollectorRegistry()
    registry.register(SnapshotCollector(lambda: shown))
    metrics = generate_latest(registry).decode()
    for line in (
        'rmapd_checks_total{invariant="P1",verdict="holds"} 40.0',
        'rmapd_invariant_coverage{invariant="P1"} 0.5',
        '="moves"} 3.0',
    ):
        assert line in metrics


def test_explain_prints_its_words(known: dict[str, Invariant]) -> None:
    text = invariant_text(known["P1"])
    for words in ("move_page_tables(), mm/mremap.c", "move_ptes: single", RUNBOOK):
        assert words in text


def test_every_declared_counter_is_one_of_the_probes() -> None:
    for one in discover().values():
        found = one.counters
        names = {*found.holds, *found.violated, *found.unverifiable}
        names |= {name for loss in one.losses_by_check() for name in loss.counters}
        assert names <= set(LAYOUTS.enums["counter"]), one.id
        assert {report.kind for report in one.events} <= set(LAYOUTS.enums["event_kind"]), one.id
        assert all(
            report.summary.format(addr=1, mm=2, vma=3, folio=4, entry=5, where="")
            for report in one.events
        )


def test_every_declared_hook_is_one_of_the_probe_objects() -> None:
    objects = {path.stem: plan.read_probe_object(path) for path in PROBES.glob("*.toml")}
    hooks = {name: {hook.name for hook in one.hook} for name, one in objects.items()}
    every = {name for names in hooks.values() for name in names}
    for one in discover().values():
        assert one.hooks <= every | {"oracle", "audit", "owners", "kmsg", WRITER_WAITS}, one.id
        runs = {
            name for loss in one.losses for names in loss.missed_runs for name in names.split("|")
        }
        assert runs <= every, one.id
        if one.unbroken:
            assert set(one.unbroken.hooks) <= every, one.id
            assert one.unbroken.probe_object in hooks, one.id


def test_invariants_and_runbooks_are_the_same_set() -> None:
    """A runbook without its invariant shows that discover() lost one."""
    pages = {path.stem for path in (ROOT / "docs/runbooks").glob("[A-Z][0-9]*.md")}
    assert set(discover()) == pages
    assert all(one.runbook == f"docs/runbooks/{name}.md" for name, one in discover().items())


def test_invariants_are_in_the_order_of_families_and_numbers() -> None:
    families = [*"MLVR", *sorted({name[0] for name in discover()} - set("MLVR"))]
    assert list(discover()) == sorted(
        discover(), key=lambda name: (families.index(name[0]), int(name[1:]))
    )
