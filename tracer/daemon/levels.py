"""The levels of fidelity: which probe objects run at each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tracer.attach.plan import ATTACHED_AT_TIMES

WINDOW_PROBE_OBJECTS = ("vma", "locks", "rmap")
"""The probe objects whose hooks record windows."""
ON_DEMAND: Mapping[str, str] = {
    "audit_writers": (
        f"{ATTACHED_AT_TIMES}the state audit looks at something suspicious, before 6.4"
    ),
    "owners": f"{ATTACHED_AT_TIMES}a task may keep a lock that the state audit found owned",
}
"""Probe objects whose hooks are paused until something needs them -> when they are attached. No
level of fidelity changes that."""
_MIGRATION = frozenset(
    {
        "migration",
        "ledger",
        "page_tables",
        "objects",
        "forks",
        "audit",
        "complaints",
        "waits",
        "page_cache",
        "moves",
    }
)
AUDIT_ONLY = "audit"
"""No level that a user chooses: what `rmapd audit` needs. It follows no lock owners."""
_PROBE_OBJECTS = {
    AUDIT_ONLY: frozenset({"page_tables", "objects", "audit", "audit_writers"}),
    "migration": _MIGRATION.union(ON_DEMAND),
    "owner": _MIGRATION.union(ON_DEMAND, {"vma", "rmap"}),
}


def probe_objects(level: str) -> frozenset[str] | None:
    """Return the probe objects that run at this level; None: all."""
    return _PROBE_OBJECTS.get(level)


def runs(probe_object: str, level: str) -> bool:
    """Return whether a probe object runs at this level."""
    return level not in _PROBE_OBJECTS or probe_object in _PROBE_OBJECTS[level]


def lowest_level(probe_object: str, levels: Sequence[str]) -> str:
    """Return the last of these levels that a probe object runs at, or else the first."""
    return ([level for level in levels if runs(probe_object, level)][-1:] or list(levels[:1]))[0]
