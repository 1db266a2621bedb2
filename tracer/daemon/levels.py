"""The levels of fidelity: which probe objects run at each."""

from __future__ import annotations

from collections.abc import Sequence

WINDOW_PROBE_OBJECTS = ("vma", "locks", "rmap")
"""The probe objects whose hooks record windows."""
_MIGRATION = frozenset({"migration", "ledger", "page_tables", "objects", "forks"})
_PROBE_OBJECTS = {"migration": _MIGRATION, "owner": _MIGRATION | {"vma", "rmap"}}


def probe_objects(level: str) -> frozenset[str] | None:
    """Return the probe objects that run at this level; None: all."""
    return _PROBE_OBJECTS.get(level)


def runs(probe_object: str, level: str) -> bool:
    """Return whether a probe object runs at this level."""
    return level not in _PROBE_OBJECTS or probe_object in _PROBE_OBJECTS[level]


def lowest_level(probe_object: str, levels: Sequence[str]) -> str:
    """Return the last of these levels that a probe object runs at, or else the first."""
    return ([level for level in levels if runs(probe_object, level)][-1:] or list(levels[:1]))[0]
