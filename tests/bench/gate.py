"""Measure the way from the start to the open gate, and what the machine feels of it.

Works on the running kernel: natively or in a guest. Nothing is asserted.

usage: python -m tests.bench.gate OUT.json [--rounds N] [--how fentry|kprobe] [--no-load]   (root)
       python -m tests.bench.gate --table FILE.json...

In each round a process attaches everything step by step and detaches it, and another opens a
session as `rmapd run` does. Meanwhile one more process maps and unmaps a page, and notes its
longest stalls. --no-load: not so, because hooking functions under load kills emulated kernels.
"""

from __future__ import annotations

import argparse
import json
import mmap
import multiprocessing
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

import msgspec

from tracer.attach import bcc_headers, loader, resolver
from tracer.attach.attached import AttachedProgram, attach_all, close_all, detach_all
from tracer.attach.compile_cache import CompileCache
from tracer.attach.plan import HookState, PlannedHook
from tracer.bpf.programs import Refused
from tracer.config import Config
from tracer.config_maps import Maps
from tracer.daemon.probes import probes_folder, read_layouts, running_kernel
from tracer.daemon.session import open_session
from tracer.kernel.btf import STRUCT
from tracer.kernel.running import Kernel

STEPS = {
    "kernel": "read the kernel's types and symbols",
    "plan": "resolve the plan",
    "compile": "compile",
    "cached": "the same from the cache",
    "one_by_one": "load the programs one by one",
    "load": "four at a time",
    "attach": "attach them",
    "detach": "detach them",
}
_STALL_NS = 200_000
"""A longer operation of the mmap loop is noted."""

Seconds = dict[str, float]


class _Stalls:
    """A process that maps and unmaps a page without end, and notes its longest operation."""

    def __init__(self, *, load: bool) -> None:
        self._process: multiprocessing.process.BaseProcess | None = None
        if load:
            self._ours, theirs = multiprocessing.Pipe()
            self._process = multiprocessing.Process(target=_map_and_unmap, args=(theirs,))
            self._process.start()
            self._ours.recv()

    def longest_ms(self) -> float | None:
        """Return the longest operation since the last call; None where nothing runs."""
        if self._process is None:
            return None
        self._ours.send(None)
        return float(self._ours.recv())

    def close(self) -> None:
        if self._process:
            self._process.kill()
            self._process.join()


def _map_and_unmap(parent: Connection) -> None:
    os.nice(-10)
    parent.send(None)
    longest, before = 0, time.perf_counter_ns()
    while True:
        mmap.mmap(-1, 4096).close()
        now = time.perf_counter_ns()
        longest = max(longest, now - before)
        before = now
        if longest > _STALL_NS and parent.poll():
            parent.recv()
            parent.send(longest / 1e6)
            longest, before = 0, time.perf_counter_ns()


@contextmanager
def _timed(seconds: Seconds, name: str) -> Iterator[None]:
    begin = time.monotonic()
    yield
    seconds[name] = time.monotonic() - begin


def _kernel(how: str) -> Kernel:
    kernel = running_kernel()
    if how:
        kernel.__dict__.update(preempts=how == "kprobe", kprobe_refused="")
    return kernel


def _by_steps(how: str, longest_ms: Callable[[], float | None]) -> dict[str, object]:
    """Do each step by itself, as tracer.attach does it."""
    seconds: Seconds = {}
    folder = probes_folder()
    layouts = read_layouts(folder)
    with _timed(seconds, "kernel"):
        kernel = _kernel(how)
        kernel.types.find("page", STRUCT)
        kernel.clones("schedule")
    with _timed(seconds, "plan"):
        plan = resolver.make_plan(kernel, [folder])
    usable = [one for one in plan.probe_objects if one.usable]
    sizes = Maps().sizes()
    with tempfile.TemporaryDirectory() as scratch:
        bcc_headers.write(Path(scratch), kernel)
        build = loader.BuildEnvironment(
            kernel,
            layouts.constants,
            folder / "include",
            sizes,
            CompileCache(Path(scratch) / "cache"),
        )
        for step in ("compile", "cached"):
            with _timed(seconds, step):
                compiled = loader.compile_probe_objects(plan.header, usable, build, scratch)
            if step == "compile":
                for table in compiled.maps.values():
                    table.close()
    programs = loader.ProgramLoader(compiled.code, plan.names, build)
    hooks = [one for part in usable for one in part.hooks if one.state is HookState.READY]
    with _timed(seconds, "one_by_one"):
        hooked = _loaded(programs, hooks)
    close_all(*hooked)
    with _timed(seconds, "load"):
        ahead = loader.LoadedAhead(
            programs, (point for hook in hooks for point in hook.methods[0].points)
        )
        hooked = _loaded(ahead, hooks)
        ahead.close()
    longest_ms()
    with _timed(seconds, "attach"):
        for points in hooked:
            try:
                attach_all(points)
            except OSError as error:
                print(f"{points[0].symbol}: {error}", file=sys.stderr)
    attach_stall = longest_ms()
    with _timed(seconds, "detach"):
        detach_all(*reversed(hooked))
    return {
        "seconds": seconds,
        "programs": sum(map(len, hooked)),
        "stall_ms": {"attach": attach_stall, "detach": longest_ms()},
    }


def _loaded(programs: loader.Loads, hooks: Iterable[PlannedHook]) -> list[list[AttachedProgram]]:
    """Load the programs of the first method of each hook; one that is refused is told."""
    hooked = []
    for hook in hooks:
        points: list[AttachedProgram] = []
        try:
            for point in hook.methods[0].points:
                points.append(AttachedProgram(programs.load(point), point.how, point.symbol))
        except Refused as error:
            print(f"{hook.hook.name}: {error}", file=sys.stderr)
            close_all(points)
            continue
        hooked.append(points)
    return hooked


def _session(how: str, cache: str) -> None:
    """Open a session as `rmapd run` does, and print what that took."""
    begin = time.monotonic()
    config = msgspec.structs.replace(
        Config(), lock_file="/tmp/rmapd-gate.lock", cache=cache, drop_privileges=False
    )
    with open_session(config, _kernel(how)):
        gate = time.monotonic() - begin
        attached = resource.getrusage(resource.RUSAGE_CHILDREN)
        begin = time.monotonic()
    own = resource.getrusage(resource.RUSAGE_SELF)
    print(
        json.dumps(
            {
                "gate": gate,
                "close": time.monotonic() - begin,
                "peak_mb": attached.ru_maxrss * 1024 / 1e6,
                "cpu": sum((attached.ru_utime, attached.ru_stime, own.ru_utime, own.ru_stime)),
            }
        )
    )


def measure(rounds: int, how: str, *, load: bool) -> dict[str, object]:
    """Return the steps and the sessions of each round; the first session compiles."""
    steps, sessions, quiet = [], [], []
    stalls = _Stalls(load=load)
    try:
        with tempfile.TemporaryDirectory() as cache:
            for n in range(rounds):
                stalls.longest_ms()
                time.sleep(2)
                quiet.append(stalls.longest_ms())
                steps.append(_by_steps(how, stalls.longest_ms))
                print(f"round {n + 1}: {steps[-1]}", flush=True)
                command = [sys.executable, "-m", "tests.bench.gate", "--session", cache]
                command += ["--how", how] if how else []
                stalls.longest_ms()
                answer = subprocess.run(command, capture_output=True, text=True, check=True)
                took = json.loads(answer.stdout)
                sessions.append(took | {"stall_ms": stalls.longest_ms()})
                print(f"round {n + 1}: {sessions[-1]}", flush=True)
    finally:
        stalls.close()
    return {
        "kernel": os.uname().release,
        "cpus": os.cpu_count(),
        "how": how,
        "steps": steps,
        "sessions": sessions,
        "quiet_stall_ms": quiet,
    }


def table(found: list[dict[str, object]]) -> str:
    """Return Markdown: a row of each measurement, with the medians of its rounds."""

    def median(values: list[float | None]) -> str:
        known = [value for value in values if value is not None]
        return f"{statistics.median(known):.2f}" if known else ""

    head = ["kernel", "programs", *STEPS.values(), "gate, compiled", "from the cache", "peak, MB"]
    rows = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for one in found:
        steps, sessions = one["steps"], one["sessions"]
        assert isinstance(steps, list)
        assert isinstance(sessions, list)
        later = [each["gate"] for each in sessions[1:]]
        cells = [
            f"{one['kernel']}{' by ' * bool(one['how'])}{one['how']}",
            str(steps[0]["programs"]),
            *(median([each["seconds"][name] for each in steps]) for name in STEPS),
            f"{sessions[0]['gate']:.2f}",
            median(later),
            f"{max(each['peak_mb'] for each in sessions):.0f}",
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.gate")
    parser.add_argument("out", nargs="?", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--how", choices=["fentry", "kprobe"], default="")
    parser.add_argument("--no-load", action="store_true")
    parser.add_argument("--session", help=argparse.SUPPRESS)
    parser.add_argument("--table", nargs="+", type=Path)
    options = parser.parse_args()
    if options.table:
        print(table([json.loads(path.read_text()) for path in options.table]))
    elif options.session:
        _session(options.how, options.session)
    elif options.out:
        found = measure(options.rounds, options.how, load=not options.no_load)
        options.out.write_text(json.dumps(found, indent=1))
        print(table([found]))
    else:
        parser.error("OUT.json or --table")


if __name__ == "__main__":
    main()
