"""The command line: rmapd run, exec, doctor, protocols, diff, report, explain, check-config."""

from __future__ import annotations

import logging
import os
import signal
import sys
from functools import partial
from pathlib import Path
from typing import Any

import click

import tracer
from tracer import config as configuration
from tracer import logs, outcome
from tracer.errors import DEFECT, RmapdError
from tracer.invariants.catalogue import discover
from tracer.printable import json_text
from tracer.process.lock_and_signals import ReloadSignal, StopSignal, only_one

_DEFAULT_CONFIG = Path("/etc/rmapd/rmapd.toml")
_FAIL_ON = ("violated", "suspect", "never")

_config = click.option(
    "--config", type=click.Path(path_type=Path), envvar="RMAPD_CONFIG", help="TOML configuration."
)
_fidelity = click.option(
    "--fidelity", type=click.Choice(configuration.FIDELITIES), help="How much to probe."
)
_require = click.option(
    "--require", help="Invariants that must be checkable, e.g. M1,L2; else exit 4."
)
_store = click.option(
    "--store",
    metavar="FILE",
    help=f"Where what is found is kept (default {configuration.STORE}; '': nowhere).",
)


class Commands(click.Group):
    """Turns every failure into one message and its exit code (tracer.errors). What nobody expected is a defect: its traceback is logged."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Also where click itself writes: help and version to a disk that is full."""
        try:
            return super().main(*args, **kwargs)
        except outcome.Unwritten as error:
            sys.exit(outcome.of(error))

    def invoke(self, ctx: click.Context) -> Any:
        with logs.to_stderr(), outcome.interruptible(), logs.Threads() as threads:
            code = 0
            try:
                super().invoke(ctx)
            except click.exceptions.Exit as ended:
                code = ended.exit_code
            except click.ClickException:
                raise
            except BaseException as error:
                code = outcome.of(error)
        ctx.exit(DEFECT if threads.failed else code)


def _path(config: Path | None) -> Path | None:
    try:
        there = _DEFAULT_CONFIG.exists()
    except PermissionError:  # it may be there: whoever needs it is told that it cannot be read
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
    """Watch a live kernel keep, or break, the promises of its reverse map."""


@main.command()
@_config
@click.option(
    "--listen", metavar="ADDR:PORT", help="Where /metrics is served (default 127.0.0.1:9743)."
)
@click.option(
    "--web-config",
    metavar="FILE",
    help="TLS and users of that port, as Prometheus's exporters take them (docs/ACCESS.md).",
)
@click.option(
    "--duration", type=click.FloatRange(min=0), metavar="SECONDS", help="Stop after this time."
)
@_fidelity
@click.option(
    "--strict",
    is_flag=True,
    default=None,
    help="Any invariant checked less than in full is fatal (exit 4).",
)
@_require
@_store
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
    """Run the daemon until SIGTERM, SIGINT or --duration. SIGHUP reads the configuration again."""
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

    judge = run_supervisor.start(settings)
    if isinstance(judge, int):
        ctx.exit(judge)
    from tracer.daemon.run import Asked, serve

    asked = Asked(StopSignal(), ReloadSignal(), read)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, asked.stop)
    signal.signal(signal.SIGHUP, asked.reload)
    try:
        with only_one(Path(settings.lock_file), judge.owner):
            serve(settings, asked, duration, judge)
    except RmapdError:
        judge.done()
        raise
    judge.done()


@main.command(
    "exec", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False}
)
@_config
@click.option(
    "--report",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write the report as JSON.",
)
@click.option(
    "--junit",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write JUnit XML, a test per invariant.",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["text", "json", "ktap"]),
    default="text",
    show_default=True,
)
@click.option(
    "--fail-on",
    type=click.Choice(_FAIL_ON),
    default="violated",
    show_default=True,
    help="What makes the exit code 3.",
)
@click.option(
    "--violation-exit-code",
    "code",
    type=click.IntRange(0, 255),
    default=3,
    show_default=True,
    help="That code.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    help="End COMMAND after this time: exit 124.",
)
@click.option(
    "--grace",
    type=click.FloatRange(min=0),
    default=5,
    show_default=True,
    metavar="SECONDS",
    help="From a signal to SIGKILL.",
)
@_fidelity
@_require
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
    """Trace while COMMAND runs (system-wide), then report.

    \b
    Exit: COMMAND's own, but 3 violated, 4 not checkable, 2 usage or configuration, 71 the judge died;
    as timeout(1) and env(1): 124 --timeout, 125 rmapd failed, 126 COMMAND cannot be run, 127 not found, 128+N signal N.
    """
    from tracer.daemon import exec_supervisor
    from tracer.supervision.exec_order import ExecOrder

    settings = _load(config, require, fidelity=fidelity)
    _needs_privilege()
    order = ExecOrder(settings, command, report, form, fail_on, junit, code, timeout, grace)
    try:
        with only_one(Path(settings.lock_file)):
            ctx.exit(exec_supervisor.run(order))
    except click.exceptions.Exit:
        raise
    except Exception as error:
        ctx.exit(exec_supervisor.exit_code(outcome.of(error)))


@main.command()
@_config
@click.option(
    "--format", "form", type=click.Choice(["text", "json"]), default="text", show_default=True
)
def doctor(config: Path | None, form: str) -> None:
    """Is rmapd installed as it should be, what does this kernel let us check, and why not the rest?"""
    from tracer.daemon import installation

    checks = installation.examine(
        installation.Probed(),
        partial(_load, config, None),
        str(_path(config) or "no file: every default"),
    )
    if form == "text":
        click.echo(installation.as_text(checks), nl=False)
    settings = _load(config, None)
    _needs_privilege()
    from tracer.daemon.doctor import as_text, examine
    from tracer.daemon.session import Session, running_kernel

    with Session(settings, running_kernel()) as session:
        found = {"installation": installation.as_json(checks), **examine(session)}
    click.echo(json_text(found) if form == "json" else as_text(found), nl=form == "json")


@main.command("check-config")
@_config
@click.option(
    "--example",
    is_flag=True,
    help="Print a commented configuration with every key and its default instead.",
)
def check_config(config: Path | None, example: bool) -> None:
    """Say what is wrong with the configuration (exit 2), or what is in force: file, environment and defaults."""
    if example:
        click.echo(configuration.example(), nl=False)
        return
    settings = _load(config, None)
    if settings.web_config:
        from tracer.web import Access

        Access(Path(settings.web_config))
    click.echo(configuration.in_force(settings), nl=False)


@main.command()
@_config
@click.option(
    "--seconds",
    type=click.FloatRange(min=0),
    default=60,
    show_default=True,
    help="How long to watch.",
)
@click.option(
    "--save",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    metavar="FILE",
    help="Where the report goes.",
)
@_fidelity
@click.pass_context
def protocols(
    ctx: click.Context, config: Path | None, seconds: float, save: Path, fidelity: str | None
) -> None:
    """Save what this kernel's windows do, for rmapd diff."""
    settings = _load(config, None, fidelity=fidelity)
    _needs_privilege()
    from tracer.daemon import exec_supervisor
    from tracer.supervision.exec_order import ExecOrder

    with only_one(Path(settings.lock_file)):
        ctx.exit(
            exec_supervisor.run(ExecOrder(settings, ["sleep", str(seconds)], save, fail_on="never"))
        )


@main.command()
@click.argument("a", type=click.Path(path_type=Path, dir_okay=False))
@click.argument("b", type=click.Path(path_type=Path, dir_okay=False))
@click.option(
    "--format", "form", type=click.Choice(["text", "json"]), default="text", show_default=True
)
@click.pass_context
def diff(ctx: click.Context, a: Path, b: Path, form: str) -> None:
    """Compare the protocols of two reports, the most alarming difference first.

    Exit: 3 where a difference alarms, 4 where there was nothing to compare."""
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
@click.option(
    "--from",
    "source",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="REPORT.json",
    help="A report of rmapd exec.",
)
@_config
@click.option(
    "--store",
    metavar="FILE",
    help=f"What rmapd run kept, with its last run (default {configuration.STORE}).",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE.html|FILE.md",
    help="Markdown to stdout without.",
)
def report(
    source: Path | None, config: Path | None, store: str | None, output: Path | None
) -> None:
    """A store, or a run, as one self-contained HTML file with plots or as Markdown."""
    from tracer.report.load import from_report_file, from_store
    from tracer.report.publish import publish

    if source and store:
        raise RmapdError(
            "cannot report on two things", why="there are --from and --store", hint="one of them"
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
@_config
@_store
@click.option(
    "--report",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="A report of rmapd exec, not the store.",
)
@click.option(
    "--format", "form", type=click.Choice(["text", "json", "md"]), default="text", show_default=True
)
def explain(
    id: str, config: Path | None, store: str | None, report: Path | None, form: str
) -> None:
    """Explain an invariant (M1, L2, …), or a violation by its id: as one would send it to linux-mm."""
    from tracer.outputs.store import reader
    from tracer.report import explain as explanation
    from tracer.report.find_violation import find
    from tracer.report.load import read_report

    if store is not None and report:
        raise RmapdError(
            "cannot explain from two things",
            why="there are --store and --report",
            hint="one of them",
        )
    known, invariant = discover(), discover().get(id.upper())
    if invariant or "-" not in id:  # a file that was named is looked at, whatever else was asked
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
            why = f"it is of the invariant {found.violation.invariant}, which this rmapd does not know"
            raise RmapdError(
                f"cannot explain {found.violation.id}",
                why=why,
                hint=f"rmapd {found.report.rmapd}, which wrote it",
            )
        said = {
            "json": explanation.as_json,
            "md": explanation.as_markdown,
            "text": explanation.as_text,
        }[form]
        shown = said(found, known[found.violation.invariant])
    click.echo(shown if isinstance(shown, str) else json_text(shown), nl=not isinstance(shown, str))
