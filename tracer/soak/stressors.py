"""The parts of loads in Python: generators that yield after each round of work.

Each runs in a process of its own, takes at most `Here.memory` bytes of memory and `Here.files`
bytes of the tmpfs at a time, and is started again where it ends or fails with an OSError.
Randomness comes from `Here.random` alone, so the seed repeats it; what a race decides is not
repeated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from tracer.soak import file_stressors as files
from tracer.soak import page_stressors as pages
from tracer.soak import vma_stressors as vma
from tracer.soak.calls import Here

STRESSORS: dict[str, Callable[[Here], Iterator[None]]] = {
    one.__name__: one
    for one in (
        vma.vma_storm,
        vma.brk_storm,
        vma.fork_and_exec,
        pages.family,
        pages.compaction,
        pages.between_nodes,
        pages.page_out,
        pages.huge_pages,
        pages.split_by_debugfs,
        pages.same_pages,
        files.shared_file,
        files.pressure,
        files.tmpfs_files,
        files.compile_units,
    )
}
"""By the name that a load's `python` has."""
