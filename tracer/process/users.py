"""The user that a daemon started by root becomes, and the files that this user gets."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import pwd
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pyprctl import Cap, CapState, cap_set_ids

from tracer.errors import RmapdError

log = logging.getLogger("rmapd")


@dataclass(frozen=True)
class User:
    """A user of this machine with its primary group."""

    name: str
    uid: int
    gid: int


OWN = "rmapd"
"""The user that the package makes; without it the daemon becomes `nobody`."""


def resolve(name: str, own: str = OWN) -> User | None:
    """Find the user that this process shall become; `nobody` where the user `own` does not exist.

    Returns None where the process keeps its user: it is not root, or has no CAP_SETUID or
    CAP_SETGID. Raises RmapdError for a user that does not exist or is root.
    """
    if os.geteuid():
        return None
    if missing := {Cap.SETUID, Cap.SETGID} - CapState.get_current().permitted:
        names = " and ".join(
            f"CAP_{cap.name}" for cap in sorted(missing, key=lambda cap: cap.value, reverse=True)
        )
        log.warning("rmapd stays uid 0, which owns root's files: %s missing", names)
        return None
    found = _look_up(name)
    if found is None and name == own:
        found = _look_up("nobody")
        log.warning(
            "there is no user %s: rmapd becomes nobody, and other processes of the user nobody"
            " can read its store. Try: make install",
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


def uid_of(name: str) -> int | None:
    """Return the number of the user of this name; None where this machine has none."""
    found = _look_up(name)
    return found.uid if found else None


def name_of(uid: int) -> str:
    """Return a user's name, or the number where it has no name."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _look_up(name: str) -> User | None:
    try:
        found = pwd.getpwnam(name)
    except KeyError:
        return None
    return User(name, found.pw_uid, found.pw_gid)


def change_ids(user: User | None) -> None:
    """Set all user and group ids of this thread and drop its supplementary groups.

    Capabilities stay. Nothing changes where the thread has that user already: it inherits the ids
    of the thread that starts it, and would not be allowed to set them again.
    """
    if user and os.geteuid() != user.uid:
        cap_set_ids(uid=user.uid, gid=user.gid, groups=[], preserve_effective_caps=True)


@contextlib.contextmanager
def files_as(user: User | None) -> Iterator[None]:
    """Open and create files as `user` in this thread while the context is open.

    So a refusal comes before the process becomes that user, and not after it.
    """
    if user is None:
        yield
        return
    libc, uid, gid = ctypes.CDLL(None), os.geteuid(), os.getegid()
    libc.setfsgid(user.gid)
    libc.setfsuid(user.uid)  # also clears the capabilities over files, capabilities(7)
    try:
        yield
    finally:
        libc.setfsuid(uid)
        libc.setfsgid(gid)


def hand_over(folder: Path, name: str, user: User | None) -> None:
    """Give root's folder, and its regular files whose names start with `name`, to `user`.

    Nothing changes where the folder is not root's or others can write it: another program could
    have put a link to a file of root's there.
    """
    if user is None or os.lstat(folder).st_uid:
        return  # in a container root may not be able to open a folder that is not its own
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        found = os.fstat(opened)
        if found.st_uid or found.st_mode & 0o022:
            return
        for entry in os.scandir(opened):
            if entry.name.startswith(name) and stat.S_ISREG(
                entry.stat(follow_symlinks=False).st_mode
            ):
                os.chown(entry.name, user.uid, user.gid, dir_fd=opened, follow_symlinks=False)
        os.fchown(opened, user.uid, user.gid)
    finally:
        os.close(opened)
