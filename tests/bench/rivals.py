"""Rivals at equal coverage: tracers with the hooks of rmapd at full fidelity.

Each sends an event per hit, as tracers usually do.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

from tests.bench.ring_rival import RingRival
from tests.bench.variants import Maker, Nothing
from tracer.attach import plan, resolver
from tracer.daemon.probes import probes_folder
from tracer.kernel.running import Kernel

_TRACING = Path("/sys/kernel/tracing")
_PATIENCE_SECONDS = 900
_SETTLE_SECONDS = 2.0
_IDLE_SHARE = 0.1
"""perf and trace-cmd print nothing when they are ready: they use less of a CPU than this then."""
_NOT_ATTACHED = ("run", "iter")


def points(kernel: Kernel) -> list[tuple[str, str]]:
    """Return each (how, symbol) that rmapd attaches at full fidelity."""
    planned = resolver.make_plan(kernel, [probes_folder()])
    methods = (
        hook.methods[0]
        for probe_object in planned.probe_objects
        for hook in probe_object.hooks
        if hook.state is plan.HookState.READY
    )
    return list(
        dict.fromkeys(
            (point.how, point.symbol)
            for method in methods
            for point in method.points
            if point.how not in _NOT_ATTACHED
        )
    )


class Tracer(Nothing):
    """A tracer in a separate process that is started for each run.

    The size of its output is counted; the output is discarded.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        ready: str,
        lost: str,
        scratch: Path,
        undo: Callable[[], None],
    ) -> None:
        self.name, self._command, self._ready, self._lost, self._undo = (
            name,
            list(command),
            ready,
            lost,
            undo,
        )
        self._scratch, self._leader = scratch, 0
        self._bytes, self._losses, self._ready_seconds = 0, 0, list[float]()

    @contextlib.contextmanager
    def on(self) -> Iterator[Nothing]:
        with (
            tempfile.TemporaryDirectory(dir=self._scratch) as folder,
            open(f"{folder}/out", "w+b") as out,
        ):
            command = [word.replace("OUT", f"{folder}/events") for word in self._command]
            started = time.monotonic()
            tracer = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
                cwd=folder,
            )
            self._leader = tracer.pid
            try:
                self._wait(tracer, out)
                self._ready_seconds.append(time.monotonic() - started)
                yield self
            finally:
                tracer.send_signal(signal.SIGINT)
                try:
                    tracer.wait(_PATIENCE_SECONDS)
                except subprocess.TimeoutExpired:
                    tracer.kill()
                    tracer.wait()
                self._count(Path(folder))

    def _wait(self, tracer: subprocess.Popen[bytes], out: IO[bytes]) -> None:
        end = time.monotonic() + _PATIENCE_SECONDS
        while self._ready and self._ready.encode() not in os.pread(out.fileno(), 1 << 16, 0):
            if tracer.poll() is not None or time.monotonic() > end:
                raise RuntimeError(
                    f"{self.name} did not start: "
                    f"{os.pread(out.fileno(), 500, 0).decode(errors='replace')}"
                )
            time.sleep(0.05)
        used = -1.0
        while (
            not self._ready
            and (now := self.cpu_seconds()) > used + _IDLE_SHARE * _SETTLE_SECONDS
            and time.monotonic() < end
        ):
            used = now
            time.sleep(_SETTLE_SECONDS)
        time.sleep(_SETTLE_SECONDS)
        if tracer.poll() is not None:
            raise RuntimeError(
                f"{self.name} ended: {os.pread(out.fileno(), 500, 0).decode(errors='replace')}"
            )

    def _count(self, folder: Path) -> None:
        self._bytes += sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        for path in (folder / "out", folder / "events"):
            if path.exists() and self._lost:
                with open(path, errors="replace") as lines:
                    self._losses += sum(
                        int(found) for line in lines for found in re.findall(self._lost, line)
                    )

    def cpu_seconds(self) -> float:
        return sum(
            _cpu_seconds(int(path.name))
            for path in Path("/proc").iterdir()
            if path.name.isdigit() and _session_of(path) == self._leader
        )

    def facts(self) -> Mapping[str, object]:
        return {
            "bytes": self._bytes,
            "lost": self._losses,
            "ready_seconds": [round(s, 1) for s in self._ready_seconds],
        }

    def close(self) -> None:
        self._undo()


def _session_of(process: Path) -> int:
    try:
        return int((process / "stat").read_text().rpartition(")")[2].split()[3])
    except OSError:
        return 0


def _cpu_seconds(pid: int) -> float:
    """Return the CPU time of a process by its clock (clock_getcpuclockid(3)), in seconds."""
    try:
        return time.clock_gettime(~pid << 3 | 2)
    except OSError:
        return 0.0


def _bpftrace(kernel: Kernel, scratch: Path) -> Tracer | None:
    if not shutil.which("bpftrace"):
        return None
    # bpftrace accepts no kfunc with more than six arguments
    kinds = {"fentry": "kprobe", "fexit": "kretprobe"}
    lines = ['BEGIN { printf("ready\\n"); }']
    for how, symbol in points(kernel):
        where = (
            next((f"tracepoint:{name}" for name in _trace_events(symbol)), "")
            if how == "raw_tp"
            else f"{kinds.get(how, how)}:{symbol}"
        )
        argument = {"kprobe": "arg0", "kretprobe": "retval"}.get(kinds.get(how, how), "0")
        if where:
            lines.append(
                f'{where} {{ printf("%llu %d %s {symbol} %llx\\n", '
                f"nsecs, tid, comm, {argument}); }}"
            )
    script = scratch / "rival.bt"
    script.write_text("\n".join(lines) + "\n")
    limits = ["env", "BPFTRACE_MAX_PROBES=4096", "BPFTRACE_MAX_BPF_PROGS=4096"]
    return Tracer(
        "bpftrace",
        [*limits, "bpftrace", str(script)],
        "ready",
        r"Lost (\d+) events",
        scratch,
        lambda: None,
    )


def _events(kernel: Kernel, group: str) -> tuple[list[str], Callable[[], None]]:
    """Return the names of trace events for all points, and a function that removes made ones."""
    names, made = [], []
    for how, symbol in points(kernel):
        if how == "raw_tp":
            names += _trace_events(symbol)
            continue
        at_return = how in ("kretprobe", "fexit")
        name = f"{symbol.replace('.', '_')}_{'return' if at_return else 'entry'}"
        made.append(
            (
                f"{'r' if at_return else 'p'}:{group}/{name} {symbol}"
                + ("" if at_return else " a=%di b=%si c=%dx"),
                name,
            )
        )
    kept = [name for line, name in made if _kprobe_event(line)]

    def undo() -> None:
        for name in kept:
            _kprobe_event(f"-:{group}/{name}")

    return names + [f"{group}:{name}" for name in kept], undo


def _trace_events(name: str) -> list[str]:
    """Return the trace events, CATEGORY:NAME, of a raw tracepoint."""
    return [f"{path.parent.name}:{name}" for path in _TRACING.glob(f"events/*/{name}")]


def _kprobe_event(line: str) -> bool:
    try:
        events = os.open(_TRACING / "kprobe_events", os.O_WRONLY | os.O_APPEND)
        try:
            return os.write(events, f"{line}\n".encode()) > 0
        finally:
            os.close(events)
    except OSError:
        return False


def _perf(kernel: Kernel, scratch: Path) -> Tracer | None:
    if not shutil.which("perf"):
        return None
    names, undo = _events(kernel, "rival_perf")
    return Tracer(
        "perf",
        ["perf", "trace", "-a", "-e", ",".join(names), "-o", "OUT"],
        "",
        r"LOST (\d+) events",
        scratch,
        undo,
    )


def _trace_cmd(kernel: Kernel, scratch: Path) -> Tracer | None:
    if not shutil.which("trace-cmd"):
        return None
    names, undo = _events(kernel, "rival_trace_cmd")
    flags = [word for name in names for word in ("-e", name)]
    return Tracer(
        "trace-cmd",
        ["trace-cmd", "record", "-o", "OUT", *flags],
        "",
        r"overrun: (\d+)",
        scratch,
        undo,
    )


_PROCESSES = {"bpftrace": _bpftrace, "perf": _perf, "trace-cmd": _trace_cmd}
RIVALS = ("bcc", *_PROCESSES)


def made(name: str, maker: Maker) -> Nothing | None:
    """Return a rival by its name; None if it is not installed."""
    if not (_TRACING / "events").exists():
        subprocess.run(["mount", "-t", "tracefs", "tracefs", str(_TRACING)], check=False)
    if name == "bcc":
        loaded = maker.replaced("bcc", None, RingRival.PROGRAM)
        return RingRival(loaded) if loaded else None
    return _PROCESSES[name](maker.kernel, maker.scratch)
