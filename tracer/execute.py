"""`rmapd exec`: attach, run a command, let it settle, close the gate, judge, report."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import click

from tracer import report, whole
from tracer.config import Config
from tracer.errors import RmapdError
from tracer.junit import as_junit
from tracer.ktap import as_ktap
from tracer.pulse import Pulse
from tracer.session import Session, running_kernel
from tracer.verdict import Verdict

_FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def execute(config: Config, command: Sequence[str], out: Path | None, form: str, fail_on: str, junit: Path | None = None) -> int:
    """Run the command under a session; returns the exit code of the contract."""
    for path, what in ((out, "the report"), (junit, "the JUnit file")):
        if path is not None:
            whole.writable(path, what)
    pulse = Pulse()
    with Session(config, running_kernel()) as session:
        pulse.add(*session.totals())
        code = _run(session, command, pulse)
        session.settle(config.settle_seconds)
        session.stop()
        pulse.add(*session.totals(), last=True)
        snapshot = session.snapshot()
    found = report.as_json(snapshot, command, code) | {"timeline": pulse.as_json()}
    bad = {"violated": (Verdict.VIOLATED,), "suspect": (Verdict.VIOLATED, Verdict.SUSPECT)}.get(fail_on, ())
    fails = bad or (Verdict.VIOLATED,)  # --fail-on never is about the exit code: what is violated is not ok all the same
    files = [(out, json.dumps(found, indent=1) + "\n", "the report")] if out is not None else []
    files += [(junit, as_junit(snapshot, command, code, fails), "the JUnit file")] if junit is not None else []
    text = {"json": lambda: json.dumps(found, indent=1) + "\n", "ktap": lambda: as_ktap(snapshot, fails)}.get(form)
    try:
        click.echo(text() if text else report.as_text(snapshot, command, code), nl=False)
    finally:  # what cannot be written here may be written there
        for path, content, what in files:
            whole.write(path, content, what, hint="the same with --format json or ktap, to a file on another file system")
    return 3 if any(count for (_, verdict), count in snapshot.checks.items() if verdict in bad) else code


def _run(session: Session, command: Sequence[str], pulse: Pulse) -> int:
    """Start the command and judge while it runs; signals to us go to it."""
    ended = threading.Event()
    try:
        child = subprocess.Popen(command)
    except OSError as error:
        raise RmapdError(f"cannot run {command[0]}", why=error.strerror or str(error), hint="the command's full path") from error
    with _forwarding(child):

        def wait() -> None:
            child.wait()
            ended.set()

        waiter = threading.Thread(target=wait, name="rmapd-wait", daemon=True)
        waiter.start()
        while not ended.is_set():
            if session.step(0.2):
                pulse.add(*session.totals())
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


@contextlib.contextmanager
def _forwarding(child: subprocess.Popen[bytes]) -> Iterator[None]:
    """Pass our signals on, so that interrupting rmapd ends the command and still gives a report."""
    before = {number: signal.getsignal(number) for number in _FORWARDED}
    for number in _FORWARDED:
        signal.signal(number, lambda n, _frame: child.send_signal(n))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
