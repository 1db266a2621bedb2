"""Finds every invariant that a module of this package declares."""

from __future__ import annotations

import importlib
import pkgutil

import tracer.invariants
from tracer.invariants.base import Invariant

_FAMILIES = "MLVR"
"""Migration, locks, VMAs, rmap: the order in which families are shown. Others come after these."""


def discover() -> dict[str, Invariant]:
    """Return every invariant by id, in the order of _FAMILIES and numbers.

    A module declares its invariants in INVARIANTS. Raises ValueError where two have one id.
    """
    found: dict[str, Invariant] = {}
    for module in pkgutil.iter_modules(tracer.invariants.__path__):
        name = f"{tracer.invariants.__name__}.{module.name}"
        if name == __name__:
            continue
        for invariant in getattr(importlib.import_module(name), "INVARIANTS", ()):
            if found.setdefault(invariant.id, invariant) is not invariant:
                raise ValueError(f"{name} declares {invariant.id}, which another module has")
    return dict(sorted(found.items(), key=lambda item: _order(item[0])))


def _order(name: str) -> tuple[int, str, int]:
    family, number = name[0], int(name[1:])
    at = _FAMILIES.index(family) if family in _FAMILIES else len(_FAMILIES)
    return at, family, number
