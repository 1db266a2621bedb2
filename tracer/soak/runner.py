"""The command that `rmapd soak` runs under `rmapd exec`: the load, and nothing of it left after it.

usage: python -m tracer.soak.runner PLAN.json

Two processes. The outer one watches the time, the machine's free memory and the soak that waits.
The inner one is the first process of a PID namespace, with mounts of its own: when it is killed, or
the outer one dies of whatever, the kernel kills every process of the load, and unmounts the tmpfs.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import random
import select
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import msgspec

from tracer import atomic_file
from tracer.errors import RmapdError
from tracer.process import children
from tracer.report.soak import SoakPart
from tracer.soak import limits
from tracer.soak.calls import Here
from tracer.soak.loads import Part, command_of
from tracer.soak.plan import Ending, LoadPlan, Plan, Status
from tracer.soak.stressors import STRESSORS

_USERS = 2_000_000_000
"""The first of the user ids that no system gives to users; RLIMIT_NPROC counts by user."""
_CLONE_NEWNS, _CLONE_NEWPID = 0x00020000, 0x20000000
_MS_NOSUID, _MS_NODEV, _MS_BIND, _MS_REC, _MS_PRIVATE = 2, 4, 4096, 16384, 1 << 18
_POLL_SECONDS = 0.1
_DEATH_SECONDS = 60.0
"""A killed load that swaps, or an emulated one, takes its time; one that is stuck never dies."""
_SKIPPED = 4  # KSFT_SKIP, and stress-ng's "not implemented"
_MOST_RESTARTS = 1000
_PAUSE_SECONDS = 0.2
_LONGEST_PAUSE_SECONDS = 30.0
"""Between failures that follow each other: what fails may work again, as when files were full."""
_FOLDERS_BYTES = 16 << 20
_TMP_SHARE = 8
"""Of the memory, a part for what programs write to /tmp whatever TMPDIR says."""
_TERMINATION_SECONDS = 5.0
"""For a command whose time is over to put back what it changed, before SIGKILL."""


@dataclass
class _Worker:
    """One process of a part. slot: of its counts; pid: 0 while it does not run."""

    load: LoadPlan
    part: Part
    slot: int
    pid: int = 0
    starts: int = 0


@dataclass
class _Shared:
    """What the processes of the load write and the outer one reads: counts and notes."""

    workers: list[_Worker]
    counts: memoryview = field(init=False)
    notes: int = field(init=False)

    def __post_init__(self) -> None:
        room = max(mmap.PAGESIZE, 16 * len(self.workers))
        self.counts = memoryview(mmap.mmap(-1, room)).cast("Q")
        self.notes = os.memfd_create("rmapd-soak")

    def note(self, worker: _Worker, kind: str, text: str) -> None:
        """Write a line. kind: `note`, or `killed` with the signal's name."""
        line = json.dumps([worker.slot, kind, text[:200]]) + "\n"
        os.write(self.notes, line.encode())

    def parts(self) -> list[SoakPart]:
        """Return what each part did, of all its workers."""
        found: dict[str, SoakPart] = {}
        lines = os.pread(self.notes, 1 << 22, 0).decode(errors="replace").splitlines()
        notes = [json.loads(line) for line in lines if line.endswith("]")]
        for worker in self.workers:
            name = f"{worker.load.name}.{worker.part.name}"
            done, failed = self.counts[2 * worker.slot], self.counts[2 * worker.slot + 1]
            mine = [(kind, text) for slot, kind, text in notes if slot == worker.slot]
            killed = Counter(text for kind, text in mine if kind == "killed")
            note = next((text for kind, text in reversed(mine) if kind == "note"), "")
            before = found.get(name, SoakPart(name, 0))
            found[name] = SoakPart(
                name,
                before.done + done,
                before.failed + failed,
                dict(Counter(before.killed) + killed),
                before.note or note,
            )
        return list(found.values())


def run(plan: Plan) -> int:
    """Run the load to its end, write the status, and return the exit code: 0 if it ran."""
    arrived = list[int]()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda got, _frame: arrived.append(got))
    every = [
        (load, part) for load in plan.loads for part in load.parts for _ in range(part.workers)
    ]
    shared = _Shared([_Worker(load, part, slot) for slot, (load, part) in enumerate(every)])
    started, began = time.time(), time.monotonic()
    end: Ending = "failed"
    why, inner = "", 0
    soak = os.pidfd_open(plan.soak)
    try:
        limits.write_settings(plan.settings)
        inner = _start_inner(plan, shared)
        end, why = _watch(plan, inner, soak, arrived)
    except OSError as error:
        why = f"{error.strerror or error}"
    finally:
        seconds = time.monotonic() - began
        if inner and not _killed(inner):
            end = "failed"
            why = "the load does not die in a minute: a task of it may be stuck in the kernel"
        status = Status(started, round(seconds, 3), end, why, shared.parts())
        if Path(plan.status).parent.exists():
            text = msgspec.json.encode(status).decode()
            atomic_file.write(Path(plan.status), text, "the load's status", rescue=False)
        limits.clean(plan.limits.cgroup, plan.before, remove=end == "soak")
    return 1 if end == "failed" else 0


def _killed(inner: int) -> bool:
    """Kill the load; return whether all of it is gone soon enough for exec's grace."""
    until = time.monotonic() + _DEATH_SECONDS
    with suppress(ProcessLookupError):
        os.kill(inner, signal.SIGKILL)
    with suppress(ChildProcessError):
        while not os.waitpid(inner, os.WNOHANG)[0]:
            if time.monotonic() >= until:
                return False
            time.sleep(_POLL_SECONDS / 10)
    return True


def _watch(plan: Plan, inner: int, soak: int, arrived: list[int]) -> tuple[Ending, str]:
    """Wait until the load ends, and return how."""
    until = time.monotonic() + plan.seconds if plan.seconds is not None else float("inf")
    poll = select.poll()
    poll.register(soak, select.POLLIN)
    while True:
        if arrived:
            return "signal", f"{signal.Signals(arrived[0]).name} arrived"
        if time.monotonic() >= until:
            return "time", ""
        if poll.poll(0):
            return "soak", "rmapd soak died"
        if os.waitpid(inner, os.WNOHANG)[0]:
            return "failed", "the load could not start, or its first process died"
        free = limits.meminfo()["MemAvailable"]
        if free < plan.limits.floor_bytes:
            return "memory", f"the check of free memory ended it: {free >> 20:,} MiB were left"
        time.sleep(min(_POLL_SECONDS, max(0.0, until - time.monotonic())))


def _start_inner(plan: Plan, shared: _Shared) -> int:
    """Fork the first process of the load's namespaces; return its pid."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWPID):
        raise OSError(ctypes.get_errno(), "no PID namespace can be made")
    inner = os.fork()
    if inner:
        return inner
    try:
        children.die_with_parent(signal.SIGKILL, 0)  # the parent is outside: its pid here is 0
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        if plan.limits.cgroup:
            limits.join(plan.limits.cgroup)
        if libc.unshare(_CLONE_NEWNS):
            raise OSError(ctypes.get_errno(), "no mount namespace can be made")
        _mount_all(plan)
        _keep_running(plan, shared)
    except BaseException as error:
        print(f"rmapd soak: the load cannot start: {error}", file=sys.stderr, flush=True)
    finally:
        os._exit(1)


def _mount(kind: str, target: Path | str, flags: int, options: str = "", source: str = "") -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    what, name = (source or kind).encode(), str(target).encode()
    if libc.mount(what, name, kind.encode(), ctypes.c_ulong(flags), options.encode()):
        number = ctypes.get_errno()
        raise OSError(number, f"mount {kind} at {target}: {os.strerror(number)}")


def _mount_all(plan: Plan) -> None:
    """Mount the tmpfs of each load, this namespace's /proc, and debugfs where there is none."""
    _mount("none", "/", _MS_REC | _MS_PRIVATE)
    _mount("proc", "/proc", _MS_NOSUID | _MS_NODEV)
    if not Path("/sys/kernel/debug/split_huge_pages").exists():
        with suppress(OSError):
            _mount("debugfs", "/sys/kernel/debug", 0)
    base, flags = Path(plan.folder), _MS_NOSUID | _MS_NODEV
    _mount("tmpfs", base, flags, f"size={_FOLDERS_BYTES},mode=0755")
    for load in plan.loads:
        folder = base / load.name
        folder.mkdir()
        size = f"size={max(load.tmpfs_bytes, 1 << 20)},mode=1777"
        try:
            _mount("tmpfs", folder, flags, f"{size},{load.tmpfs_options}".rstrip(","))
        except OSError:  # a kernel that does not know huge=
            _mount("tmpfs", folder, flags, size)
    kept = [base, *([Path(plan.selftests)] if plan.selftests else [])]
    _hide_tmp(Path("/tmp"), kept, plan.limits.memory_bytes // _TMP_SHARE)  # noqa: S108


def _hide_tmp(tmp: Path, kept: Sequence[Path], size: int) -> None:
    """Mount a tmpfs over /tmp, in which only these folders are as before.

    The kernel's own tests write to /tmp, and leave files there when they are killed.
    """
    tmp = tmp.resolve()
    below = [path for path in kept if path.resolve().is_relative_to(tmp)]
    folders = {path.resolve(): os.open(path, os.O_PATH | os.O_DIRECTORY) for path in below}
    _mount("tmpfs", tmp, _MS_NOSUID | _MS_NODEV, f"size={size},mode=1777")
    for path, folder in folders.items():
        path.mkdir(parents=True, exist_ok=True)
        _mount("none", path, _MS_BIND | _MS_REC, source=f"/proc/self/fd/{folder}")
        os.close(folder)


def _keep_running(plan: Plan, shared: _Shared) -> NoReturn:
    """Start the workers, and start those again that die; reap every orphan of the load."""
    for worker in shared.workers:
        _start(plan, shared, worker)
    by_pid = {worker.pid: worker for worker in shared.workers}
    while True:
        try:
            pid, status = os.waitpid(-1, 0)
        except ChildProcessError:
            time.sleep(_PAUSE_SECONDS)
            continue
        if pid not in by_pid:
            continue
        worker = by_pid.pop(pid)
        shared.counts[2 * worker.slot + 1] += 1
        if os.WIFSIGNALED(status):
            shared.note(worker, "killed", signal.Signals(os.WTERMSIG(status)).name)
        time.sleep(_PAUSE_SECONDS)
        if worker.starts < _MOST_RESTARTS:
            _start(plan, shared, worker)
            by_pid[worker.pid] = worker


def _start(plan: Plan, shared: _Shared, worker: _Worker) -> None:
    worker.starts += 1
    worker.pid = os.fork()
    if not worker.pid:
        try:
            _work(plan, shared, worker)
        except BaseException as error:
            shared.note(worker, "note", f"{type(error).__name__}: {error}")
        finally:
            os._exit(1)


def _work(plan: Plan, shared: _Shared, worker: _Worker) -> NoReturn:
    """Do the work of one worker for ever."""
    load, part = worker.load, worker.part
    empty = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(empty, number)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    folder = Path(plan.folder, load.name)
    limits.limit_worker(
        load.worker_bytes,
        plan.limits.processes,
        shared=bool(plan.limits.cgroup),
        root=part.root,
    )
    if not part.root:
        os.setgroups([])
        user = _USERS + plan.soak
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(PATH="/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", LANG="C")
    os.environ.update(TMPDIR=str(folder), HOME=str(folder))
    files = load.tmpfs_bytes // (1 + sum(one.workers for one in load.parts))
    here = Here(
        random.Random(f"{plan.seed}.{worker.slot}.{worker.starts}"),  # noqa: S311
        load.worker_bytes,
        files,
        folder,
    )
    rounds = _python_rounds(part, here) if part.python else _command_rounds(plan, part, here)
    failures = 0
    for why in rounds:
        shared.counts[2 * worker.slot + bool(why)] += 1
        failures = failures + 1 if why else 0
        if why:
            shared.note(worker, "note", why)
            time.sleep(min(_PAUSE_SECONDS * 2 ** min(failures, 10), _LONGEST_PAUSE_SECONDS))
    sys.exit("rounds have no end")


def _python_rounds(part: Part, here: Here) -> Iterator[str]:
    """Yield after each round why it failed, or an empty text."""
    while True:
        try:
            for _ in STRESSORS[part.python](here):
                yield ""
        except (OSError, MemoryError, ValueError) as error:
            yield f"a round failed: {error}"


def _command_rounds(plan: Plan, part: Part, here: Here) -> Iterator[str]:
    """Run the commands one after the other; yield why each failed, or an empty text."""
    folder = Path(plan.selftests) if plan.selftests else None
    known = [words for one in part.commands if (words := command_of(part, one, folder))]
    values = {"folder": str(here.folder), "mib": max(1, here.memory >> 21)}
    while True:
        for words in known:
            command = [word.format_map(values) for word in words]
            errors = here.folder / f"errors-{os.getpid()}"
            with open(errors, "w+b") as file:
                process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stderr=file, start_new_session=True
                )
                try:
                    code = process.wait(part.limit_seconds)
                except subprocess.TimeoutExpired:
                    with suppress(subprocess.TimeoutExpired):
                        os.killpg(process.pid, signal.SIGTERM)
                        process.wait(_TERMINATION_SECONDS)
                    with suppress(ProcessLookupError):
                        os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
                    code = 0  # its time was over: it worked that long
            text = errors.read_text(errors="replace").strip().splitlines()
            last = text[-1] if text else f"it ended with {code}"
            yield "" if code in (0, _SKIPPED) else f"{' '.join(words[:1])}: {last}"


def main(path: str) -> int:
    """Run the plan in this file."""
    try:
        return run(msgspec.json.decode(Path(path).read_bytes(), type=Plan))
    except RmapdError as error:
        print(f"rmapd soak: {error}", file=sys.stderr, flush=True)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
