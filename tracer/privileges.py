"""What a running daemon gives up once everything is attached, in each of its threads, and cannot have back.

What it keeps is found by trying, not by version: the smallest set of capabilities with which a rehearsal of all that judging asks
of the kernel goes as it went with all of them. Where no kernel is older than 6.1 that is none: a map, a program, an iterator and
the kernel's statistics are reached by file descriptors that are open, and /proc/kallsyms by one that was opened with CAP_SYSLOG.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

from pyprctl import Cap, CapState, Secbits, cap_ambient_clear_all, capbset_drop, capbset_probe, set_no_new_privs, set_securebits

from tracer import syscalls

log = logging.getLogger("rmapd")

_LADDER = (
    frozenset[Cap](),
    frozenset({Cap.BPF}),  # bpf(2) at all, before 6.0 and with kernel.unprivileged_bpf_disabled
    frozenset({Cap.BPF, Cap.PERFMON}),
    frozenset({Cap.BPF, Cap.PERFMON, Cap.SYSLOG}),
    frozenset({Cap.BPF, Cap.PERFMON, Cap.SYSLOG, Cap.SYS_ADMIN}),
)
"""From nothing to what the unit leaves; the first that is enough is kept."""
_LOCKED = (
    Secbits.NOROOT | Secbits.NOROOT_LOCKED | Secbits.NO_SETUID_FIXUP | Secbits.NO_SETUID_FIXUP_LOCKED
    | Secbits.KEEP_CAPS_LOCKED | Secbits.NO_CAP_AMBIENT_RAISE | Secbits.NO_CAP_AMBIENT_RAISE_LOCKED
)  # fmt: skip


@contextlib.contextmanager
def threads_without() -> Iterator[None]:
    """Capabilities belong to threads: each that is started in here gives up all of its own before it runs."""
    before = threading.getprofile()
    threading.setprofile(_at_birth)
    try:
        yield
    finally:
        threading.setprofile(before)


def _at_birth(_frame: FrameType, _event: str, _argument: object) -> None:
    sys.setprofile(None)
    keep(frozenset())


def drop(rehearse: Callable[[], object]) -> str:
    """Keep what the rehearsal needs, give up the rest, and say so. Threads must have been started in threads_without()."""
    kept = _needed(rehearse)
    keep(kept)
    unfiltered = syscalls.forbid()
    if stray := [name for name, held in of_threads().items() if held & ~_mask(kept)]:
        log.warning("threads %s still have capabilities that they do not need", ", ".join(stray))
    names = " ".join(f"CAP_{cap.name}" for cap in sorted(kept, key=lambda cap: cap.value)) or "no capability"
    bounding = "an empty bounding set" if not capbset_probe() else "the bounding set as it was (CAP_SETPCAP is missing)"
    return f"{names}, {bounding}, no new privileges, {unfiltered or 'system calls that only attaching needs refused (seccomp)'}"


def _needed(rehearse: Callable[[], object]) -> frozenset[Cap]:
    """The first step of the ladder that is enough, tried by lowering only what is effective."""
    whole = CapState.get_current()
    expected = rehearse()
    for step in _LADDER:
        if step <= whole.permitted:
            tried = whole.copy()
            tried.effective = set(step)
            tried.set_current()
            try:
                if rehearse() == expected:
                    return step
            except PermissionError as error:
                log.info("with %s judging is refused: %s", " ".join(cap.name for cap in step) or "no capability", error)
            finally:
                whole.set_current()
    return frozenset(whole.permitted)


def keep(kept: frozenset[Cap]) -> None:
    """This thread's capabilities but `kept`, and every way to get one back. Without CAP_SETPCAP the way by the bounding set stays, and
    no_new_privs is what closes it."""
    with contextlib.suppress(PermissionError):
        for cap in capbset_probe():
            capbset_drop(cap)
        set_securebits(_LOCKED)
    cap_ambient_clear_all()
    set_no_new_privs()
    held = CapState.get_current().permitted
    CapState(effective=set(kept & held), permitted=set(kept & held), inheritable=set()).set_current()


def of_threads(process: Path = Path("/proc/self")) -> dict[str, int]:
    """The permitted capabilities of each thread, as a mask, by the thread's id and name."""
    found = {}
    for task in sorted((process / "task").iterdir()):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            fields = dict(line.split(":", 1) for line in (task / "status").read_text().splitlines())
            found[f"{task.name} ({fields['Name'].strip()})"] = int(fields["CapPrm"], 16)
    return found


def _mask(caps: frozenset[Cap]) -> int:
    return sum(1 << cap.value for cap in caps)
