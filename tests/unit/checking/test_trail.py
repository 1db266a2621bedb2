"""The trail: which windows it has, which one it points at and why, and what it says where the
recorder has wrapped."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.support.box import ENCODING, Box, Vma, box
from tests.support.native import LAYOUTS, synthetic_kernel
from tests.unit.checking.test_protocol_events import protocol_events_of
from tests.unit.probes.test_windows import grow
from tracer.checking.trail import Trail, TrailEntry, Trails, entry_of
from tracer.invariants.catalogue import discover
from tracer.invariants.verdict import Tally
from tracer.kernel.symbolizer import Symbols
from tracer.kernel.taint import machine, switches, taint_letters
from tracer.packed import unpack
from tracer.tables.ledger import Row, Visited

MIGRATOR, FOLIO, NEW_FOLIO = 99, 0xF000, 0xE000


def trails(b: Box, rules: bool = True) -> Trails:
    kernel = synthetic_kernel()
    protocol_events = protocol_events_of(b, discover())
    return Trails(
        b.tables.protocol_table,
        b.tables.flight_recorder,
        b.tables.stacks,
        Symbols(kernel),
        ENCODING,
        protocol_events.rulings.rule if rules else lambda _key: {},
    )


def entry(b: Box, vma: Vma, since: int, **changes: Any) -> TrailEntry:
    return replace(
        TrailEntry(
            since, MIGRATOR, {b.mm}, [(0x1000, 0x3000)], {FOLIO}, {b.anon_lock(vma.anon_vma)}
        ),
        **changes,
    )


def world() -> tuple[Box, Vma, int]:
    """A VMA whose page migrates from `since` on."""
    b = box()
    b.held(b.mmap_lock)
    vma = b.vma(0x1000, 0x3000, anon=b.anon_vma())
    grow(b, vma, 0x4000)
    b.tick(1000)
    return b, vma, b.now


def says(trail: Trail) -> Mapping[str, Any]:
    assert trail.marked, trail.note
    return trail.marked


def test_a_change_that_broke_a_rule_on_the_entrys_vma_is_the_one() -> None:
    b, vma, since = world()
    grow(b, vma, 0x5000, locked=False)
    b.tick(1000)
    grow(b, vma, 0x6000)
    b.tick(1000)
    trail = trails(b).of_entry(entry(b, vma, since, visited=False), b.now)
    assert len(trail.steps) == 2, "what ended before the first walk is not there"
    assert says(trail)["vma"]["vm_end"] == "0x5000"
    assert "__vma_adjust() broke L4" in says(trail)["why"]
    assert "on the entry's VMA" in says(trail)["why"]
    assert trail.note == "The flight recorder has all since then."


def test_a_boundary_that_moved_is_the_one_where_no_rule_was_broken_and_the_walk_did_not_come() -> (
    None
):
    b, vma, since = world()
    grow(b, vma, 0x5000)
    for visited, marked in ((False, True), (None, True), (True, False)):
        trail = trails(b).of_entry(entry(b, vma, since, visited=visited), b.now)
        assert bool(trail.marked) is marked
    assert "did not put the page back" in trail.note
    assert len(trail.steps) == 1


def test_windows_of_other_address_spaces_and_before_are_not_in_it() -> None:
    b, vma, since = world()
    other = trails(b).of_entry(entry(b, vma, since, visited=False), b.now)
    assert not other.steps
    assert "the second walk itself passed the VMA over" in other.note
    grow(b, vma, 0x5000)
    assert not trails(b).of_entry(entry(b, vma, since, mms={1}, locks=()), b.now).steps
    assert trails(b).of_entry(entry(b, vma, since, mms={1}), b.now).steps, "the same anon root"


def test_the_second_walk_is_marked_where_it_came_and_put_nothing_back() -> None:
    b, vma, since = world()
    b.become(MIGRATOR)
    folio = b.take(128)
    b.set(folio, "folio.mapping", vma.anon_vma + 1)
    for visits in (True, False):
        b.tick(1000)
        with b.call("rmap_walk_anon", folio, 0, 0):
            if visits:
                b.touch("remove_migration_pte", folio, vma.at, 0x1000, 0)
    seen = trails(b).of_entry(
        entry(b, vma, since, brought={folio}, folios={FOLIO, folio}, visited=True), b.now
    )
    assert [step["function"] for step in seen.steps] == ["rmap_walk_anon"] * 2
    assert says(seen)["why"].startswith(
        "the second walk of this page: remove_migration_pte() was called"
    )
    assert "visit(" in says(seen)["protocol"]


def test_note_says_that_the_recorder_has_wrapped() -> None:
    b, vma, since = world()
    for end in range(0x5000, 0xF000, 0x1000):
        grow(b, vma, end)
        b.tick(1_000_000)
    trail = trails(b, rules=False).of_entry(entry(b, vma, since, visited=True), b.now)
    assert len(trail.steps) == 8, "the rows of one CPU"
    assert (
        "The flight recorder has wrapped: VMA changes that ended more than 0.008 s before are"
        " overwritten" in trail.note
    )
    assert "What is not in the recorder may be what explains it." in trail.note


def test_note_omits_sampling_that_ended_before_the_entry() -> None:
    b, vma, _ = world()
    params = b.tables.params
    params.set(window_ns=10**9)
    b.tick(10_000_000)
    for end in (0x5000, 0x6000, 0x7000):
        grow(b, vma, end)
    params.set(window_ns=0)
    b.tick(1_000_000_000)
    trail = trails(b, rules=False).of_entry(
        entry(b, vma, b.now, mms={1}, locks=(), visited=False), b.now
    )
    assert trail.note.startswith(
        "The flight recorder has all since then. No window changed the address space"
    )


def test_note_names_sampling() -> None:
    """That no window is there is no proof that none was."""
    b, vma, since = world()
    b.tick(10_000_000)
    b.tables.params.set(window_ns=10**9)
    for end in (0x5000, 0x6000, 0x7000):
        grow(b, vma, end)
    trail = trails(b, rules=False).of_entry(
        entry(b, vma, since, mms={1}, locks=(), visited=False), b.now
    )
    assert not trail.steps
    assert (
        trail.note
        == "Nothing since then is overwritten. Windows were sampled: not all are in it. What is not"
        " in the recorder may be what explains it."
    )


def test_walks_do_not_push_changes_out() -> None:
    b, vma, since = world()
    grow(b, vma, 0x5000)
    b.become(MIGRATOR)
    for _ in range(50):
        b.tick(1000)
        with b.call("rmap_walk_anon", b.take(128), 0, 0):
            pass
    trail = trails(b, rules=False).of_entry(entry(b, vma, since, visited=False), b.now)
    assert says(trail)["function"] == "__vma_adjust"
    assert "rmap walks that ended" in trail.note
    assert "VMA changes" not in trail.note


def test_an_accused_window_ends_its_trail_even_where_the_recorder_lost_it() -> None:
    b = box()
    vma = b.vma(0x1000, 0x3000, anon=b.anon_vma())
    with b.call("unlink_anon_vmas", vma.at):
        b.tree(vma, vma.anon_vma, enter=False)
    raw = b.native.events()
    for _ in range(20):  # another task's, elsewhere: they push the window out of its row
        b.tick(1000)
        b.become(8)
        other = b.vma(0x1000, 0x3000, anon=b.anon_vma())
        with b.call("unlink_anon_vmas", other.at):
            pass
    protocol_events = protocol_events_of(b)
    for each in raw:
        protocol_events.read_event(b.tables.events.decode(each), each)
    (finding,) = protocol_events.work(Tally(), dict.fromkeys(LAYOUTS.enums["counter"], 0), 0, 1.0)
    (last,) = unpack(finding.trail)
    assert last["protocol"] == finding.protocol == "unlink_anon_vmas[anon]  anon-(-)"
    assert last["marked"]
    assert "this window broke L4" in last["why"]
    assert "has wrapped" in finding.evidence["trail_note"]


def test_a_trail_is_what_led_to_the_accused_window_and_no_more() -> None:
    """Of many windows of its address space the last before it, itself, and none that came after."""
    b = box(FLIGHT_ROWS=64)
    vma = b.vma(0x1000, 0x3000, anon=b.anon_vma())
    ends = []
    for number in range(60):
        b.tick(1000)
        grow(b, vma, 0x4000 + number * 0x1000)
        ends.append(b.now)
        if number == 49:
            b.native.events()
            b.tick(1000)
            with b.call("unlink_anon_vmas", vma.at):
                b.tree(vma, vma.anon_vma, enter=False)
            accused, (raw,) = b.now, b.native.events()
    protocol_events = protocol_events_of(b)
    protocol_events.read_event(b.tables.events.decode(raw), raw)
    (finding,) = protocol_events.work(Tally(), dict.fromkeys(LAYOUTS.enums["counter"], 0), 0, 1.0)
    assert [step["time_ns"] for step in unpack(finding.trail)] == [*ends[50 - 31 : 50], accused]
    assert [step.get("marked", False) for step in unpack(finding.trail)] == [False] * 31 + [True]
    assert finding.evidence["trail_note"] == "The flight recorder has all since then."


def test_trail_entry_is_made_from_the_ledger_row() -> None:
    visited = {5: Visited(5, 1, 0xAA, 0x1000, 0x9000, FOLIO, 0x2000, 1, NEW_FOLIO)}
    row = Row(b"", MIGRATOR, MIGRATOR, 7, 0x2000, 1, 8, 1, 1, visited=visited)
    found = entry_of(row, [], None, {0xBB}, 7)
    assert (found.mms, set(found.folios), found.brought) == ({5}, {FOLIO, NEW_FOLIO}, {NEW_FOLIO})
    assert (0x1000, 0x9000) in found.ranges


def test_machine_state_uses_the_kernels_words(tmp_path: Path) -> None:
    (tmp_path / "sys/kernel").mkdir(parents=True)
    (tmp_path / "sys/kernel/tainted").write_text("12416\n")  # 1<<7 | 1<<12 | 1<<13
    (tmp_path / "cmdline").write_text(
        "root=/dev/sda1 transparent_hugepage=always quiet page_owner=on zswap.enabled=1\n"
    )
    found = machine("6.1", tmp_path)
    assert found == {
        "kernel": "6.1",
        "tainted": "GDOE",
        "command_line": ["transparent_hugepage=always", "page_owner=on", "zswap.enabled=1"],
    }
    assert (taint_letters(0), taint_letters(1)) == ("", "P")
    assert switches("") == []
    assert machine("6.1", tmp_path / "none")["tainted"] == ""


def test_symbols_have_their_module_and_are_read_again_for_one_that_came_later(
    tmp_path: Path,
) -> None:
    kernel, now = synthetic_kernel(), [0.0]
    kernel.proc_root = tmp_path
    (tmp_path / "kallsyms").write_text("1000 T start\n2000 t helper\t[faults]\n")
    symbols = Symbols(kernel, lambda: now[0])
    assert symbols.stack([0x1010, 0x2004]) == ("start+0x10", "helper+0x4 [faults]")
    (tmp_path / "kallsyms").write_text("1000 T start\n9000000 t late\t[late]\n")
    assert symbols.name(0x9000004) == "0x9000004"
    now[0] = 61.0
    assert symbols.name(0x9000004) == "late+0x4 [late]"


def test_stacks_of_the_harness_are_read() -> None:
    b, vma, since = world()
    grow(b, vma, 0x5000)
    b.native.maps["flight_stacks"].update(
        struct.pack("<i", 7), struct.pack("<127Q", 0x77, *[0] * 126)
    )
    (step,) = trails(b).of_entry(entry(b, vma, since), b.now).steps
    assert step["stack"] == ["0x77"]
