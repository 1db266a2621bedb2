"""What a running daemon gives up once everything is attached, in each of its threads, and cannot have back: root's user id, which owns
root's files, and capabilities.

A daemon that root starts becomes a user of its own. The unit starts it as that user, with the capabilities that attaching needs.
The capabilities that it keeps are found by trying, not by version: the smallest set with which a rehearsal of all that judging asks of
the kernel goes as it went with all of them. Where no kernel is older than 6.1 that is none: a map, a program, an iterator and the
kernel's statistics are reached by file descriptors that are open, and /proc/kallsyms by one that was opened with CAP_SYSLOG.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import pwd
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType

from pyprctl import (
    Cap,
    CapState,
    Secbits,
    cap_ambient_clear_all,
    cap_set_ids,
    capbset_drop,
    capbset_probe,
    set_dumpable,
    set_no_new_privs,
    set_securebits,
)

from tracer.errors import RmapdError
from tracer.process import seccomp

log = logging.getLogger("rmapd")

_LADDER = (
    frozenset[Cap](),
    frozenset({Cap.BPF}),  # bpf(2) at all, before 6.0 and with kernel.unprivileged_bpf_disabled
    frozenset({Cap.BPF, Cap.PERFMON}),
    frozenset({Cap.BPF, Cap.PERFMON, Cap.SYSLOG}),
    frozenset({Cap.BPF, Cap.PERFMON, Cap.SYS_ADMIN}),  # what the unit has
    frozenset({Cap.BPF, Cap.PERFMON, Cap.SYSLOG, Cap.SYS_ADMIN}),
)
"""From nothing to what attaching needs; the first that is enough is kept."""
_MOST = _LADDER[-1] | {Cap.SETPCAP}
"""Kept where no step is enough: never a capability over files, processes or user ids."""
_LOCKED = (
    Secbits.NOROOT | Secbits.NOROOT_LOCKED | Secbits.NO_SETUID_FIXUP | Secbits.NO_SETUID_FIXUP_LOCKED
    | Secbits.KEEP_CAPS_LOCKED | Secbits.NO_CAP_AMBIENT_RAISE | Secbits.NO_CAP_AMBIENT_RAISE_LOCKED
)  # fmt: skip


@dataclass(frozen=True)
class User:
    """Who a process of root's becomes."""

    name: str
    uid: int
    gid: int


def user(name: str, own: str = "rmapd") -> User | None:
    """The user of this name; nobody where `own` is not there. None: this process stays who it is. It is not root, or cannot change it."""
    if os.geteuid():
        return None
    if missing := {Cap.SETUID, Cap.SETGID} - CapState.get_current().permitted:
        names = " and ".join(
            f"CAP_{cap.name}" for cap in sorted(missing, key=lambda cap: cap.value, reverse=True)
        )
        log.warning("rmapd stays uid 0, which owns root's files: %s missing", names)
        return None
    found = _named(name)
    if found is None and name == own:
        found = _named("nobody")
        log.warning(
            "there is no user %s: rmapd becomes nobody, and other processes of nobody's may read its store. Try: make install",
            own,
        )
    if found is None or not found.uid:
        why = "it is root" if found else "there is no such user"
        raise RmapdError(
            f"rmapd cannot become {name}",
            why=why,
            hint="`user` in the configuration, or drop_privileges = false",
        )
    return found


def is_user(name: str) -> bool:
    """Whether this machine has a user of this name."""
    return _named(name) is not None


def _named(name: str) -> User | None:
    try:
        found = pwd.getpwnam(name)
    except KeyError:
        return None
    return User(name, found.pw_uid, found.pw_gid)


def become(who: User | None, kept: frozenset[Cap] = frozenset()) -> None:
    """This process, of one thread, is `who` from now on (None: who it is), with these capabilities and no others, for good. Other
    processes of that user cannot look into it. A process that has threads has them started in threads_without()."""
    _change(who)
    keep(kept)
    set_dumpable(False)


def _change(who: User | None) -> None:
    """Real, effective, saved and file-system ids of this thread; no supplementary group is left. Capabilities stay as they are.
    A thread that is started by one which has changed is that user already, and could not do it."""
    if who and os.geteuid() != who.uid:
        cap_set_ids(uid=who.uid, gid=who.gid, groups=[], preserve_effective_caps=True)


@contextlib.contextmanager
def files_as(who: User | None) -> Iterator[None]:
    """This thread opens and makes files as `who` meanwhile: what is refused then would be refused once it is `who`."""
    if who is None:
        yield
        return
    libc, uid, gid = ctypes.CDLL(None), os.geteuid(), os.getegid()
    libc.setfsgid(who.gid)
    libc.setfsuid(who.uid)  # takes away the capabilities over files, too
    try:
        yield
    finally:
        libc.setfsuid(uid)
        libc.setfsgid(gid)


def hand_over(folder: Path, name: str, who: User | None) -> None:
    """A folder of root's, and the files in it whose names begin so, are `who`'s from now on. Where it is not root's, or others may
    write it, nothing changes: somebody may have put a link to another file there."""
    if (
        who is None or os.lstat(folder).st_uid
    ):  # in a container root may not be able to look into it
        return
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        found = os.fstat(opened)
        if found.st_uid or found.st_mode & 0o022:
            return
        for entry in os.scandir(opened):
            if entry.name.startswith(name) and stat.S_ISREG(
                entry.stat(follow_symlinks=False).st_mode
            ):
                os.chown(entry.name, who.uid, who.gid, dir_fd=opened, follow_symlinks=False)
        os.fchown(opened, who.uid, who.gid)
    finally:
        os.close(opened)


@contextlib.contextmanager
def threads_without(who: User | None = None) -> Iterator[None]:
    """Capabilities and user ids belong to threads: each that is started in here gives up all of its own before it runs."""
    before = threading.getprofile()
    threading.setprofile(partial(_at_birth, who))
    try:
        yield
    finally:
        threading.setprofile(before)


def _at_birth(who: User | None, _frame: FrameType, _event: str, _argument: object) -> None:
    sys.setprofile(None)
    _change(who)
    keep(frozenset())


def drop(rehearse: Callable[[], object], who: User | None = None) -> str:
    """Become `who`, keep what the rehearsal needs, give up the rest, and say so. Threads must have been started in threads_without()."""
    _change(who)
    set_dumpable(False)
    kept = _needed(rehearse)
    keep(kept)
    unfiltered = seccomp.forbid()
    uid = os.getuid()
    if stray := [name for name, held in of_threads().items() if held & ~_mask(kept)]:
        log.warning("threads %s still have capabilities that they do not need", ", ".join(stray))
    if stray := [
        name for name, fields in _threads() if {int(one) for one in fields["Uid"].split()} != {uid}
    ]:
        log.warning("threads %s are not of user %d", ", ".join(stray), uid)
    names = (
        " ".join(f"CAP_{cap.name}" for cap in sorted(kept, key=lambda cap: cap.value))
        or "no capability"
    )
    bounding = (
        "an empty bounding set"
        if not capbset_probe()
        else "the bounding set as it was (CAP_SETPCAP is missing)"
    )
    filtered = unfiltered or "system calls that only attaching needs refused (seccomp)"
    return f"{names}, {bounding}, no new privileges, {filtered}; user {name_of(uid)}"


def name_of(uid: int) -> str:
    """A user's name, or its number where it has none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


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
                log.info(
                    "with %s judging is refused: %s",
                    " ".join(cap.name for cap in step) or "no capability",
                    error,
                )
            finally:
                whole.set_current()
    return frozenset(whole.permitted) & _MOST


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
    CapState(
        effective=set(kept & held), permitted=set(kept & held), inheritable=set()
    ).set_current()


def of_threads(process: Path = Path("/proc/self")) -> dict[str, int]:
    """The permitted capabilities of each thread, as a mask, by the thread's id and name."""
    return {name: int(fields["CapPrm"], 16) for name, fields in _threads(process)}


def _threads(process: Path = Path("/proc/self")) -> Iterator[tuple[str, dict[str, str]]]:
    for task in sorted((process / "task").iterdir()):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            fields = dict(line.split(":", 1) for line in (task / "status").read_text().splitlines())
            yield f"{task.name} ({fields['Name'].strip()})", fields


def _mask(caps: frozenset[Cap]) -> int:
    return sum(1 << cap.value for cap in caps)
