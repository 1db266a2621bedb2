"""What the commands share: options, and the group that turns errors into exit codes."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from tracer import config as configuration
from tracer import logs, outcome
from tracer.errors import DEFECT

config_option = click.option(
    "--config", type=click.Path(path_type=Path), envvar="RMAPD_CONFIG", help="TOML configuration."
)
fidelity_option = click.option(
    "--fidelity", type=click.Choice(configuration.FIDELITIES), help="How much to probe."
)
require_option = click.option(
    "--require", help="Invariants that must be checkable, e.g. M1,L2; else exit 4."
)
store_option = click.option(
    "--store",
    metavar="FILE",
    help=f"SQLite file with the findings (default {configuration.STORE}; '': none).",
)
Decorator = Callable[[Callable[..., None]], Callable[..., None]]


def file_option(*names: str, help: str, metavar: str = "FILE", required: bool = False) -> Decorator:
    """Make an option that takes a file."""
    kind: Any = click.Path(path_type=Path, dir_okay=False)
    return click.option(*names, type=kind, metavar=metavar, required=required, help=help)


def format_option(*forms: str) -> Decorator:
    """Make the option --format; the first form is the default."""
    kind = click.Choice(forms)
    return click.option("--format", "form", type=kind, default=forms[0], show_default=True)


def seconds_option(name: str, *, help: str, default: float | None = None) -> Decorator:
    """Make an option that takes a time in seconds."""
    kind = click.FloatRange(min=0)
    shown = default is not None
    return click.option(
        name, type=kind, metavar="SECONDS", default=default, show_default=shown, help=help
    )


class Commands(click.Group):
    """Turns every failure into one message and its exit code (tracer.errors).

    An unexpected exception is a defect: its traceback is logged.
    """

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run the command line; also report a full disk when click prints help and version."""
        try:
            return super().main(*args, **kwargs)
        except outcome.StdoutError as error:
            sys.exit(outcome.exit_code_of(error))

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command and exit with its code, or with that of a failed thread."""
        with logs.to_stderr(), outcome.interruptible(), logs.ThreadFailures() as threads:
            code = 0
            try:
                super().invoke(ctx)
            except click.exceptions.Exit as ended:
                code = ended.exit_code
            except click.ClickException:
                raise
            except BaseException as error:
                code = outcome.exit_code_of(error)
        ctx.exit(DEFECT if threads.failed else code)
