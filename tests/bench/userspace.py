"""Measure the user space of the daemon: delays of reports, CPU time and start-up.

Results are printed, never asserted. Windows come from rehearsal probes.

usage: python -m tests.bench.userspace [truth|rate|start]…     (root; memory.py measures memory)
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from queue import Queue
from typing import Any

from tests.live.conftest import daemon, daemons_user
from tests.support.daemons import RMAPD, checker_of, fetch, sample
from tests.support.rehearsal import A_RUN, CAST_ROWS, WindowRecorder, make
from tests.support.violations import ENCODING, VIOLATING, variant
from tracer.protocol.text import text

_HEAD = (
    "| invariant | samples | log: median, ms | 90 % | 99 % | slowest | within 100 ms "
    "| metric: median, ms | 90 % | 99 % | slowest | within 100 ms |"
)
SAMPLES = 65  # per invariant and run: below the bound on signatures
RUNS = 2
RATES = (0, 10_000, 100_000, 1_000_000)
SECONDS = 30


@contextlib.contextmanager
def rehearsing(**env: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    with tempfile.TemporaryDirectory() as folder:
        os.chown(folder, daemons_user().pw_uid, daemons_user().pw_gid)
        probes = make(Path(folder) / "probes")
        command = [sys.executable, "-m", "tests.support.altered", str(probes), "{}"]
        with daemon(command=command, env={"RMAPD_STORE": f"{folder}/store.db", **env}) as running:
            yield running


def percentiles(milliseconds: Sequence[float]) -> str:
    ordered = sorted(milliseconds)
    at = {
        share: ordered[min(len(ordered) - 1, int(share * len(ordered)))]
        for share in (0.5, 0.9, 0.99)
    }
    within = sum(one <= 100 for one in ordered) / len(ordered)
    return (
        f"{len(ordered)} | "
        + " | ".join(f"{value:.0f}" for value in at.values())
        + f" | {ordered[-1]:.0f} | {within:.1%}"
    )


def truth() -> None:
    """Measure the time from the recording of a violating window to the log line and the metric."""
    found: dict[str, tuple[list[float], list[float]]] = {
        invariant: ([], []) for invariant in VIOLATING
    }
    for run in range(RUNS):
        with rehearsing() as (process, url), contextlib.closing(WindowRecorder.find()) as recorder:
            assert process.stdout
            lines: Queue[tuple[int, dict[str, Any]]] = Queue()
            threading.Thread(target=_listen, args=(process.stdout, lines), daemon=True).start()
            for number in range(SAMPLES):
                for invariant, line in VIOLATING.items():
                    key = variant(line, run * SAMPLES + number)
                    logged, shown = _one(recorder, url, lines, invariant, key)
                    found[invariant][0].append(logged)
                    found[invariant][1].append(shown)
    print(_HEAD)
    every = (
        [one for logs, _ in found.values() for one in logs],
        [one for _, metrics in found.values() for one in metrics],
    )
    for name, (logs, metrics) in [*found.items(), ("all", every)]:
        print(f"| {name} | {percentiles(logs)} | {percentiles(metrics).partition(' | ')[2]} |")


def _listen(stream: Any, lines: Queue[tuple[int, dict[str, Any]]]) -> None:
    for line in stream:
        lines.put((time.monotonic_ns(), json.loads(line)))


def _one(
    recorder: WindowRecorder,
    url: str,
    lines: Queue[tuple[int, dict[str, Any]]],
    invariant: str,
    key: bytes,
) -> tuple[float, float]:
    """Return the milliseconds to the log line and to the metric."""
    metric = f'rmapd_violations_total{{invariant="{invariant}"}}'
    before, protocol = sample(url, metric), text(ENCODING.decode(key))
    time.sleep(0.02)
    start = time.monotonic_ns()
    recorder.record(key)
    while True:
        at, row = lines.get(timeout=30)
        if (row.get("invariant"), row.get("protocol")) == (invariant, protocol):
            break
    while sample(url, metric) == before:
        pass
    return (at - start) / 1e6, (time.monotonic_ns() - start) / 1e6


def cpu(pid: int) -> float:
    """Return the user and system seconds of a process with its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def own(pid: int) -> float:
    """Return the CPU seconds of its main thread, which is the checker."""
    fields = Path(f"/proc/{pid}/task/{pid}/schedstat").read_text().split()
    return int(fields[0]) / 1e9


def rate() -> None:
    """Measure the daemon's CPU time by windows a second, without scrapes and with one every 15 s.

    The windows have 300 protocols that hold. The periodic scan is off, because its cost depends on
    the machine's page tables, and so is the governor, which would detach programs at such rates.
    """
    keys = [variant(line, n) for line in HOLDING for n in range(100)]
    with (
        rehearsing(RMAPD_SCAN_SECONDS="0", RMAPD_FIDELITY="full") as (process, url),
        contextlib.closing(WindowRecorder.find()) as recorder,
    ):
        for n, key in enumerate(keys):
            recorder.cast.update(n.to_bytes(4, "little"), key)
        assert len(keys) <= CAST_ROWS
        recorder.many.run(0, len(keys))
        recorder.many.run(A_RUN, len(keys))
        time.sleep(12)
        checker = checker_of(process.pid)
        print("| windows a second | scraped | daemon's CPU, % of one core | of that the checker |")
        for scraped in (False, True):
            for wanted in RATES:
                done, spent, judged = _at_rate(
                    recorder, checker, url, wanted, len(keys), scraped=scraped
                )
                print(
                    f"| {done:,.0f} | {'every 15 s' if scraped else 'never'} "
                    f"| {spent:.3f} | {judged:.3f} |",
                    flush=True,
                )
        print(
            f"windows counted: {sum_of(url, 'rmapd_windows_total'):,.0f}; "
            f"peak RSS {sample(url, 'rmapd_peak_rss_bytes') / 1e6:.0f} MB"
        )


HOLDING = (
    "vma_expand[file anon mmap:w]  {} i_mmap↓w anon↓w anon↑w i_mmap↑w",
    "unlink_anon_vmas[anon]  {} anon↓w anon- anon↑w",
    "__anon_vma_prepare[mmap:r]  {} anon↓w anon+ anon↑w",
)


def _at_rate(
    recorder: WindowRecorder, pid: int, url: str, wanted: int, rows: int, *, scraped: bool
) -> tuple[float, float, float]:
    """Return (windows a second, CPU % of the daemon, CPU % of its checker)."""
    begin, spent, judged, recorded = time.monotonic(), cpu(pid), own(pid), 0
    next_scrape = begin + 5
    while (now := time.monotonic()) - begin < SECONDS:
        while recorded < wanted * (now - begin):
            recorder.many.run(recorded, rows)
            recorded += A_RUN
        if scraped and now >= next_scrape:
            fetch(f"{url}/metrics")
            next_scrape += 15
        time.sleep(0.01)
    seconds = time.monotonic() - begin
    return (
        recorded / seconds,
        100 * (cpu(pid) - spent) / seconds,
        100 * (own(pid) - judged) / seconds,
    )


def sum_of(url: str, metric: str) -> float:
    return sum(
        float(line.split()[1])
        for line in fetch(f"{url}/metrics")[1].splitlines()
        if line.startswith(metric + "{")
    )


def start() -> None:
    """Measure the time to /-/ready, and the CPU time of all its processes until it ends."""
    with tempfile.TemporaryDirectory() as folder:
        for n in range(6):
            before, begin = os.times(), time.monotonic()
            with daemon(env={"RMAPD_CACHE": f"{folder}/cache"}):
                took = time.monotonic() - begin
            after, load = os.times(), os.getloadavg()[0]
            spent = (
                after.children_user
                + after.children_system
                - before.children_user
                - before.children_system
            )
            name = "from the cache" if n else "compiled"
            print(
                f"{name}: gate open after {took:.2f} s at a load of {load:.1f}, "
                f"CPU of all processes {spent:.2f} s"
            )


PARTS = {"truth": truth, "rate": rate, "start": start}


def main(wanted: Sequence[str]) -> None:
    version = subprocess.run(
        [RMAPD, "--version"], capture_output=True, text=True, check=True
    ).stdout.strip()
    print(f"{version}, kernel {os.uname().release}, {os.cpu_count()} CPUs")
    for name in wanted or PARTS:
        load = " ".join(f"{one:.1f}" for one in os.getloadavg())
        print(f"\n## {name} (load averages {load})", flush=True)
        PARTS[name]()


if __name__ == "__main__":
    main(sys.argv[1:])
