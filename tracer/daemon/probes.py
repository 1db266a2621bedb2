"""Attach the probes to the running kernel: the part of a session that exists before it checks."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tracer import package_data
from tracer.attach import attach_process, plain_loads
from tracer.attach.attach_process import AttachOutcome
from tracer.attach.attached import AttachedProbes
from tracer.bpf import programs
from tracer.bpf.ring_buffer import RingBuffer
from tracer.checking.findings import ENUMS
from tracer.config import LEVELS, Config
from tracer.daemon.levels import ON_DEMAND, probe_objects
from tracer.daemon.recorder import Recorder
from tracer.kernel.btf import FUNC
from tracer.kernel.running import Kernel
from tracer.memory import objects
from tracer.tables.c_structs import Layouts
from tracer.tables.tables import Tables

_NEVER_CALLED = "kernel_restart"
"""kernel/reboot.c: the function to try an attachment at."""


@dataclass(frozen=True)
class Probes:
    """Attached probes: programs and links (loaded), and their maps, decoded (tables).

    page_size is sizeof(struct page). level is the fidelity that the attached hooks make.
    """

    kernel: Kernel
    loaded: AttachedProbes
    layouts: Layouts
    tables: Tables
    ring: RingBuffer
    page_size: int
    level: str


def probes_folder() -> Path:
    """Return the folder of the probe objects: in a wheel, or beside the package in a checkout."""
    return package_data.folder("probes")


def running_kernel() -> Kernel:
    """Return the running kernel, with tests of what programs it takes, by bpf(2)."""
    return Kernel.running(
        fentry_probe=lambda types: programs.fentry_refused(types.find(_NEVER_CALLED, FUNC) or 0),
        plain_load_probe=plain_loads.refused,
    )


@contextlib.contextmanager
def attach(
    config: Config, kernel: Kernel, recorder: Recorder, folders: Sequence[Path] = ()
) -> Iterator[Probes]:
    """Compile, load and attach the probe objects of these folders; detach at the exit.

    No folder: rmapd's own. The gate is closed: nothing is recorded yet. Hooks that are needed at
    times only (ON_DEMAND) are attached once, which shows that the kernel allows it, and paused.
    Raises RmapdError.
    """
    folders = list(folders) or [probes_folder()]
    layouts = read_layouts(folders[0])
    level = LEVELS[0] if config.fidelity == "auto" else config.fidelity
    order = attach_process.AttachOrder(
        folders,
        probe_objects(level),
        layouts.constants,
        config.maps.sizes(),
        config.statistics,
        (*ENUMS, objects.PAGE_FLAGS),
        Path(config.cache) if config.cache else None,
    )
    with opened(attach_process.attach(kernel, order), kernel, layouts, level, recorder) as probes:
        for probe_object, reason in ON_DEMAND.items():
            probes.loaded.pause({probe_object}, reason)
        yield probes


@contextlib.contextmanager
def opened(
    attached: AttachOutcome, kernel: Kernel, layouts: Layouts, level: str, recorder: Recorder
) -> Iterator[Probes]:
    """Open the maps of attached programs; detach at the exit."""
    kernel.known_enums |= attached.enums
    with (
        attached.probes as loaded,
        contextlib.closing(loaded.ring("events", recorder.note_event)) as ring,
    ):
        tables = Tables.of(recorder.tables(loaded), layouts)
        yield Probes(kernel, loaded, layouts, tables, ring, attached.page_size, level)


def read_layouts(folder: Path) -> Layouts:
    """Read the layouts and constants that the probe objects of a folder share with Python."""
    return Layouts.read(folder / "include" / "shared.h")
