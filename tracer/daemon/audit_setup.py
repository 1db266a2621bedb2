"""Set up the state audit over attached probes, or find out why that is not possible."""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Mapping, Sequence

from tracer.checking.audit_findings import AuditFindings
from tracer.checking.state_audit import StateAudit
from tracer.checking.verdicts import Verdicts
from tracer.daemon.on_demand import switch
from tracer.daemon.probes import Probes
from tracer.invariants.base import Invariant
from tracer.memory.page_tables import Oracle
from tracer.memory.vma_trees import PROGRAMS, OwnedLock, TreeReader

_TAIL_CALLS = ("audit_nodes", "audit_links")
"""The programs in the slots of the map audit_programs (probes/audit.bpf.c)."""


def make_audit(
    reader: TreeReader,
    probes: Probes,
    invariants: Mapping[str, Invariant],
    verdicts: Verdicts,
    findings: AuditFindings,
    note_owned: Callable[[Sequence[OwnedLock]], None],
    budget: float,
    clock: Callable[[], int],
) -> StateAudit:
    """Build the audit of all mms.

    note_owned: takes the locks that are found owned for write. budget: its share of one CPU; 0:
    only when asked.
    """
    return StateAudit(
        reader,
        invariants,
        verdicts,
        findings.draft,
        switch(probes.loaded, "audit_writers", "audit_writer"),
        note_owned,
        budget,
        clock,
        time.thread_time_ns,
    )


def make_tree_reader(
    probes: Probes, oracle: Oracle | None, oracle_reason: str, budget: float
) -> tuple[TreeReader | None, str]:
    """Return the reader of mms' trees, or None with the reason.

    oracle: calibrated; without it the bounds of the direct map are not known, and a stale pointer
    could lead to device memory. oracle_reason: why there is none. budget: the audit's share of one
    CPU; 0: no audit is wanted.
    """
    if not budget:
        return None, "audit_budget is 0"
    loaded = probes.loaded
    hooks = {hook.hook.name: hook for hook in loaded.hooks}
    if absent := [name for name in PROGRAMS if name not in hooks or not hooks[name].on]:
        reasons = [f"{name}: {hooks[name].reason}" for name in absent if name in hooks]
        return None, "; ".join(dict.fromkeys(reasons)) or "its programs are missing"
    if oracle is None:
        return None, f"the direct map is not calibrated: {oracle_reason}"
    if not probes.kernel.memory_end():
        return None, "/proc/zoneinfo does not give the end of RAM"
    programs = {name: points[0] for name, points in loaded.programs.items()}
    for slot, name in enumerate(_TAIL_CALLS):
        loaded.maps["audit_programs"].update(
            struct.pack("<I", slot), struct.pack("<I", programs[name].fd)
        )
    reader = TreeReader(
        loaded.maps,
        programs,
        probes.layouts,
        oracle.task_mms,
        oracle.renew_memory_end,
    )
    return reader, ""
