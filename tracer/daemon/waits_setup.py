"""Set up L7 over attached probes."""

from __future__ import annotations

from collections.abc import Callable

from tracer.attach.attached import AttachedProbes
from tracer.checking.long_waits import LongWaits
from tracer.checking.stalls import Stalls
from tracer.checking.trail import Trails
from tracer.checking.verdicts import Verdicts
from tracer.kernel.symbolizer import Symbols
from tracer.memory.sleepers import SleeperReader
from tracer.tables.c_structs import Layouts, names_of
from tracer.tables.stacks import Stacks


def make_long_waits(
    loaded: AttachedProbes,
    layouts: Layouts,
    stacks: Stacks,
    symbols: Symbols,
    trails: Trails,
    verdicts: Verdicts,
    limit_ns: int,
    stalls: Stalls,
    clock: Callable[[], int],
) -> LongWaits:
    """Build what decides L7. Without the iterator over tasks it has only the probe's events."""
    tasks = loaded.iterator("sleepers")
    return LongWaits(
        SleeperReader(tasks, layouts).read if tasks else None,
        verdicts,
        symbols.stack,
        lambda event: symbols.stack(stacks.of_event(event.stack)),
        trails,
        names_of(layouts, "lock_class", "CLASS_"),
        [name.lower() for name in names_of(layouts, "wait_mode", "WAIT_")],
        names_of(layouts, "window", "WINDOW_"),
        limit_ns,
        stalls,
        clock,
    )
