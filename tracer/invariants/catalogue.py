"""Finds every invariant that a module of this package declares."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path

from tracer.invariants.base import Invariant


def discover() -> dict[str, Invariant]:
    """Return every invariant that a module here declares in INVARIANTS, by id, in the order M, L, V, R."""
    found: dict[str, Invariant] = {}
    for module in pkgutil.iter_modules([str(Path(__file__).parent)]):
        if module.name != Path(__file__).stem:
            declared = importlib.import_module(f"{__package__}.{module.name}")
            found |= {invariant.id: invariant for invariant in getattr(declared, "INVARIANTS", ())}
    return dict(
        sorted(found.items(), key=lambda item: ("MLVR".index(item[0][0]), int(item[0][1:])))
    )
