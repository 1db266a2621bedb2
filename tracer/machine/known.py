"""The machines that rmapd knows."""

from __future__ import annotations

from tracer.errors import RmapdError
from tracer.machine import aarch64, x86_64
from tracer.machine.base import Machine

_MACHINES = {one.name: one for one in (x86_64.MACHINE, aarch64.MACHINE)}


def machine(name: str) -> Machine:
    """Return a machine by its name in uname(2). Raises RmapdError where it is none of ours."""
    if name not in _MACHINES:
        raise RmapdError(
            f"rmapd does not know the page tables of {name}",
            why=f"migration entries and page tables are decoded for {' and '.join(_MACHINES)}",
            hint="docs/EXTENDING.md has what another machine takes",
        )
    return _MACHINES[name]
