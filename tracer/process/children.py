"""Child processes that may die or hang, and must take nobody along.

A child that shares the table of file descriptors (CLONE_FILES) instead of copying it: whatever becomes of it, its parent can close what it
has open. That matters where the kernel kills a process by a BUG: the task may never come to the point where its files are closed,
and what is attached by one of them would stay attached.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path

_SYS_CLONE, _SYS_MBIND = 56, 237  # x86-64
_LOCAL = 4  # MPOL_LOCAL
_FILES, _SET_TID, _CLEAR_TID = 0x400, 0x01000000, 0x00200000
_GET_TID_ADDRESS, _SET_DEATH_SIGNAL, _SET_NAME = 40, 1, 15
_EXITING = 0x4  # PF_EXITING, include/linux/sched.h
_GONE = 125
_TURN_SECONDS = 0.005


def fork_sharing_files() -> int:
    """os.fork(), but the child has not a copy of our file descriptors: both have one table. Only in a process of a single thread.

    No object of the one process may close a descriptor that the other still uses: what both know is kept as numbers."""
    python, libc, place = ctypes.pythonapi, ctypes.CDLL(None), ctypes.c_void_p()
    flags = _FILES | signal.SIGCHLD
    if libc.prctl(_GET_TID_ADDRESS, ctypes.byref(place), 0, 0, 0) == 0 and place.value:
        flags |= _SET_TID | _CLEAR_TID  # as fork() of the C library does: it keeps a thread's id
    python.syscall.restype = ctypes.c_long
    python.PyOS_BeforeFork()
    pid = int(
        python.syscall(ctypes.c_long(_SYS_CLONE), ctypes.c_ulong(flags), None, None, place, None)
    )
    if pid:
        python.PyOS_AfterFork_Parent()
    else:
        python.PyOS_AfterFork_Child()
    if pid < 0:
        raise OSError(0, "the kernel makes no new process")
    return pid


def die_with_parent(number: int, parent: int) -> None:
    """The signal comes when the parent dies (0: none does). A process whose parent is dead already ends."""
    ctypes.CDLL(None).prctl(_SET_DEATH_SIGNAL, number, 0, 0, 0)
    if number and os.getppid() != parent:
        os._exit(_GONE)


def stay_on_node() -> None:
    """Keep the kernel's NUMA balancing off the memory that this process has now (MPOL_LOCAL). It walks from a page to all that may map it,
    and where a child of ours was killed by a BUG one page table of those is locked for ever. New memory has nothing to do with children."""
    libc = ctypes.CDLL(None)
    for line in Path("/proc/self/maps").read_text().splitlines():
        where, rights, *_ = line.split()
        if rights == "rw-p":
            start, end = (int(part, 16) for part in where.split("-"))
            libc.syscall(
                _SYS_MBIND,
                ctypes.c_ulong(start),
                ctypes.c_ulong(end - start),
                _LOCAL,
                None,
                ctypes.c_ulong(0),
                0,
            )


def call_it(name: str) -> None:
    """This process, in ps and in the kernel's messages."""
    ctypes.CDLL(None).prctl(_SET_NAME, name.encode(), 0, 0, 0)


def ended(process: int) -> int | None:
    """The exit status of a child that has ended (negative: the signal); None while it runs. Never waits."""
    with contextlib.suppress(ChildProcessError):
        found, status = os.waitpid(process, os.WNOHANG)
        return os.waitstatus_to_exitcode(status) if found else None
    return _GONE


def limited(
    work: Callable[[], int],
    seconds: float,
    *,
    sharing: bool = True,
    stopped: Callable[[], bool] = lambda: False,
) -> int | None:
    """Do this in a child: its exit status, negative for a signal; None where it takes longer, or is stopped. Such a child is killed and
    not waited for: it may be one that cannot be killed. It opens no descriptor here, for the child may be there to close them."""
    process = fork_sharing_files() if sharing else os.fork()
    if not process:
        code = _GONE
        try:
            code = work()
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    until = time.monotonic() + seconds
    while time.monotonic() < until and not stopped():
        if (found := ended(process)) is not None:
            return found
        time.sleep(_TURN_SECONDS)
    os.kill(process, signal.SIGKILL)
    return None


def exiting(process: int, seconds: float = 2.0) -> bool:
    """Whether the main thread of a process has died or is dying: it may have left others behind, which keep the process.

    /proc is read in a child: what asks for a process whose memory is locked for ever may wait for ever. No answer is no."""
    return limited(lambda: int(_is_exiting(process)), seconds, sharing=False) == 1


def _is_exiting(process: int) -> bool:
    try:
        fields = (
            Path(f"/proc/{process}/task/{process}/stat").read_text().rpartition(") ")[2].split()
        )
    except OSError:
        return False
    return fields[0] in "ZX" or bool(int(fields[6]) & _EXITING)


def stay_after_main_thread() -> None:
    """Start a thread that sleeps for ever. Where the kernel kills the main thread by a BUG, with a page table of ours locked, the last
    thread to go takes the address space down, comes to that page table, and spins on its lock: a CPU is lost, and with it the machine.
    As long as one thread is left nobody comes to it."""
    threading.Thread(target=threading.Event().wait, name="rmapd-stay", daemon=True).start()
