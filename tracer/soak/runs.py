"""The runs of a soak: each is `rmapd exec --until-violation` over the runner, as a process.

A run is another process because a checker may die, and because `exec` already knows what is to be
done then, with a daemon or without. This module starts it, passes signals on, reads its report, and
decides what the run was.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import math
import os
import platform
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

import tracer
from tracer import atomic_file, progress
from tracer.errors import VIOLATED, RmapdError, Temporary
from tracer.report.soak import FORMAT, SoakFinding, SoakLimits, SoakResult, SoakRun
from tracer.results.json_form import iso
from tracer.soak import limits as limits_module
from tracer.soak import loads as loads_module
from tracer.soak.limits import Limits
from tracer.soak.loads import Load, Part
from tracer.soak.plan import Plan, Status, divided
from tracer.supervision import supervisor
from tracer.supervision.command import CHECKER_DIED, FAILED

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_GRACE_SECONDS = 75
"""From the signal that ends a load to SIGKILL: longer than the runner waits for its death."""
_PATIENCE_SECONDS = 300.0
"""How long exec may take from a signal to its end before it gets SIGKILL: it settles first."""


@dataclass(frozen=True)
class Order:
    """What the command line asks for. quiet: no progress. options: further ones of exec."""

    loads: tuple[str, ...]
    seconds: float | None
    repeat: int = 1
    out: Path | None = None
    memory: str | None = None
    processes: int | None = None
    selftests: Path | None = None
    seed: int = 0
    quiet: bool = False
    options: tuple[str, ...] = ()


def soak(
    order: Order, show: Callable[[SoakResult, SoakRun | None], None]
) -> tuple[SoakResult, int]:
    """Run the order; return the result and the exit code (COMMANDS.md). Raises RmapdError.

    show: is given the result at the beginning, and after each run with that run, before anything of
    the run is written or taken back: that may fail.
    """
    loads = loads_module.named(order.loads)
    left_out = {
        f"{name}.{part.name}": why
        for name, load in loads.items()
        for part in load.part
        if (why := loads_module.lacking(part, order.selftests))
    }
    able = {
        name: (load, parts)
        for name, load in loads.items()
        if (parts := tuple(p for p in load.part if f"{name}.{p.name}" not in left_out))
    }
    if unable := [name for name in loads if name not in able]:
        why = "; ".join(
            f"{name}: {why}" for name, why in left_out.items() if name.split(".")[0] in unable
        )
        raise Temporary(f"nothing of the load {', '.join(unable)} can run here", why=why)
    if order.out:
        atomic_file.writable(order.out, "the result")
    signals = supervisor.Signals(*SIGNALS)
    limits = limits_module.planned(order.memory, order.processes, f"rmapd-soak-{os.getpid()}")
    settings, before = limits_module.settings_of([load for load, _ in able.values()], limits)
    with contextlib.ExitStack() as after:
        after.callback(limits_module.clean, limits.cgroup, before)
        folder = after.enter_context(tempfile.TemporaryDirectory(prefix="rmapd-soak-"))
        os.chmod(folder, 0o711)  # noqa: S103 (another user walks to the load's tmpfs)
        one = _Soak(order, able, left_out, limits, settings, before, Path(folder), signals)
        return one.all_runs(show)


class _Soak:
    def __init__(
        self,
        order: Order,
        able: Mapping[str, tuple[Load, tuple[Part, ...]]],
        left_out: Mapping[str, str],
        limits: Limits,
        settings: Mapping[str, str],
        before: Mapping[str, str],
        folder: Path,
        signals: supervisor.Signals,
    ) -> None:
        self._order, self._limits, self._signals = order, limits, signals
        self._settings, self._before, self._folder = settings, before, folder
        self._plans = tuple(divided(able, limits.memory_bytes))
        self._stopped = 0
        self._result = SoakResult(
            FORMAT,
            tracer.__version__,
            os.uname().release,
            platform.node(),
            list(able),
            order.repeat,
            order.seconds,
            order.seed,
            SoakLimits(
                limits.memory_bytes,
                sum(plan.tmpfs_bytes for plan in self._plans),
                limits.processes,
                limits.how,
                limits.why,
            ),
            _machine(),
            _versions(),
            dict(left_out),
        )

    def all_runs(
        self, show: Callable[[SoakResult, SoakRun | None], None]
    ) -> tuple[SoakResult, int]:
        """Run as often as asked; stop at a signal, and where a load did not even begin."""
        show(self._result, None)
        for number in range(1, self._order.repeat + 1):
            self._put(SoakRun(number, "unfinished", iso(time.time())))
            self._write()
            run, began = self._run(number)
            self._put(run)
            show(self._result, run)
            self._write(run.report)
            if self._stopped or not began:
                break
        return self._result, exit_code(self._result, self._stopped)

    def _put(self, run: SoakRun) -> None:
        """Put the run into the result, in the place of its beginning."""
        runs = [one for one in self._result.runs if one.number != run.number]
        self._result = msgspec.structs.replace(self._result, runs=[*runs, run])

    def _write(self, report: str = "") -> None:
        """Write the result. report: the file for the last run's report; empty: it is not kept."""
        if report:
            text = (self._folder / "report.json").read_text()
            atomic_file.write(Path(report), text, "the report of a run")
        if self._order.out:
            text = json.dumps(self._result.as_json(), indent=1) + "\n"
            atomic_file.write(self._order.out, text, "the result")

    def _run(self, number: int) -> tuple[SoakRun, bool]:
        """Run once; return the run, and whether its load began, or was stopped for a violation."""
        started = iso(time.time())
        work = self._folder / "work"
        work.mkdir(exist_ok=True)
        status, report = self._folder / "status.json", self._folder / "report.json"
        for path in (status, report):
            path.unlink(missing_ok=True)
        plan = Plan(
            self._plans,
            self._limits,
            self._order.seconds,
            self._order.seed + number,
            str(work),
            str(status),
            self._settings,
            self._before,
            os.getpid(),
            str(self._order.selftests.resolve()) if self._order.selftests else "",
        )
        (self._folder / "plan.json").write_bytes(msgspec.json.encode(plan))
        code, errors = self._exec(report, number)
        limits_module.clean(self._limits.cgroup, self._before, remove=False)
        known = json.loads(report.read_text()) if report.exists() else None
        ran = msgspec.json.decode(status.read_bytes(), type=Status) if status.exists() else None
        run = classified(number, started, code, known, ran, errors)
        out = self._order.out
        wrong = run.outcome in ("violated", "lost") or run.checks.get("suspect")
        if known and out and out.is_file() and wrong:
            kept = out.with_name(f"{out.name.removesuffix('.json')}.{number}.json")
            run = msgspec.structs.replace(run, report=str(kept))
        return run, ran is not None or run.outcome == "violated"

    def _exec(self, report: Path, number: int) -> tuple[int, str]:
        """Run `rmapd exec` to its end; return its exit code and what it wrote to standard error."""
        runner = [sys.executable, "-P", "-m", "tracer.soak.runner", str(self._folder / "plan.json")]
        command = [sys.executable, "-P", "-m", "tracer", "exec", "--until-violation"]
        command += ["--report", str(report), "--format", "json", "--grace", str(_GRACE_SECONDS)]
        command += ["--output", str(self._folder / "output"), *self._order.options, "--", *runner]
        errors = self._folder / "errors"
        with (
            open(errors, "wb") as file,
            progress.on_terminal(self._order.quiet, animated=False) as line,
            subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=file,
                start_new_session=True,  # Ctrl-C is for us; exec gets the signal from us, once
            ) as process,
        ):
            ended, kill_at = os.pidfd_open(process.pid), float("inf")
            began = time.monotonic()
            line.phase(f"run {number} of {self._order.repeat}", total=self._order.seconds)
            while process.poll() is None:
                select.select([ended, self._signals.wake_fd], [], [], 1.0)
                line.done(time.monotonic() - began)
                for signal_number in self._signals.take():
                    if not self._stopped:
                        kill_at = time.monotonic() + _PATIENCE_SECONDS
                    self._stopped = signal_number
                    process.send_signal(signal_number)
                if time.monotonic() > kill_at:
                    process.kill()
            os.close(ended)
        output = self._folder / "output"
        said = errors.read_text(errors="replace") + (
            output.read_text(errors="replace") if output.exists() else ""
        )
        return process.returncode, said.strip()


def classified(
    number: int,
    started: str,
    code: int,
    report: Mapping[str, Any] | None,
    status: Status | None,
    errors: str,
) -> SoakRun:
    """Decide what a run was, from exec's exit code, report and errors, and the runner's status."""
    if report is None:
        why = f"rmapd exec ended with {code}: {_last_message(errors) or 'no message'}"
        return SoakRun(number, "lost", started, why=why, exit_code=code)
    invariants = report["invariants"]
    checks = {
        verdict: sum(one["checks"].get(verdict, 0) for one in invariants.values())
        for verdict in ("holds", "violated", "suspect", "unverifiable")
    }
    coverage = {name: one["coverage"] for name, one in invariants.items()}
    begin = status.started if status else _seconds(report.get("started", started))
    run = SoakRun(
        number,
        "lost",
        started,
        exit_code=code,
        daemon="daemon" in report,
        fidelity=report.get("fidelity", ""),
        lowered=_lowered(report),
        coverage=coverage,
        checks=checks,
        lost=report.get("lost", {}),
        violations=_findings(report, begin),
        parts=status.parts if status else [],
    )
    replace = msgspec.structs.replace
    source = report.get("exit", {}).get("source", "")
    if checks["violated"]:
        # What is found after the load's end, by the last audit, was there at the end.
        first = min(_first_violation(report, begin), status.seconds if status else math.inf)
        # exec stopped the load before it could write a status
        in_its_first_moment = status is None and code == VIOLATED
        at_once = first <= 0 or in_its_first_moment
        return replace(run, outcome="violated", seconds=max(0.0, first), at_once=at_once)
    if code == CHECKER_DIED or source in ("checker", "daemon"):
        return replace(run, why=report.get("ended_early", {}).get("reason", "the checker died"))
    if coverage and all(level == "none" for level in coverage.values()):
        return replace(run, why="no invariant can be checked on this kernel")
    if source == "required" or (source == "signal" and status is None):
        return replace(run, why=report["exit"]["reason"])
    idle = status is not None and status.end == "time" and not any(p.done for p in status.parts)
    if status is None or status.end == "failed" or idle:
        why = status.why if status else ""
        said = _last_message(errors)
        return replace(run, why=f"the load failed: {why or said or 'it did nothing'}")
    if status.end != "time":
        return replace(run, outcome="cut", seconds=status.seconds, why=status.why)
    return replace(run, outcome="silent", seconds=status.seconds)


def _last_message(errors: str) -> str:
    """Return rmapd's last message with all its lines, or else the last line."""
    lines = errors.splitlines()
    begins = [at for at, line in enumerate(lines) if line.startswith("rmapd: ")]
    last = lines[begins[-1] :] if begins else lines[-1:]
    return " ".join(map(str.strip, last)).removeprefix("rmapd: ")


def _lowered(report: Mapping[str, Any]) -> bool:
    """Return whether less was probed than could be, at some time of the run at least."""
    return (
        bool(report.get("daemon", {}).get("fidelity_lowered"))
        or report.get("fidelity") not in ("full", None)
        or any(report.get("fidelity_changes", {}).values())
    )


def _seconds(moment: str) -> float:
    return datetime.datetime.fromisoformat(moment).timestamp()


def _findings(report: Mapping[str, Any], begin: float) -> list[SoakFinding]:
    """Return what is violated. What a daemon knew from before the run has no time of its own."""
    return [
        SoakFinding(
            one["id"],
            one["invariant"],
            one["summary"],
            one["count"],
            round(max(0.0, _seconds(one["first_seen"]) - begin), 3),
        )
        for one in report["violations"]
        if one["verdict"] == "violated"
    ]


def _first_violation(report: Mapping[str, Any], begin: float) -> float:
    """Return the seconds from the load's start to the first violation of this run.

    A daemon may know a finding from before the run, and then `first_seen` is of another time: the
    timeline has the second in which it was met again. begin: seconds since the epoch.
    """
    opened = _seconds(report["started"]) if "started" in report else begin
    known = report.get("daemon", {}).get("known_before", [])
    rows = [one for one in report["violations"] if one["verdict"] == "violated"]
    seen = [_seconds(one["first_seen"]) for one in rows if one["id"] not in known]
    met: list[float] = []
    if len(seen) < len(rows) or not rows:
        timeline = report.get("timeline", {"seconds": [], "totals": {}})
        points = zip(timeline["seconds"], timeline["totals"].get("violated", []), strict=False)
        met = [opened + at for at, count in points if count]
    return min([*seen, *met], default=time.time()) - begin


def exit_code(result: SoakResult, stopped: int) -> int:
    """Return the code for `git bisect run`: 0 good, 3 bad, 125 skip, 128 + signal: stop."""
    if result.of("violated"):
        return VIOLATED
    if stopped:
        return 128 + stopped
    return 0 if len(result.of("silent")) == result.repeat else FAILED


def _machine() -> dict[str, int]:
    memory = limits_module.meminfo()
    nodes = len([*Path("/sys/devices/system/node").glob("node[0-9]*")])
    return {
        "cpus": os.cpu_count() or 1,
        "memory_bytes": memory["MemTotal"],
        "swap_bytes": memory.get("SwapTotal", 0),
        "nodes": max(1, nodes),
    }


def _versions() -> dict[str, str]:
    """Return the versions of what makes the load."""
    found = {"Python": platform.python_version()}
    for name in ("stress-ng", "cc"):
        if path := shutil.which(name):
            try:
                done = subprocess.run(
                    [path, "--version"], capture_output=True, text=True, check=False, timeout=20
                )
            except (OSError, subprocess.TimeoutExpired) as error:
                raise RmapdError(f"{path} does not tell its version", why=str(error)) from error
            found[name] = next(iter(done.stdout.splitlines()), "unknown")
    return found
