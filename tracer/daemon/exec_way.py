"""Which way `rmapd exec` takes: the daemon that runs, or a session of its own."""

from __future__ import annotations

from pathlib import Path

from tracer.daemon import exec_beside, exec_supervisor, span_client
from tracer.errors import Temporary
from tracer.process.lock_and_signals import hold_lock_file
from tracer.supervision.exec_request import ExecRequest

WAYS = ("auto", "only", "never")
_NO_SOCKET = "offers no socket to exec: it starts or ends, or it is an older rmapd or no daemon"


def run(request: ExecRequest, way: str, fidelity: str | None, given: Path | None) -> int:
    """Run the request and return the exit code (COMMANDS.md). Raises RmapdError.

    way: of WAYS. auto: use the daemon, or attach where none runs; only: use the daemon; never:
    attach. fidelity, given: the level and the configuration that the command line names.
    """
    lock_file = Path(request.config.lock_file)
    connection = None if way == "never" else span_client.connect(lock_file)
    if connection:
        return exec_beside.run(request, connection, fidelity, given=given)
    if way == "only":
        hint = "rmapd run, or --daemon auto"
        raise Temporary("no daemon runs", why=f"none holds {lock_file}", hint=hint)
    with hold_lock_file(lock_file, more="" if way == "never" else _NO_SOCKET):
        return exec_supervisor.run(request)
