"""Counts are totals and nothing is counted twice; a protocol's first sighting becomes the evidence
of its finding."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.native import LAYOUTS
from tracer.checking.protocol_verdicts import ProtocolVerdicts
from tracer.invariants.base import Invariant
from tracer.invariants.catalogue import discover
from tracer.invariants.verdict import Ruling, Tally, Verdict
from tracer.protocol.codec import Encoding
from tracer.protocol.model import Protocol
from tracer.protocol.text import parse
from tracer.results.protocols import Sighting

ENCODING = Encoding(LAYOUTS)
EVERY = [name for name, one in discover().items() if one.judge or one.needs_every_window]
HOLDS, VIOLATED, SUSPECT, UNVERIFIABLE = Verdict

LEGAL = (
    "vma_expand[file anon moved mmap:w ok]  i_mmap↓w anon↓w anon- file- commit(mmap:w i_mmap:w"
    " anon:w) file+ anon+ anon↑w i_mmap↑w"
)
TURNED = "vma_expand[file anon mmap:w]  anon↓w i_mmap↓w i_mmap↑w anon↑w"
LEAK = "do_brk_flags[anon mmap:w] -ENOMEM  anon↓w anon- → [mmap:w anon:w]"
READER = "retract_page_tables[]  i_mmap↓r → [i_mmap:r]"
LOSSY = "vma_shrink[mmap:w]  ? i_mmap↓w"
LINES = (LEGAL, TURNED, LEAK, READER, LOSSY)


def key(line: str) -> bytes:
    return ENCODING.encode(parse(line))


def rulings(checked: list[str] = EVERY) -> ProtocolVerdicts:
    return ProtocolVerdicts(ENCODING, discover(), frozenset(checked))


def test_the_same_rows_again_change_nothing() -> None:
    checker = rulings()
    rows = {key(LEGAL): 10, key(LEAK): 2}
    first = checker.update(rows)
    assert checker.update(rows) == first
    assert first["L3", HOLDS] == 10
    assert first["L3", VIOLATED] == 2
    assert first["L5", HOLDS] == 10
    assert checker.update({key(LEGAL): 11})["L3", HOLDS] == 11
    assert checker.update({key(LEGAL): 4})["L3", HOLDS] == 11
    assert {ruled.protocol: ruled.windows for ruled in checker.protocols()} == {
        parse(LEGAL): 11,
        parse(LEAK): 2,
    }


def test_a_protocol_is_judged_once() -> None:
    judged = list[Protocol]()

    def judge(protocol: Protocol) -> Ruling:
        judged.append(protocol)
        return Ruling(HOLDS)

    checker = ProtocolVerdicts(
        ENCODING, {"X": Invariant("X", "t", "c", "s", "n", "c", judge=judge)}, frozenset({"X"})
    )
    for count in range(1, 5):
        checker.update({key(LEGAL): count, key(LEAK): count})
    assert judged == [parse(LEGAL), parse(LEAK)]
    assert checker.checks["X", HOLDS] == 8


def test_without_coverage_nothing_is_counted() -> None:
    checker = rulings(["L4"])
    checker.update({key(LEAK): 3})
    assert checker.checks == {("L4", HOLDS): 3}
    checker.cover(frozenset({"L3", "L4"}))
    checker.update({key(LEAK): 5})
    assert checker.checks == {("L4", HOLDS): 5, ("L3", VIOLATED): 2}


def test_a_finding_carries_its_sighting() -> None:
    checker, tally = rulings(), Tally()
    sighting = Sighting(
        {"pid": 7, "comm": "cc1"},
        ("do_brk_flags", "__x64_sys_brk"),
        {"start": "0x1000"},
        {"anon": "0xffff"},
    )
    checker.add_sighting(key(LEAK), sighting)
    checker.add_sighting(key(LEAK), Sighting({"pid": 8}))
    checker.update({key(LEAK): 2})
    (finding,) = checker.report(tally, 1.0)
    assert (finding.invariant, finding.verdict, finding.function) == (
        "L3",
        VIOLATED,
        "do_brk_flags",
    )
    assert (
        finding.shape == "do_brk_flags[anon mmap:w] -ENOMEM  lock(anon:w) anon- -> [mmap:w anon:w]"
    )
    assert finding.summary == "returns an error with the anon_vma rwsem held for write"
    assert finding.task == {"pid": 7, "comm": "cc1"}
    assert finding.stack == sighting.stack
    assert finding.protocol == LEAK
    assert finding.trail == sighting.trail
    assert finding.evidence == {
        "proven": True,
        "sighted": True,
        "vma": {"start": "0x1000"},
        "addresses": {"anon": "0xffff"},
    }
    checker.update({key(LEAK): 6})
    assert checker.report(tally, 2.0) == []
    (violation,) = tally.violations.values()
    assert (violation.count, violation.first_seen, violation.last_seen) == (6, 1.0, 2.0)
    assert tally.checks["L3", VIOLATED] == 6


def test_a_sighting_that_comes_late_completes_the_finding() -> None:
    checker, tally = rulings(), Tally()
    checker.update({key(LEAK): 1})
    (finding,) = checker.report(tally, 1.0)
    assert finding.evidence["sighted"] is False
    checker.add_sighting(key(LEAK), Sighting(stack=("do_brk_flags",)))
    assert checker.report(tally, 2.0) == []
    (violation,) = tally.violations.values()
    assert violation.first.stack == ("do_brk_flags",)
    assert violation.count == 1


def test_lost_events_make_rulings_on_whole_windows_unverifiable() -> None:
    checker = rulings()
    checker.update({key(TURNED): 1, key(LEAK): 1, key(READER): 1}, lossy=True)
    assert checker.checks["L1", UNVERIFIABLE] == 1
    assert checker.checks["L1", VIOLATED] == 0
    assert checker.checks["L3", UNVERIFIABLE] == 2
    assert checker.checks["L3", VIOLATED] == 0
    checker.update({key("outside[]  anon+(-)"): 1}, lossy=True)
    assert checker.checks["L4", VIOLATED] == 1, "a step and its lock's owner are one moment"
    checker.update({key(TURNED): 3})
    assert checker.checks["L1", UNVERIFIABLE] == 1
    assert checker.checks["L1", VIOLATED] == 2


def test_finding_of_a_cycle_has_both_directions() -> None:
    checker, tally = rulings(["L2"]), Tally()
    checker.add_sighting(key(LEGAL), Sighting(stack=("forth",)))
    checker.add_sighting(key(TURNED), Sighting(stack=("back",)))
    checker.update({key(LEGAL): 5})
    assert checker.checks == {("L2", HOLDS): 5}
    checker.update({key(LEGAL): 5, key(TURNED): 1})
    (finding,) = checker.report(tally, 1.0)
    assert finding.summary == "the lock classes form a cycle: anon -> i_mmap -> anon"
    assert finding.shape == "anon -> i_mmap -> anon"
    assert finding.evidence["edges"] == [
        {"held": "anon", "taken": "i_mmap", "protocol": TURNED, "stack": ["back"]},
        {"held": "i_mmap", "taken": "anon", "protocol": LEGAL, "stack": ["forth"]},
    ]


def test_a_key_that_cannot_be_read_is_counted_and_named() -> None:
    checker, odd = rulings(), b"\xff" * 72
    checker.update({odd: 2})
    checker.update({odd: 5})
    assert checker.windows_unreadable == 5
    assert "cannot read the protocol" in checker.unreadable[odd]
    assert checker.rule(odd) == {}
    assert not checker.checks


@pytest.mark.parametrize("line", LINES)
def test_the_rulings_of_a_key_can_be_asked_for(line: str) -> None:
    checker = rulings()
    assert set(checker.rule(key(line))) >= {"L3"}
    assert not checker.protocols(), "asking does not count"


@given(
    st.lists(
        st.tuples(
            st.dictionaries(st.sampled_from(LINES), st.integers(1, 50)),
            st.booleans(),
            st.booleans(),
        ),
        max_size=8,
    )
)
def test_totals_and_tally_stay_in_step(updates: list[tuple[dict[str, int], bool, bool]]) -> None:
    checker, tally, most = rulings(), Tally(), dict[str, int]()
    for rows, lossy, reported in updates:
        checker.update({key(line): count for line, count in rows.items()}, lossy=lossy)
        most = {line: max(most.get(line, 0), rows.get(line, 0)) for line in {*most, *rows}}
        if reported:
            checker.report(tally, 1.0)
    checker.report(tally, 2.0)
    assert +tally.checks == +checker.checks
    assert sum(
        count for (invariant, _), count in checker.checks.items() if invariant == "L3"
    ) == sum(most.values())
    found = sum(
        count for (_, verdict), count in checker.checks.items() if verdict in (VIOLATED, SUSPECT)
    )
    assert sum(violation.count for violation in tally.violations.values()) == found
