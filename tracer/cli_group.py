"""The group of rmapd's commands: it turns errors into exit codes."""

from __future__ import annotations

import sys
from typing import Any

import click

from tracer import logs, outcome
from tracer.cli_help import CommandList
from tracer.errors import DEFECT


class Commands(CommandList):
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
