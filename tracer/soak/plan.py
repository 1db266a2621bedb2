"""What the soak passes to the runner and gets back from it, and how memory is divided."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec

from tracer.report.soak import SoakPart
from tracer.soak.limits import Limits
from tracer.soak.loads import Load, Part

_FOR_LOADS = 0.8
"""Of the limit; the rest is for the processes themselves and for page tables."""

Ending = Literal["time", "signal", "memory", "soak", "failed"]
"""How a load ended: its time was over, a signal, no memory was free, the soak died, it failed."""


class LoadPlan(msgspec.Struct, frozen=True):
    """A load as it runs here: the parts that can run, with bytes for its tmpfs and each worker."""

    name: str
    parts: tuple[Part, ...]
    tmpfs_bytes: int
    tmpfs_options: str
    worker_bytes: int


class Plan(msgspec.Struct, frozen=True):
    """One run of the load. seconds: None: until a signal. folder: an empty one for its tmpfs.

    settings: what the kernel's files hold meanwhile; before: what they held. soak: the pid of the
    process that waits for the result; the load ends with it.
    """

    loads: tuple[LoadPlan, ...]
    limits: Limits
    seconds: float | None
    seed: int
    folder: str
    status: str
    settings: Mapping[str, str]
    before: Mapping[str, str]
    soak: int
    selftests: str = ""


class Status(msgspec.Struct, frozen=True):
    """What the runner writes at its end. started: seconds since the epoch."""

    started: float
    seconds: float
    end: Ending
    why: str
    parts: list[SoakPart]


def divided(loads: Mapping[str, tuple[Load, tuple[Part, ...]]], memory: int) -> list[LoadPlan]:
    """Divide the memory among loads, tmpfs and workers. loads: each with the parts to run."""
    each = int(memory * _FOR_LOADS / max(1, len(loads)))
    plans = []
    for name, (load, parts) in loads.items():
        tmpfs = int(each * load.tmpfs)
        workers = sum(part.workers for part in parts)
        share = (each - tmpfs) // max(1, workers)
        plans.append(LoadPlan(name, parts, tmpfs, load.tmpfs_options, share))
    return plans
