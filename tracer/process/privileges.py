"""Drop the privileges of root for good, in every thread, once everything is attached.

A daemon that root starts becomes a user of its own (users.py); the unit starts it as that user,
with the capabilities that attaching needs. Then it drops every capability that checking does not
need (capabilities.py), and the system calls that only attaching needs (seccomp.py).
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from types import FrameType

from pyprctl import Cap, capbset_probe, set_dumpable

from tracer.process import capabilities, seccomp, users
from tracer.process.users import User

log = logging.getLogger("rmapd")


def become(user: User | None, kept: frozenset[Cap] = frozenset()) -> None:
    """Make this single-threaded process `user` (None: no change) with no capabilities but `kept`.

    Other processes of the user cannot ptrace it: it is not dumpable. A process with threads starts
    them in threads_without() and calls drop().
    """
    users.change_ids(user)
    capabilities.limit_to(kept)
    set_dumpable(False)


@contextlib.contextmanager
def threads_without(user: User | None = None) -> Iterator[None]:
    """Make each thread started in the context `user`, and drop all its capabilities before it runs.

    Capabilities and user ids are attributes of a thread, not of a process.
    """
    before = threading.getprofile()
    threading.setprofile(partial(_at_thread_start, user))
    try:
        yield
    finally:
        threading.setprofile(before)


def _at_thread_start(user: User | None, _frame: FrameType, _event: str, _argument: object) -> None:
    sys.setprofile(None)
    users.change_ids(user)
    capabilities.limit_to(frozenset())


def drop(rehearse: Callable[[], object], user: User | None = None) -> str:
    """Become `user`, keep only the capabilities that rehearse() needs, and return a log text of it.

    Call it in the main thread; all others must have been started in threads_without().
    """
    users.change_ids(user)
    set_dumpable(False)
    kept = capabilities.smallest_sufficient(rehearse)
    capabilities.limit_to(kept)
    no_filter = seccomp.install_filter()
    uid, allowed = os.getuid(), capabilities.mask(kept)
    held_by = capabilities.permitted_by_thread()
    if stray := [name for name, held in held_by.items() if held & ~allowed]:
        log.warning("threads %s still have capabilities that they do not need", ", ".join(stray))
    if stray := [
        name
        for name, fields in capabilities.thread_status()
        if {int(one) for one in fields["Uid"].split()} != {uid}
    ]:
        log.warning("threads %s do not run as user %d", ", ".join(stray), uid)
    names = (
        " ".join(f"CAP_{cap.name}" for cap in sorted(kept, key=lambda cap: cap.value))
        or "no capability"
    )
    bounding = (
        "an empty bounding set"
        if not capbset_probe()
        else "an unchanged bounding set (CAP_SETPCAP is missing)"
    )
    filtered = no_filter or "a seccomp filter against system calls that only attaching needs"
    return f"{names}, {bounding}, no new privileges, {filtered}; user {users.name_of(uid)}"
