"""Child processes that may die or hang without stopping their parent.

fork_sharing_files() makes a child that shares its parent's table of file descriptors (CLONE_FILES)
instead of a copy: whatever happens to the child, the parent can close what it has open. A task that
the kernel kills by a BUG may never get to close its files, and what it attached would stay.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from tracer.machine.system_calls import clone_arguments, number

_MPOL_LOCAL = 4
_CLONE_FILES, _CLONE_CHILD_SETTID, _CLONE_CHILD_CLEARTID = 0x400, 0x01000000, 0x00200000
_PR_GET_TID_ADDRESS, _PR_SET_PDEATHSIG, _PR_SET_NAME = 40, 1, 15
_PF_EXITING = 0x4  # include/linux/sched.h
_FLAGS, _UTIME = 6, 11  # fields of /proc/PID/stat behind the state; stime follows utime
_NO_STATUS = 125
_POLL_SECONDS = 0.005


def fork_sharing_files() -> int:
    """Fork like os.fork(), but with one table of file descriptors for both processes.

    Only a process with a single thread may call this. No Python object of one process may close a
    descriptor that the other still uses: keep such descriptors as numbers. Raises OSError.
    """
    gc.collect()  # each process would close the files of what is garbage now: one of them another
    python = ctypes.PyDLL(None, use_errno=True)
    libc, tid_address = ctypes.CDLL(None), ctypes.c_void_p()
    flags = _CLONE_FILES | signal.SIGCHLD
    if (
        libc.prctl(_PR_GET_TID_ADDRESS, ctypes.byref(tid_address), 0, 0, 0) == 0
        and tid_address.value
    ):  # glibc's fork() does the same: it caches the thread id there
        flags |= _CLONE_CHILD_SETTID | _CLONE_CHILD_CLEARTID
    python.syscall.restype = ctypes.c_long
    python.PyOS_BeforeFork()
    pid = int(python.syscall(ctypes.c_long(number("clone")), *clone_arguments(flags, tid_address)))
    if not pid:
        python.PyOS_AfterFork_Child()
        return 0
    failure = ctypes.get_errno()
    python.PyOS_AfterFork_Parent()
    if pid < 0:
        raise OSError(failure, f"the kernel makes no new process: {os.strerror(failure)}")
    return pid


def go_on_in_background() -> None:
    """End the command with success now; a child goes on from here, without its terminal.

    Only a process with a single thread may call this. Descriptors stay open in the child.
    """
    sys.stdout.flush()
    if os.fork():
        os._exit(0)
    os.setsid()
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    os.close(null)


def die_with_parent(number: int, parent: int) -> None:
    """Get this signal when the parent dies; 0 cancels it. Exit at once if it is dead already."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)
    if number and os.getppid() != parent:
        os._exit(_NO_STATUS)


def disable_numa_balancing() -> None:
    """Exclude this process's present memory from NUMA balancing, by the policy MPOL_LOCAL.

    NUMA balancing walks from a page to every page table that may map it. Where a BUG killed a child
    of ours, one of those is locked for ever. Memory mapped later is not shared with children.
    """
    libc = ctypes.CDLL(None)
    for line in Path("/proc/self/maps").read_text().splitlines():
        where, rights, *_ = line.split()
        if rights == "rw-p":
            start, end = (int(part, 16) for part in where.split("-"))
            libc.syscall(
                number("mbind"),
                ctypes.c_ulong(start),
                ctypes.c_ulong(end - start),
                _MPOL_LOCAL,
                None,
                ctypes.c_ulong(0),
                0,
            )


def set_process_name(name: str) -> None:
    """Set this process's comm: its name in ps and in kernel messages, 15 characters at most."""
    ctypes.CDLL(None).prctl(_PR_SET_NAME, name.encode(), 0, 0, 0)


def exit_status(process: int) -> int | None:
    """Return a child's exit status (negative: the signal), or None while it runs. Never wait."""
    with contextlib.suppress(ChildProcessError):
        found, status = os.waitpid(process, os.WNOHANG)
        return os.waitstatus_to_exitcode(status) if found else None
    return _NO_STATUS


def run_limited(
    work: Callable[[], int],
    seconds: float,
    *,
    sharing: bool = True,
    stopped: Callable[[], bool] = lambda: False,
) -> int | None:
    """Run work() in a child and return its exit status (negative: the signal).

    Returns None where it takes longer than `seconds`, or stopped() is true. Such a child gets
    SIGKILL and is not waited for: it may be one that cannot be killed. sharing: the child shares
    our table of descriptors. No descriptor is opened here: the child may be about to close them.
    """
    process = fork_sharing_files() if sharing else os.fork()
    if not process:
        code = _NO_STATUS
        try:
            signal.set_wakeup_fd(-1)  # its number may be another file's here
            code = work()
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    until = time.monotonic() + seconds
    while time.monotonic() < until and not stopped():
        if (found := exit_status(process)) is not None:
            return found
        time.sleep(_POLL_SECONDS)
    os.kill(process, signal.SIGKILL)
    return None


class MainThread(NamedTuple):
    """The main thread of a process. state: a letter of proc(5).

    exiting: it is dead or dying; other threads may keep the process. cpu_seconds: that it has used.
    functions: its kernel stack, innermost first.
    """

    state: str
    exiting: bool
    cpu_seconds: float
    functions: tuple[str, ...] = ()


def main_thread(process: int, seconds: float = 2.0) -> MainThread | None:
    """Look at the main thread of a process.

    A child reads /proc: reading it may block for ever where the process's memory is locked, and
    then the child cannot be killed. None where there is no answer within `seconds`.
    """
    answer, question = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        run_limited(lambda: _tell_main_thread(process, question), seconds, sharing=False)
        words = os.read(answer, 1 << 12).decode(errors="replace").split()
    except OSError:  # no answer, or no process that could give one
        return None
    finally:
        os.close(answer)
        os.close(question)
    state, flags, cpu_seconds, *functions = words
    exiting = state in "ZX" or bool(int(flags) & _PF_EXITING)
    return MainThread(state, exiting, float(cpu_seconds), tuple(functions))


def _tell_main_thread(process: int, pipe: int) -> int:
    """Write what is known of a main thread, its stack last: to read that may take for ever."""
    thread = Path(f"/proc/{process}/task/{process}")
    try:
        fields = (thread / "stat").read_text().rpartition(") ")[2].split()
    except OSError:  # it is gone
        return 0
    ticks = int(fields[_UTIME]) + int(fields[_UTIME + 1])
    cpu_seconds = ticks / os.sysconf("SC_CLK_TCK")
    os.write(pipe, f"{fields[0]} {fields[_FLAGS]} {cpu_seconds} ".encode())
    with contextlib.suppress(OSError):  # only root may read it
        lines = (thread / "stack").read_text().splitlines()
        functions = [line.split()[-1].partition("+")[0] for line in lines if line.strip()]
        os.write(pipe, " ".join(functions[:6]).encode())
    return 0


def keep_process_after_main_thread() -> None:
    """Start a thread that sleeps for ever, so that the main thread is never the last one to exit.

    The last thread to exit takes the address space down. Where the kernel killed the main thread by
    a BUG while it held the lock of one of our page tables, that walk would spin on the lock for
    ever: a CPU is lost, and with it the machine.
    """
    threading.Thread(target=threading.Event().wait, name="rmapd-stay", daemon=True).start()
