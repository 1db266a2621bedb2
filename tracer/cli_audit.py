"""`rmapd audit`: one pass of the state audit over all mms, now."""

from __future__ import annotations

from pathlib import Path

import click

from tracer import progress
from tracer.cli_common import (
    LogChoice,
    config_option,
    format_option,
    load_settings,
    log_options,
    require_privilege,
    start_log,
)
from tracer.cli_help import Command
from tracer.errors import VIOLATED
from tracer.outcome import print_text
from tracer.printable import json_text


@click.command(
    cls=Command,
    short_help="Look once at the memory maps of every process.",
    exits=(
        ("0", "nothing is wrong"),
        ("3", "something is wrong"),
        ("4", "nothing can be audited on this kernel"),
        ("2", "usage or configuration"),
    ),
    examples=(
        ("Every process, also beside a running daemon", "sudo rmapd audit"),
        ("One process, for a program", "sudo rmapd audit --pid 1 --format json"),
    ),
)
@config_option
@click.option(
    "--pid", type=click.IntRange(min=1), metavar="PID", help="Look at this process alone."
)
@format_option("text", "json")
@log_options(progress=True)
@click.pass_context
def audit(
    ctx: click.Context, config: Path | None, pid: int | None, form: str, log: LogChoice
) -> None:
    """Look once at the maple tree, the VMAs and the interval trees of every process.

    It hooks no function: it reads the kernel's memory, prints what it looked at and what is wrong,
    and ends.
    """
    settings = start_log(load_settings(config, None, log))
    require_privilege()
    from tracer.daemon.audit_once import audit_once
    from tracer.report.audit_text import as_json, as_text

    with progress.on_terminal(log.quiet, animated=False) as shown:  # attaching forks
        result = audit_once(settings, pid, shown)
    print_text(json_text(as_json(result)) + "\n" if form == "json" else as_text(result))
    if result.violations:
        ctx.exit(VIOLATED)
