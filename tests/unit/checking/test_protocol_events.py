"""The trail of a violation: the windows before it and itself, none that came later."""

from __future__ import annotations

import struct
from collections.abc import Collection

from tests.support.box import Box, box
from tests.support.native import LAYOUTS, synthetic_kernel
from tracer.checking.protocol_events import ProtocolEvents, ProtocolTables
from tracer.invariants.catalogue import discover
from tracer.invariants.verdict import Tally, Verdict
from tracer.kernel.symbolizer import Symbols
from tracer.memory.objects import ObjectReader
from tracer.packed import unpack

COUNTERS = dict.fromkeys(LAYOUTS.enums["counter"], 0)
HARNESS_STACK = struct.pack("<i", 7)  # what get_stackid() says there


def protocol_events_of(b: Box, covered: Collection[str] = ("L4",)) -> ProtocolEvents:
    kernel = synthetic_kernel()
    return ProtocolEvents(
        ProtocolTables.of(b.tables),
        LAYOUTS,
        Symbols(kernel),
        discover(),
        frozenset(covered),
        ObjectReader(b.native.maps, None, LAYOUTS, kernel),
    )


def read_events(protocol_events: ProtocolEvents, b: Box) -> bool:
    """Bring it the events; whether one presses."""
    for raw in b.native.events():
        protocol_events.read_event(b.tables.events.decode(raw), raw)
    return protocol_events.urgent


def unlink(b: Box, *, locked: bool) -> None:
    vma = b.vma(0x1000, 0x3000, anon=b.anon_vma())
    with b.call("unlink_anon_vmas", vma.at), b.locked(*[b.anon_lock(vma.anon_vma)] * locked):
        b.tree(vma, vma.anon_vma, enter=False)


def test_only_a_violating_protocol_is_urgent_and_counted_at_once() -> None:
    """The rest waits until the whole table is read."""
    b, tally = box(), Tally()
    protocol_events = protocol_events_of(b)
    unlink(b, locked=True)
    assert not read_events(protocol_events, b)
    unlink(b, locked=False)
    assert read_events(protocol_events, b)
    (finding,) = protocol_events.work(tally, COUNTERS, 0, 1.0, whole=False)
    assert (finding.invariant, finding.verdict) == ("L4", Verdict.VIOLATED)
    assert tally.checks == {("L4", Verdict.VIOLATED): 1}
    unlink(b, locked=False)
    assert not read_events(protocol_events, b), "a protocol presses once: it has a row"
    assert protocol_events.work(tally, COUNTERS, 0, 1.0, whole=False) == []
    assert tally.checks == {("L4", Verdict.VIOLATED): 2}
    protocol_events.work(tally, COUNTERS, 0, 1.0)
    assert tally.checks == {("L4", Verdict.VIOLATED): 2, ("L4", Verdict.HOLDS): 1}


def test_a_lost_event_is_found_in_the_table_at_the_next_tick() -> None:
    b, tally = box(), Tally()
    protocol_events = protocol_events_of(b)
    unlink(b, locked=False)
    b.native.events()
    assert protocol_events.work(tally, COUNTERS, 0, 1.0, whole=False) == []
    assert (
        len(protocol_events.work(tally, COUNTERS | {"EVIDENCE_LOST": 1}, 0, 1.0, whole=False)) == 1
    )


def test_losses_make_new_windows_unverifiable_for_two_ticks() -> None:
    """L3 depends on every step; L4, which one moment proves, stays."""
    b, tally = box(), Tally()
    protocol_events = protocol_events_of(b, ("L3",))
    lossy = COUNTERS | {"WINDOWS_LOST": 1}

    def leaks(counters: dict[str, int], *, tick: bool) -> list[tuple[str, Verdict]]:
        before = tally.checks.copy()
        vma = b.vma(0x1000, 0x3000, anon=b.anon_vma())
        with b.call("unlink_anon_vmas", vma.at):
            b.down(b.anon_lock(vma.anon_vma))
        read_events(protocol_events, b)
        protocol_events.work(tally, counters, 0, 1.0, whole=False)
        if tick:
            protocol_events.tick()
        return list((tally.checks - before).elements())

    assert leaks(COUNTERS, tick=True) == [("L3", Verdict.VIOLATED)]
    doubtful = [leaks(lossy, tick=tick) for tick in (False, True, False, True)]
    assert doubtful == [[("L3", Verdict.UNVERIFIABLE)]] * 4
    assert leaks(lossy, tick=False) == [("L3", Verdict.VIOLATED)]


def test_a_trail_ends_with_the_window_that_violates() -> None:
    b = box()
    vma = b.vma(0x1000, 0x3000, anon=b.anon_vma())
    for locked in (True, False, True):
        b.tick(1000)
        with b.call("unlink_anon_vmas", vma.at), b.locked(*[b.anon_lock(vma.anon_vma)] * locked):
            b.tree(vma, vma.anon_vma, enter=False)
    for name, address in (("stacks", 0x1111), ("flight_stacks", 0x2222)):
        b.native.maps[name].update(HARNESS_STACK, struct.pack("<127Q", address, *[0] * 126))
    protocol_events = protocol_events_of(b)
    assert read_events(protocol_events, b)
    (finding,) = protocol_events.work(Tally(), COUNTERS, 0, 1.0)
    healthy, broken = (
        "unlink_anon_vmas[anon]  anon↓w anon- anon↑w",
        "unlink_anon_vmas[anon]  anon-(-)",
    )
    assert finding.protocol == broken
    assert [step["protocol"] for step in unpack(finding.trail)] == [healthy, broken]
    assert finding.stack == ("0x1111",), (
        "what fills with the stacks of all windows has no room for those of violations"
    )
    assert [step["stack"] for step in unpack(finding.trail)] == [["0x2222"]] * 2
