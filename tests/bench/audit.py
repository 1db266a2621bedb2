"""What the state audit costs: CPU time of looks at mms of many sizes, and of many mms.

usage: python -m tests.bench.audit        (root; raises vm.max_map_count while it runs)
It prints tables for docs/measurements/COST-DETAILS.md.
"""

from __future__ import annotations

import contextlib
import os
import signal
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from tests.support.many_vmas import victim
from tracer.bpf.programs import Program
from tracer.bpf.syscall import object_info
from tracer.config import Config
from tracer.daemon.levels import AUDIT_ONLY
from tracer.daemon.probes import running_kernel
from tracer.daemon.session import Session, open_session
from tracer.memory.vma_trees import LAST_ADDRESS, PROGRAMS

MAX_MAP_COUNT = Path("/proc/sys/vm/max_map_count")
SIZES = (100, 1_000, 10_000, 100_000, 1_000_000)
PROCESSES = 1_000
REPEATS = 5
SLICE = 2048


@contextlib.contextmanager
def many_maps(count: int) -> Iterator[None]:
    """Allow an mm so many VMAs for a while."""
    before = MAX_MAP_COUNT.read_text()
    MAX_MAP_COUNT.write_text(str(max(count, int(before))))
    try:
        yield
    finally:
        MAX_MAP_COUNT.write_text(before)


def slices(session: Session, pid: int) -> tuple[int, int, float, float]:
    """Look at an mm slice by slice; return VMAs, looks, CPU seconds, and those of the longest."""
    assert session.audit
    reader = session.audit.reader
    mm = next(mm for mm in reader.mms() if mm.tgid == pid)
    low, vmas, looks, total, longest = 0, 0, 0, 0.0, 0.0
    while True:
        began = time.thread_time()
        look = reader.look(mm, low, LAST_ADDRESS, SLICE)
        took = time.thread_time() - began
        vmas, looks = vmas + look.counted["vmas"], looks + 1
        total, longest = total + took, max(longest, took)
        if look.high == LAST_ADDRESS:
            return vmas, looks, total, longest
        low = look.high + 1


def by_size(session: Session) -> None:
    print("| VMAs of the mm | looks | CPU time | per VMA | longest look |\n|---|---|---|---|---|")
    for size in SIZES:
        with many_maps(size + 1000), victim(size) as (process, _, _):
            best = min(
                (slices(session, process.pid) for _ in range(REPEATS)), key=lambda row: row[2]
            )
        vmas, looks, cpu, longest = best
        print(
            f"| {vmas:,} | {looks:,} | {cpu * 1e3:.2f} ms | {cpu * 1e6 / vmas:.2f} µs "
            f"| {longest * 1e3:.2f} ms |",
            flush=True,
        )


def by_processes(session: Session) -> None:
    assert session.audit
    asleep = [subprocess.Popen(["sleep", "1000"]) for _ in range(PROCESSES)]
    try:
        time.sleep(2)
        rows = []
        for _ in range(REPEATS):
            before = session.audit.progress()
            began = time.thread_time()
            session.audit.whole_pass(time.sleep)
            after = session.audit.progress()
            mms, vmas = (
                after.counted[name] - before.counted.get(name, 0) for name in ("mms", "vmas")
            )
            rows.append((time.thread_time() - began, mms, vmas))
    finally:
        for process in asleep:
            process.send_signal(signal.SIGKILL)
            process.wait()
    cpu, mms, vmas = min(rows)
    print(
        f"\n{mms:,} mms with {vmas:,} VMAs: {cpu * 1e3:.1f} ms of CPU time a pass, "
        f"{cpu * 1e6 / mms:.1f} µs an mm; at a budget of 0.1 % a pass takes {cpu * 1e3:.0f} s"
    )


def verified(session: Session) -> None:
    """Instructions that the verifier went through: verified_insns of struct bpf_prog_info."""
    print("\n| program | instructions | verified |\n|---|---|---|")
    for name in PROGRAMS:
        program: Program = session.probes.loaded.programs[name][0]
        info = object_info(program.fd, 232)
        translated = struct.unpack_from("<I", info, 20)[0] // 8
        print(f"| `{name}` | {translated:,} | {struct.unpack_from('<I', info, 216)[0]:,} |")


def main() -> None:
    config = msgspec.structs.replace(Config(), fidelity=AUDIT_ONLY, cache="")
    with open_session(config, running_kernel()) as session:
        print(
            f"kernel {os.uname().release}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}\n"
        )
        if not session.audit:
            raise SystemExit(session.audit_reason)
        by_size(session)
        by_processes(session)
        verified(session)


if __name__ == "__main__":
    main()
