"""The trail of a violation: the windows before it and itself, none that came later."""

from __future__ import annotations

import struct

from tests.support.box import box
from tests.support.native import LAYOUTS, synthetic_kernel
from tracer.books import Books
from tracer.docket import Docket
from tracer.invariant import discover
from tracer.symbols import Symbols
from tracer.verdict import Tally

HARNESS_STACK = struct.pack("<i", 7)  # what get_stackid() says there


def test_a_trail_ends_with_the_window_that_violates() -> None:
    b = box()
    vma = b.vma(0x1000, 0x3000, anon=b.anon_vma())
    for locked in (True, False, True):
        b.tick(1000)
        with b.call("unlink_anon_vmas", vma.at), b.locked(*[b.anon_lock(vma.anon_vma)] * locked):
            b.tree(vma, vma.anon_vma, enter=False)
    for book, address in (("stacks", 0x1111), ("flight_stacks", 0x2222)):
        b.native.maps[book].update(HARNESS_STACK, struct.pack("<127Q", address, *[0] * 126))
    books = Books(b.native.maps, LAYOUTS)
    docket = Docket(b.windows, books, LAYOUTS, Symbols(synthetic_kernel()), discover(), {"L4"})
    for raw in b.native.events():
        docket.hear(books.event(raw), raw)
    (finding,) = docket.work(Tally(), dict.fromkeys(LAYOUTS.enums["counter"], 0), 0, 1.0)
    healthy, broken = "unlink_anon_vmas[anon]  anon↓w anon- anon↑w", "unlink_anon_vmas[anon]  anon-(-)"
    assert finding.protocol == broken
    assert [step["protocol"] for step in finding.trail] == [healthy, broken]
    assert finding.stack == ("0x1111",), "what fills with the stacks of all windows has no room for those of violations"
    assert [step["stack"] for step in finding.trail] == [["0x2222"]] * 2
