"""The command line: run, exec, doctor, protocols, diff, report, explain, check-config."""

from __future__ import annotations

import logging
import os
import signal
from functools import partial
from pathlib import Path
from typing import Any

import click

import tracer
from tracer import config as configuration
from tracer import outcome
from tracer.cli_common import (
    Commands,
    config_option,
    fidelity_option,
    file_option,
    format_option,
    require_option,
    seconds_option,
    store_option,
)
from tracer.errors import RmapdError
from tracer.invariants.catalogue import discover
from tracer.printable import json_text
from tracer.process.lock_and_signals import ReloadSignal, StopSignal, hold_lock_file

_DEFAULT_CONFIG = Path("/etc/rmapd/rmapd.toml")
_FAIL_ON = ("violated", "suspect", "never")


def _path(config: Path | None) -> Path | None:
    try:
        there = _DEFAULT_CONFIG.exists()
    except PermissionError:  # it may exist: reading it then reports the error
        there = True
    return config or (_DEFAULT_CONFIG if there else None)


def _load(config: Path | None, require: str | None, **overrides: object) -> configuration.Config:
    path = _path(config)
    required = (
        [name.strip() for name in require.split(",") if name.strip()]
        if require is not None
        else None
    )
    settings = configuration.load(path, os.environ, require=required, **overrides)
    if unknown := [name for name in settings.require if name not in discover()]:
        why, hint = f"no invariant {', '.join(unknown)}", f"some of {', '.join(discover())}"
        raise RmapdError(f"cannot require {','.join(settings.require)}", why=why, hint=hint)
    return settings


def _needs_privilege() -> None:
    from tracer.daemon.installation import cannot_attach, effective

    if why := cannot_attach(
        effective(Path("/proc/self/status").read_text(encoding="utf-8", errors="replace"))
    ):
        raise RmapdError("not enough privilege to load BPF programs", why=why, hint="sudo rmapd …")


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(tracer.__version__, prog_name="rmapd")
def main() -> None:
    """Check on a live kernel that it keeps the rules of its reverse map."""


@main.command()
@config_option
@click.option(
    "--listen",
    metavar="ADDR:PORT",
    help="Address of /metrics and the web page (default 127.0.0.1:9743).",
)
@click.option(
    "--web-config",
    metavar="FILE",
    help="TLS and users for that port, in the format of Prometheus's exporters (docs/ACCESS.md).",
)
@seconds_option("--duration", help="Stop after this time.")
@fidelity_option
@click.option(
    "--strict",
    is_flag=True,
    default=None,
    help="Exit with 4 where any invariant has less than full coverage.",
)
@require_option
@store_option
@click.pass_context
def run(
    ctx: click.Context,
    config: Path | None,
    listen: str | None,
    web_config: str | None,
    duration: float | None,
    fidelity: str | None,
    strict: bool | None,
    require: str | None,
    store: str | None,
) -> None:
    """Run the daemon.

    SIGTERM, SIGINT and --duration end it; SIGHUP reloads the configuration.
    """
    logging.getLogger().setLevel(logging.INFO)
    read = partial(
        _load,
        config,
        require,
        listen=listen,
        web_config=web_config,
        fidelity=fidelity,
        strict=strict,
        store=store,
    )
    settings = read()
    _needs_privilege()
    from tracer.daemon import run_supervisor

    checker = run_supervisor.start(settings)
    if isinstance(checker, int):
        ctx.exit(checker)
    from tracer.daemon.run import Controls, serve

    controls = Controls(StopSignal(), ReloadSignal(), read)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, controls.stop)
    signal.signal(signal.SIGHUP, controls.reload)
    try:
        with hold_lock_file(Path(settings.lock_file), checker.owner):
            serve(settings, controls, duration, checker)
    except RmapdError:
        checker.report_end()
        raise
    checker.report_end()


@main.command(
    "exec", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False}
)
@config_option
@file_option("--report", help="Write the report as JSON.")
@file_option("--junit", help="Write JUnit XML, with one test for each invariant.")
@format_option("text", "json", "ktap")
@click.option(
    "--fail-on",
    type=click.Choice(_FAIL_ON),
    default="violated",
    show_default=True,
    help="The verdict that makes the exit code 3.",
)
@click.option(
    "--violation-exit-code",
    "code",
    type=click.IntRange(0, 255),
    default=3,
    show_default=True,
    help="Use this exit code instead of 3.",
)
@seconds_option("--timeout", help="End COMMAND after this time, and exit with 124.")
@seconds_option("--grace", default=5, help="Time from a signal to SIGKILL.")
@fidelity_option
@require_option
@click.argument("command", nargs=-1, type=click.UNPROCESSED, required=True)
@click.pass_context
def exec_(
    ctx: click.Context,
    config: Path | None,
    report: Path | None,
    junit: Path | None,
    form: str,
    fail_on: str,
    code: int,
    timeout: float | None,
    grace: float,
    fidelity: str | None,
    require: str | None,
    command: tuple[str, ...],
) -> None:
    """Trace while COMMAND runs, then report.

    Tracing is system-wide, not only COMMAND and its children.

    \b
    Exit code: COMMAND's own, or
      3 violated, 4 not checkable, 2 usage or configuration, 71 the checker died;
      as timeout(1) and env(1): 124 --timeout, 125 rmapd failed, 126 COMMAND cannot be run,
      127 COMMAND not found, 128+N signal N.
    """
    from tracer.daemon import exec_supervisor
    from tracer.supervision.exec_request import ExecRequest

    settings = _load(config, require, fidelity=fidelity)
    _needs_privilege()
    order = ExecRequest(settings, command, report, form, fail_on, junit, code, timeout, grace)
    try:
        with hold_lock_file(Path(settings.lock_file)):
            ctx.exit(exec_supervisor.run(order))
    except click.exceptions.Exit:
        raise
    except Exception as error:
        ctx.exit(exec_supervisor.exit_code(outcome.exit_code_of(error)))


@main.command()
@config_option
@format_option("text", "json")
def doctor(config: Path | None, form: str) -> None:
    """Check the installation and this kernel.

    The report has what this kernel lets rmapd check, and why not the rest.
    """
    from tracer.daemon import installation

    checks = installation.examine(
        installation.Host(),
        partial(_load, config, None),
        str(_path(config) or "no file: every default"),
    )
    if form == "text":
        click.echo(installation.as_text(checks), nl=False)
    settings = _load(config, None)
    _needs_privilege()
    from tracer.daemon.doctor import as_text, examine
    from tracer.daemon.probes import running_kernel
    from tracer.daemon.session import open_session

    with open_session(settings, running_kernel()) as session:
        found = {"installation": installation.as_json(checks), **examine(session)}
    click.echo(json_text(found) if form == "json" else as_text(found), nl=form == "json")


@main.command("check-config")
@config_option
@click.option(
    "--example",
    is_flag=True,
    help="Print a commented configuration with every key and its default.",
)
def check_config(config: Path | None, example: bool) -> None:
    """Check the configuration, and print it.

    Exit code: 2 where the configuration is wrong. File, environment and defaults are merged.
    """
    if example:
        click.echo(configuration.example(), nl=False)
        return
    settings = _load(config, None)
    if settings.web_config:
        from tracer.web import Access

        Access(Path(settings.web_config))
    click.echo(configuration.in_force(settings), nl=False)


@main.command()
@config_option
@seconds_option("--seconds", default=60, help="How long to trace.")
@file_option("--save", required=True, help="Write the report there.")
@fidelity_option
@click.pass_context
def protocols(
    ctx: click.Context, config: Path | None, seconds: float, save: Path, fidelity: str | None
) -> None:
    """Save this kernel's protocols, for rmapd diff."""
    settings = _load(config, None, fidelity=fidelity)
    _needs_privilege()
    from tracer.daemon import exec_supervisor
    from tracer.supervision.exec_request import ExecRequest

    with hold_lock_file(Path(settings.lock_file)):
        ctx.exit(
            exec_supervisor.run(
                ExecRequest(settings, ["sleep", str(seconds)], save, fail_on="never")
            )
        )


@main.command()
@click.argument("a", type=click.Path(path_type=Path, dir_okay=False))
@click.argument("b", type=click.Path(path_type=Path, dir_okay=False))
@format_option("text", "json")
@click.pass_context
def diff(ctx: click.Context, a: Path, b: Path, form: str) -> None:
    """Compare the protocols of two reports.

    The most alarming difference comes first.

    Exit code: 3 where a difference alarms, 4 where there is nothing to compare.
    """
    from tracer.report.diff import compare, nothing_to_compare, read_both
    from tracer.report.diff_output import as_json, as_text

    ours, theirs = read_both(a, b)
    found = compare(ours, theirs)
    click.echo(
        json_text(as_json(ours, theirs, found)) if form == "json" else as_text(ours, theirs, found),
        nl=form == "json",
    )
    alarming = any(difference.grade.alarms for difference in found)
    ctx.exit(3 if alarming else 4 if nothing_to_compare(ours, theirs) else 0)


@main.command()
@file_option("--from", "source", metavar="REPORT.json", help="Read a report of rmapd exec.")
@config_option
@click.option(
    "--store",
    metavar="FILE",
    help=f"Read the store of rmapd run, with its last run (default {configuration.STORE}).",
)
@file_option(
    "--output", metavar="FILE.html|FILE.md", help="Write a file, not Markdown to standard output."
)
def report(
    source: Path | None, config: Path | None, store: str | None, output: Path | None
) -> None:
    """Write a report as HTML or as Markdown.

    The HTML is one self-contained file with plots. The source is a store or the report of a run.
    """
    from tracer.report.load import from_report_file, from_store
    from tracer.report.publish import publish

    if source and store:
        raise RmapdError(
            "cannot read two sources", why="--from and --store are both given", hint="one of them"
        )
    publish(
        lambda: (
            from_report_file(source)
            if source
            else from_store(Path(_load(config, None, store=store).store or configuration.STORE))
        ),
        output,
    )


@main.command()
@click.argument("id")
@config_option
@store_option
@file_option("--report", help="Read a report of rmapd exec, not the store.")
@format_option("text", "json", "md")
def explain(
    id: str, config: Path | None, store: str | None, report: Path | None, form: str
) -> None:
    """Explain an invariant, or a violation.

    ID is that of an invariant (M1, L2, …), or of a violation: the text is made to be sent to
    linux-mm.
    """
    from tracer.outputs.store import reader
    from tracer.report import explain as explanation
    from tracer.report.find_violation import find
    from tracer.report.load import read_report

    if store is not None and report:
        raise RmapdError(
            "cannot read two sources",
            why="--store and --report are both given",
            hint="one of them",
        )
    known, invariant = discover(), discover().get(id.upper())
    if invariant or "-" not in id:  # check a given file, even where it is not needed
        _ = read_report(report) if report else reader.read(Path(store)) if store else None
    if invariant:
        shown: Any = (
            explanation.invariant_json(invariant)
            if form == "json"
            else explanation.invariant_text(invariant)
        )
    elif "-" not in id:
        raise RmapdError(
            f"no invariant {id!r}", hint=f"one of {', '.join(known)}, or a violation's id"
        )
    else:
        found = find(
            id, Path(_load(config, None, store=store).store or configuration.STORE), report
        )
        if found.violation.invariant not in known:
            why = f"this rmapd has no invariant {found.violation.invariant}"
            raise RmapdError(
                f"cannot explain {found.violation.id}",
                why=why,
                hint=f"rmapd {found.report.rmapd}, which wrote the report",
            )
        render = {
            "json": explanation.as_json,
            "md": explanation.as_markdown,
            "text": explanation.as_text,
        }[form]
        shown = render(found, known[found.violation.invariant])
    click.echo(shown if isinstance(shown, str) else json_text(shown), nl=not isinstance(shown, str))
