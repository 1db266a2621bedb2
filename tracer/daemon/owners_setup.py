"""Set up L3 by audit over attached probes, or find out why that is not possible."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tracer.attach.attached import AttachedProbes
from tracer.checking.lock_owners import LockOwners
from tracer.checking.verdicts import Verdicts
from tracer.daemon.on_demand import switch
from tracer.memory.lock_owners import OwnerReader, why_unreadable
from tracer.tables.c_structs import Layouts

log = logging.getLogger("rmapd")


def make_owner_reader(loaded: AttachedProbes, layouts: Layouts) -> tuple[OwnerReader | None, str]:
    """Return the reader of locks and their owners, or None with the reason.

    The bounds of RAM in the direct map must be in `params` already.
    """
    hook = next((hook for hook in loaded.hooks if hook.hook.name == "owner_look"), None)
    if hook is None or not hook.on or not loaded.points.get("owner_look"):
        return None, hook.reason if hook else "the program owner_look is missing"
    reader = OwnerReader(loaded.maps, loaded.programs["owner_look"][0], layouts)
    comm = Path("/proc/thread-self/comm").read_text(encoding="utf-8").rstrip("\n")
    why = why_unreadable(reader, comm)
    return (None, why) if why else (reader, "")


def make_lock_owners(
    reader: OwnerReader,
    loaded: AttachedProbes,
    verdicts: Verdicts,
    describe: Callable[[int, int], Mapping[str, Any]],
    clock: Callable[[], int],
) -> LockOwners:
    """Build what follows the locks that the audit finds owned for write."""
    return LockOwners(reader, system_call_hook(loaded), verdicts, describe, clock)


def system_call_hook(loaded: AttachedProbes) -> Callable[[bool], str]:
    """Return the function that attaches the program at system calls, or detaches it.

    It returns why that is not possible, or an empty text.
    """
    attach, refusals = switch(loaded, "owners", "owner_enters"), set[str]()

    def hook(on: bool) -> str:
        why = attach(on)
        if why and why not in refusals:
            refusals.add(why)
            log.warning("L3: whether a task enters a system call with a lock is not seen: %s", why)
        return why

    return hook
