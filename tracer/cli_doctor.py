"""`rmapd doctor`: what the installation and this kernel allow, and why not the rest."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tracer import screen
from tracer.cli_common import (
    LogChoice,
    config_option,
    config_path,
    format_option,
    load_settings,
    log_options,
    require_privilege,
    start_log,
)
from tracer.cli_help import Command
from tracer.errors import RmapdError
from tracer.printable import json_text

if TYPE_CHECKING:
    from tracer.daemon.doctor import KernelReport


@click.command(
    cls=Command,
    short_help="Show what can be checked on this kernel, and why not more.",
    examples=(
        ("What can be checked here; the first thing to run", "sudo rmapd doctor"),
        ("Each hook, with the reason why it is not attached", "sudo rmapd doctor -v"),
        ("For a program", "sudo rmapd doctor --format json"),
    ),
)
@config_option
@format_option("text", "json")
@click.option("-v", "--verbose", is_flag=True, help="List every hook, with its own reason.")
@log_options(steps=False)
def doctor(config: Path | None, form: str, verbose: bool, log: LogChoice) -> None:
    """Show what can be checked on this kernel, why not more, and whether all is installed.

    It attaches every probe for a moment to find out. Colours are for a terminal, unless NO_COLOR is
    set.
    """
    from tracer.daemon import doctor_text, installation

    checks = installation.examine(
        installation.Host(),
        partial(load_settings, config, None),
        str(config_path(config) or "no file: every default"),
    )
    page = doctor_text.Page(screen.columns(sys.stdout), colour=screen.shows_colour(sys.stdout))
    with ExitStack() as session:
        try:
            found = session.enter_context(_examined(config, log))
        except Exception as error:
            if form == "text":
                click.echo(page.failed(checks, error), nl=False, color=True)
            elif isinstance(error, RmapdError):
                given = {"what": error.what, "why": error.why, "hint": error.hint}
                parts = {"installation": installation.as_json(checks), "error": given}
                click.echo(json_text(parts))
            raise
        if form == "json":
            head = {"verdict": doctor_text.verdict(checks, found).text}
            parts = {"installation": installation.as_json(checks), **found.as_json()}
            click.echo(json_text(head | parts))
        else:
            click.echo(page.text(checks, found, verbose=verbose), nl=False, color=True)


@contextmanager
def _examined(config: Path | None, log: LogChoice) -> Iterator[KernelReport]:
    """Yield what doctor reports; then detach the probes, in the background where that takes long.

    The gate is open until then.
    """
    settings = start_log(load_settings(config, None, log))
    require_privilege()
    from tracer.daemon.doctor import examine
    from tracer.daemon.probes import running_kernel
    from tracer.daemon.session import open_session
    from tracer.process.children import go_on_in_background

    with open_session(settings, running_kernel()) as session:
        yield examine(session)
        session.close_gate()
        if session.probes.kernel.detaches_slowly:
            go_on_in_background()
