"""Interfere with a session under load, in each way that another program can, and record the result.

Runs in a guest.

usage: attacks.py OUT.json     (kprobes are preferred, because they can be switched off)
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from tests.workloads.soak import compaction
from tracer.bpf.programs import program_ids
from tracer.bpf.syscall import Command, call
from tracer.config import Config
from tracer.daemon.probes import running_kernel
from tracer.daemon.session import Session, open_session
from tracer.daemon.snapshots import caught_up
from tracer.invariants.verdict import Verdict

LOAD = (
    "stress-ng --quiet --oomable --rmap 1 --mremap 1 --mremap-bytes 16M --munmap 1 --mmapfork 1 "
    "--temp-path /tmp --timeout 0"
).split()
KPROBES, FTRACE = Path("/sys/kernel/debug/kprobes/enabled"), Path("/proc/sys/kernel/ftrace_enabled")
CPU = Path("/sys/devices/system/cpu/cpu1/online")
TINY = {
    "ledger_rows": 16,
    "frozen_rows": 1,
    "visit_rows": 2,
    "migration_rows": 1,
    "mm_rows": 1,
    "order_rows": 1,
}
TINY |= {"ring_pages": 1, "protocol_rows": 8, "hold_rows": 1, "flight_rows": 2}
_DAY = 86400


def stepping(session: Session, seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        session.step(0.2)


def seen(session: Session) -> dict[str, Any]:
    """Return what the outputs of the session show now."""
    snapshot = caught_up(session)
    bad = {
        f"{name} {verdict} {count}"
        for (name, verdict), count in snapshot.checks.items()
        if verdict in ("violated", "suspect") and count
    }
    return {
        "detached": sorted(hook.hook.name for hook in snapshot.hooks if hook.state == "detached"),
        "full": sorted(name for name, (level, _) in snapshot.coverage.items() if level == "full"),
        "reasons": sorted(
            {reason for level, reason in snapshot.coverage.values() if "taken away" in reason}
        ),
        "windows": sum(times.count for times in snapshot.window_times.values()),
        "checks": sum(snapshot.checks.values()),
        "unverifiable": snapshot.total(Verdict.UNVERIFIABLE),
        "accused": sorted(
            bad | {violation.first.signature for violation in snapshot.violations.values()}
        ),
        "lost": snapshot.lost,
    }


def switched(session: Session, switch: Path) -> dict[str, Any]:
    """Switch off for five seconds, then on; if the kernel refuses, return its error."""
    try:
        switch.write_text("0")
    except OSError as error:
        return {"refused": error.strerror}
    try:
        stepping(session, 5)
        off = seen(session)
    finally:
        switch.write_text("1")
    stepping(session, 5)
    return {"off": off, "on": seen(session)}


def links_detached(session: Session) -> dict[str, Any]:
    """Try BPF_LINK_DETACH on each attachment, as `bpftool link detach` does."""
    answers: dict[str, int] = {}
    for one in session.probes.loaded.attachments():
        try:
            call(Command.LINK_DETACH, struct.pack("<I", one.link.fd))
            answer = "taken"
        except OSError as error:
            answer = error.strerror or "?"
        answers[answer] = answers.get(answer, 0) + 1
    stepping(session, 3)
    return {"answers": answers, **seen(session)}


def hotplug(session: Session) -> dict[str, Any]:
    for _ in range(3):
        CPU.write_text("0")
        stepping(session, 3)
        CPU.write_text("1")
        stepping(session, 3)
    return seen(session)


def clock(session: Session) -> dict[str, Any]:
    """Set the clock a day ahead, two days back and a day ahead."""
    for days in (1, -2, 1):
        time.clock_settime(time.CLOCK_REALTIME, time.time() + days * _DAY)
        stepping(session, 4)
    return seen(session)


def killed() -> int:
    return int(
        next(
            line.split()[1]
            for line in Path("/proc/vmstat").read_text().splitlines()
            if line.startswith("oom_kill ")
        )
    )


def hog() -> None:
    """Allocate memory until the OOM killer ends a process."""
    Path("/proc/self/oom_score_adj").write_text("1000")
    kept = []
    with contextlib.suppress(MemoryError):
        while True:
            kept.append(
                mmap.mmap(
                    -1, 16 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE
                )
            )


def out_of_memory(session: Session) -> dict[str, Any]:
    before, until = killed(), time.monotonic() + 600
    children = []
    for _ in range(3):
        if not (child := os.fork()):
            hog()
            os._exit(0)
        children.append(child)
    while killed() - before < 2 and time.monotonic() < until:
        session.step(0.2)
    for child in children:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, 9)
        os.waitpid(child, 0)
    stepping(session, 5)
    return {"killed": killed() - before, **seen(session)}


AT_REST: dict[str, Callable[[Session], dict[str, Any]]] = {
    "kprobes": lambda session: switched(session, KPROBES),
    "ftrace": lambda session: switched(session, FTRACE),
}
"""Without load: 6.1 itself dies if kprobes are switched on again under load (docs/KERNELS.md)."""
ATTACKS: dict[str, Callable[[Session], dict[str, Any]]] = {
    "links": links_detached,
    "hotplug": hotplug,
    "clock": clock,
    "memory": out_of_memory,
}


@contextlib.contextmanager
def under_load(session: Session) -> Iterator[None]:
    load = subprocess.Popen(LOAD, start_new_session=True)
    compacting = os.fork()
    if not compacting:
        while True:
            compaction()
    try:
        yield
    finally:
        os.kill(compacting, 9)
        os.waitpid(compacting, 0)
        os.killpg(load.pid, 15)
        load.wait()
    session.settle(10)
    session.stop()


def main(out: str) -> None:
    kernel = running_kernel()
    kernel.__dict__.update(preempts=True, kprobe_refused="")
    config = msgspec.structs.replace(
        Config(), max_entry_age_seconds=120.0, lock_file="/tmp/rmapd-attacks.lock"
    )
    found: dict[str, Any] = {}

    def attempt(session: Session, attacks: dict[str, Callable[[Session], dict[str, Any]]]) -> None:
        for name, attack in attacks.items():
            found[name] = attack(session)
            Path(out).write_text(json.dumps(found, indent=1))
            print(name, json.dumps(found[name])[:400], flush=True)

    with open_session(config, kernel) as session:
        stepping(session, 5)
        found["before"] = seen(session)
        attempt(session, AT_REST)
        with under_load(session):
            attempt(session, ATTACKS)
        found["after"] = seen(session)
    tiny = msgspec.structs.replace(
        config.maps, **{name: rows for name, rows in TINY.items() if hasattr(config.maps, name)}
    )
    with open_session(msgspec.structs.replace(config, maps=tiny), kernel) as session:
        with under_load(session):
            stepping(session, 20)
        found["tiny"] = seen(session)
        print("tiny", json.dumps(found["tiny"])[:400], flush=True)
    for _ in range(50):
        if not (left := [name for _, name in program_ids() if name.startswith("rmapd_")]):
            break
        time.sleep(0.2)
    found["left"] = left
    Path(out).write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main(sys.argv[1])
