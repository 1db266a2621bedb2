"""The command `soak`: a packaged load under rmapd, and the time to the first violation."""

from __future__ import annotations

import contextlib
import math
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from tracer import outcome
from tracer.cli_common import (
    LogChoice,
    complete_ids,
    config_option,
    fidelity_option,
    file_option,
    format_option,
    load_settings,
    log_options,
    require_privilege,
    start_log,
    way_option,
)
from tracer.cli_help import Command
from tracer.errors import USAGE, VIOLATED, RmapdError
from tracer.printable import json_text, printable

ABORTS, SKIPS = 128, 125
"""Exit codes that `git bisect run` knows: stop bisecting; this commit cannot be tested."""
_UNITS = {"": 1, "s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(s|m|min|h|d|)")


class _Stop(click.UsageError):
    """A usage error that stops `git bisect run`."""

    exit_code = ABORTS


class Bisectable(Command):
    """A command whose usage errors stop `git bisect run`, which takes 2 for a bad commit."""

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        """Parse the command line."""
        with _stopping():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command, which may find more that is wrong in its options."""
        with _stopping():
            return super().invoke(ctx)


@contextlib.contextmanager
def _stopping() -> Iterator[None]:
    try:
        yield
    except click.UsageError as error:
        raise _Stop(error.format_message(), error.ctx) from error


def duration(text: str) -> float:
    """Return a time such as 90, 90s, 10m or 1.5h in seconds. Raises click.BadParameter."""
    found = _DURATION.fullmatch(text)
    seconds = float(found[1]) * _UNITS[found[2]] if found else math.nan
    if not 0 < seconds < math.inf:
        raise click.BadParameter(f"{text} is no time: a number with s, m, h or d, such as 10m.")
    return seconds


def _complete_loads(_ctx: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    from tracer.soak.loads import discover

    before, _, last = incomplete.rpartition(",")
    head = f"{before}," if before else ""
    return [head + name for name in discover() if name.startswith(last)]


@click.command(
    cls=Bisectable,
    short_help="Bring a load until something is violated, and measure the time.",
    exits=(
        ("0", "every run lasted its time, and nothing was violated (bisect: good)"),
        ("3", "something was violated (bisect: bad)"),
        ("125", "it could not be tested: not attached, not covered, no load (bisect: skip)"),
        ("128", "usage or configuration (bisect: stop)"),
        ("128+N", "signal N ended it, and nothing was violated (bisect: stop)"),
    ),
    examples=(
        ("Ten minutes of every load that needs no folder", "sudo rmapd soak"),
        (
            "How long does this kernel last? Five runs, an hour each at most",
            "sudo rmapd soak --for 1h --repeat 5 --load message --out before.json",
        ),
        ("What the loads do, and what this machine lacks for them", "rmapd soak --list"),
    ),
)
@click.option(
    "--for",
    "seconds",
    type=duration,
    metavar="TIME",
    help="How long each run lasts at most: 90s, 10m, 1h (default 10m).",
)
@click.option("--until-violation", is_flag=True, help="Run until something is violated.")
@click.option(
    "--load",
    metavar="NAME,...",
    shell_complete=_complete_loads,
    help="The loads, at the same time (default message,vma,rmap,thp).",
)
@click.option(
    "--repeat",
    type=click.IntRange(1, 10000),
    metavar="N",
    default=1,
    show_default=True,
    help="How many runs.",
)
@file_option("--out", help="Write the result as JSON to this file, for rmapd diff.")
@click.option(
    "--memory",
    metavar="SIZE",
    help="What the loads may use together: 2G, 500M or 50% of what is free (default 25%, 4G at"
    " most).",
)
@click.option(
    "--processes",
    type=click.IntRange(64, 100000),
    metavar="N",
    help="How many processes they may have (default: by the CPUs, 512 at most).",
)
@click.option(
    "--selftests",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    metavar="DIR",
    help="The built tests of the kernel, for --load selftests.",
)
@click.option(
    "--seed", type=click.IntRange(0), metavar="N", help="Of the loads' randomness (default: any)."
)
@click.option("--list", "listed", is_flag=True, help="List the loads, and what they lack here.")
@format_option("text", "json")
@way_option("Use the daemon that runs: auto, only or never, as in rmapd exec.")
@fidelity_option
@click.option(
    "--require",
    metavar="IDS",
    shell_complete=complete_ids,
    help="Exit with 125 where one of these invariants cannot be checked, such as M1,L2.",
)
@config_option
@log_options(progress=True)
@click.pass_context
def soak(
    ctx: click.Context,
    seconds: float | None,
    until_violation: bool,
    load: str | None,
    repeat: int,
    out: Path | None,
    memory: str | None,
    processes: int | None,
    selftests: Path | None,
    seed: int | None,
    listed: bool,
    form: str,
    way: str,
    fidelity: str | None,
    require: str | None,
    config: Path | None,
    log: LogChoice,
) -> None:
    """Bring a load, and measure the time to the first violation.

    A run ends at its first violation, or after its time. Loads are bounded in memory, processes and
    files, and nothing of them is left. The daemon that runs is used, or rmapd attaches by itself.
    """
    from tracer.soak.loads import DEFAULT
    from tracer.soak.loads import listed as list_text

    if listed:
        click.echo(list_text(selftests), nl=False)
        return
    if seconds is not None and until_violation:
        raise _Stop("--for and --until-violation exclude each other", ctx)
    from tracer.report import soak as texts
    from tracer.soak.runs import Order
    from tracer.soak.runs import soak as run_all

    seen = list[texts.SoakResult]()

    def show(result: texts.SoakResult, run: texts.SoakRun | None) -> None:
        """Print what is new; in JSON all is printed at the end."""
        seen[:] = [result]
        if form == "text":
            lines = texts.run_text(run) if run else texts.head_text(result)
            click.echo("\n".join(map(printable, lines)))

    options = ["--daemon", way]
    for name, value in (("--config", config), ("--fidelity", fidelity), ("--require", require)):
        options += [name, str(value)] if value is not None else []
    try:
        start_log(load_settings(config, require, log, fidelity=fidelity))
        require_privilege()
        names = tuple(filter(None, map(str.strip, load.split(",")))) if load else DEFAULT
        limit = None if until_violation else 600.0 if seconds is None else seconds
        drawn = random.SystemRandom().randrange(1 << 31) if seed is None else seed
        order = Order(
            names,
            limit,
            repeat,
            out,
            memory,
            processes,
            selftests,
            drawn,
            log.quiet or form == "json",
            tuple(options),
        )
        _, code = run_all(order, show)
    except click.UsageError:
        raise
    except Exception as error:
        code = ABORTS if outcome.exit_code_of(error) == USAGE else SKIPS
    try:
        if seen and (seen[0].runs or form == "json"):
            result = seen[0]
            end = ["", *map(printable, texts.summary_text(result))]
            text = json_text(result.as_json()) if form == "json" else "\n".join(end)
            outcome.print_text(text + "\n")
    except RmapdError as error:
        code = code or SKIPS
        outcome.exit_code_of(error)
    # A kernel that was violated is bad, whatever failed then: its finding is on the terminal.
    ctx.exit(VIOLATED if seen and seen[0].of("violated") else code)
