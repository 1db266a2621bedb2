"""Capabilities of this process's threads: find the smallest set that is enough, and drop the rest.

The set is found by trying, not by version: it is the smallest one with which a rehearsal of
everything that checking asks of the kernel gives the same result as with all capabilities. From
Linux 6.1 on that is the empty set: maps, programs, iterators and the kernel's run statistics are
used by descriptors that are open, and /proc/kallsyms by one that was opened with CAP_SYSLOG.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

from pyprctl import (
    Cap,
    CapState,
    Secbits,
    cap_ambient_clear_all,
    capbset_drop,
    capbset_probe,
    set_no_new_privs,
    set_securebits,
)

log = logging.getLogger("rmapd")

CANDIDATES = (
    frozenset[Cap](),
    frozenset({Cap.BPF}),  # bpf(2) at all, before 6.0 and with kernel.unprivileged_bpf_disabled
    frozenset({Cap.BPF, Cap.PERFMON}),
    frozenset({Cap.BPF, Cap.PERFMON, Cap.SYSLOG}),
    frozenset({Cap.BPF, Cap.PERFMON, Cap.SYS_ADMIN}),  # the unit's
    frozenset({Cap.BPF, Cap.PERFMON, Cap.SYSLOG, Cap.SYS_ADMIN}),
)
"""From the empty set to what attaching needs; the first one that is enough is kept."""
_FALLBACK = CANDIDATES[-1] | {Cap.SETPCAP}
"""Kept where no candidate is enough: never a capability over files, processes or user ids."""
_LOCKED = (
    Secbits.NOROOT | Secbits.NOROOT_LOCKED
    | Secbits.NO_SETUID_FIXUP | Secbits.NO_SETUID_FIXUP_LOCKED | Secbits.KEEP_CAPS_LOCKED
    | Secbits.NO_CAP_AMBIENT_RAISE | Secbits.NO_CAP_AMBIENT_RAISE_LOCKED
)  # fmt: skip


def smallest_sufficient(rehearse: Callable[[], object]) -> frozenset[Cap]:
    """Return the first candidate with which rehearse() returns the same as with all capabilities.

    A candidate is tried by lowering the effective set of this thread, which is restored.
    """
    all_held = CapState.get_current()
    expected = rehearse()
    for candidate in CANDIDATES:
        if candidate <= all_held.permitted:
            tried = all_held.copy()
            tried.effective = set(candidate)
            tried.set_current()
            try:
                if rehearse() == expected:
                    return candidate
            except PermissionError as error:
                log.info(
                    "the kernel refuses what checking needs with %s: %s",
                    " ".join(cap.name for cap in candidate) or "no capability",
                    error,
                )
            finally:
                all_held.set_current()
    return frozenset(all_held.permitted) & _FALLBACK


def limit_to(kept: frozenset[Cap]) -> None:
    """Drop this thread's capabilities but `kept`, and every means to regain one.

    Without CAP_SETPCAP the bounding set stays; no_new_privs then keeps execve() from raising any.
    """
    with contextlib.suppress(PermissionError):
        for cap in capbset_probe():
            capbset_drop(cap)
        set_securebits(_LOCKED)
    cap_ambient_clear_all()
    set_no_new_privs()
    held = CapState.get_current().permitted
    CapState(
        effective=set(kept & held), permitted=set(kept & held), inheritable=set()
    ).set_current()


def permitted_by_thread(process: Path = Path("/proc/self")) -> dict[str, int]:
    """Return each thread's permitted capabilities as a mask, by "tid (name)"."""
    return {name: int(fields["CapPrm"], 16) for name, fields in thread_status(process)}


def thread_status(process: Path = Path("/proc/self")) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield "tid (name)" and the fields of /proc/PID/task/TID/status of each thread."""
    for task in sorted((process / "task").iterdir()):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            fields = dict(line.split(":", 1) for line in (task / "status").read_text().splitlines())
            yield f"{task.name} ({fields['Name'].strip()})", fields


def mask(caps: frozenset[Cap]) -> int:
    """Return the capabilities as the kernel's bit mask."""
    return sum(1 << cap.value for cap in caps)
