"""Set up the page-table oracle over attached probes, or find out why that is not possible."""

from __future__ import annotations

from tracer.attach.attached import AttachedProbes
from tracer.kernel.running import Kernel
from tracer.memory import calibration
from tracer.memory.page_tables import Oracle
from tracer.tables.c_structs import Layouts
from tracer.tables.tables import Tables

_NEEDED = frozenset({"walk", "sweep_upper", "sweep_leaf", "calibrate", "tasks"})


def make_oracle(
    loaded: AttachedProbes, tables: Tables, layouts: Layouts, kernel: Kernel
) -> tuple[Oracle | None, str]:
    """Return the oracle, not calibrated yet, or None with the reason."""
    if absent := _NEEDED - loaded.attached():
        hooks = {hook.hook.name: hook for hook in loaded.hooks}
        reasons = [f"{name}: {hooks[name].reason}" for name in sorted(absent & set(hooks))]
        return None, "; ".join(reasons) or "its probes are missing"
    programs = {name: points[0] for name, points in loaded.programs.items()}
    oracle = Oracle(
        loaded.maps,
        programs,
        loaded.iterator("tasks"),
        tables.params,
        tables.swap_types,
        tables.other_mms,
        layouts,
        kernel.page_tables,
        kernel.memory_end,
    )
    return oracle, ""


def calibrate(
    oracle: Oracle,
    loaded: AttachedProbes,
    tables: Tables,
    layouts: Layouts,
    kernel: Kernel,
    page_size: int,
) -> str:
    """Find the direct map and struct page; return why the oracle cannot be used, or an empty text.

    The result is in the maps, so it outlives this process. page_size: of struct page, in bytes.
    """
    programs = {name: points[0] for name, points in loaded.programs.items()}
    return calibration.calibrate(
        loaded.maps, programs, oracle, tables.params, layouts, page_size, kernel
    ).reason
