"""Set up L7 over attached probes."""

from __future__ import annotations

from collections.abc import Callable

from tracer.attach.attached import AttachedProbes
from tracer.attach.plan import PlannedHook
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
    *,
    preempts_programs: bool,
) -> LongWaits:
    """Build what decides L7. Without the iterator over tasks it has only the probe's events.

    preempts_programs: the kernel preempts programs at tracepoints; before 6.2 the storage of a task
    cannot be reached then.
    """
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
        lambda: preempts_programs or loaded.missed(_is_release) > 0,
        clock,
    )


def _is_release(hook: PlannedHook) -> bool:
    return hook.hook.name == "mmap_lock_released"
