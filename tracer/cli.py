"""The command line: run, exec, protocols, check-config; the other commands are in cli_*.py."""

from __future__ import annotations

import signal
import sys
from functools import partial
from pathlib import Path

import click

from tracer import config as configuration
from tracer import outcome, progress
from tracer.cli_audit import audit
from tracer.cli_client import COMMANDS
from tracer.cli_common import (
    LogChoice,
    config_option,
    fidelity_option,
    file_option,
    format_option,
    load_settings,
    log_options,
    require_option,
    require_privilege,
    seconds_option,
    start_log,
    store_option,
    way_option,
)
from tracer.cli_compile import compile_
from tracer.cli_doctor import doctor
from tracer.cli_group import Commands
from tracer.cli_help import show_help
from tracer.cli_reports import diff, explain, report
from tracer.cli_soak import soak
from tracer.cli_version import version_option
from tracer.errors import VIOLATED, RmapdError
from tracer.process.lock_and_signals import ReloadSignal, StopSignal, hold_lock_file

_FAIL_ON = ("violated", "suspect", "never")


_HEADINGS = {
    "Check this kernel (as root)": ("doctor", "run", "exec", "soak", "audit", "protocols"),
    "Ask a running daemon": ("status", "events", "top"),
    "Read what was found": ("explain", "report", "diff"),
    "Set up": ("check-config", "compile", "help"),
}


@click.group(
    cls=Commands, headings=_HEADINGS, context_settings={"help_option_names": ["-h", "--help"]}
)
@version_option
def main() -> None:
    """Check on a live kernel that it keeps the rules of its reverse map.

    Begin with `rmapd doctor`. `rmapd help COMMAND` has the options of a command, and examples.
    """


@main.command(
    short_help="Run the daemon: check until it is stopped.",
    exits=(
        ("0", "stopped in good order, whatever it found"),
        ("2", "usage or configuration"),
        ("4", "a required invariant cannot be checked here"),
        ("70", "a defect of rmapd"),
        ("71", "the checker died, and its supervisor reports what it had found"),
        ("75", "a condition that may pass: the port is in use, another rmapd runs"),
    ),
    examples=(
        ("Check until Ctrl-C, with the web page on http://127.0.0.1:9743/", "sudo rmapd run"),
        (
            "For ten minutes, only where M1 and L2 can be checked",
            "sudo rmapd run --duration 600 --require M1,L2",
        ),
        (
            "For the network, with TLS and users",
            "sudo rmapd run --listen 0.0.0.0:9743 --web-config /etc/rmapd/web.yml",
        ),
    ),
)
@config_option
@click.option(
    "--listen",
    metavar="ADDR:PORT",
    help="Serve the web page, the API and /metrics here (default 127.0.0.1:9743).",
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
    help="Exit with 4 where any invariant is checked less than in full.",
)
@require_option
@store_option
@log_options()
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
    log: LogChoice,
) -> None:
    """Run the daemon: check until it is stopped, and serve what it finds.

    SIGTERM, SIGINT (Ctrl-C) and --duration end it. At SIGHUP it reads the configuration again.
    """
    read = partial(
        load_settings,
        config,
        require,
        log,
        "info",
        listen=listen,
        web_config=web_config,
        fidelity=fidelity,
        strict=strict,
        store=store,
    )
    settings = start_log(read())
    require_privilege()
    from tracer.daemon import run_supervisor

    checker = run_supervisor.start(settings)
    if isinstance(checker, int):
        ctx.exit(checker)
    from tracer.daemon.run import Controls, serve

    controls = Controls(StopSignal(), ReloadSignal(), read)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, controls.stop)
    signal.signal(signal.SIGHUP, controls.reload)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, run_supervisor.SIGNALS)
    try:
        with hold_lock_file(Path(settings.lock_file), checker.owner):
            serve(settings, controls, duration, checker)
    except RmapdError:
        checker.report_end()
        raise
    checker.report_end()


@main.command(
    "exec",
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
    short_help="Check while a command runs, then report.",
    exits=(
        ("COMMAND's", "nothing was violated"),
        ("3", "a violation (--violation-exit-code changes the number)"),
        ("4", "a required invariant cannot be checked here, or was not all the time"),
        ("2", "usage or configuration"),
        ("71", "the checker or the daemon died; the report has what was known"),
        ("124", "the time of --timeout was over (as timeout(1) has it)"),
        ("125", "rmapd failed"),
        ("126, 127", "COMMAND cannot be run; COMMAND was not found"),
        ("128+N", "signal N ended the run"),
    ),
    examples=(
        ("Check while the tests run", "sudo rmapd exec -- make test"),
        (
            "For ten minutes at most, and keep the report",
            "sudo rmapd exec --timeout 600 --report run.json -- stress-ng --mremap 2",
        ),
        (
            "In a kernel's CI: fail where M1 or L2 cannot be checked",
            "sudo rmapd exec --require M1,L2 --format ktap --junit rmapd.xml -- make test",
        ),
    ),
)
@config_option
@file_option("--report", help="Write the report as JSON to this file.")
@file_option("--junit", help="Write JUnit XML to this file, with one test for each invariant.")
@format_option("text", "json", "ktap")
@file_option(
    "--output",
    help="Write what COMMAND prints to this file; else, with --format json and ktap, it is on"
    " standard error.",
)
@click.option(
    "--fail-on",
    type=click.Choice(_FAIL_ON),
    metavar="VERDICT",
    default="violated",
    show_default=True,
    help="Exit with 3 for this verdict: violated, suspect (or violated), or never.",
)
@click.option(
    "--violation-exit-code",
    "code",
    type=click.IntRange(0, 255),
    metavar="N",
    default=VIOLATED,
    show_default=True,
    help="Use this exit code instead of 3.",
)
@click.option(
    "--command-exit-code",
    "command_code",
    metavar="N",
    type=click.IntRange(0, 255),
    help="Exit with this where COMMAND fails, not with its own code.",
)
@way_option(
    "Use the daemon that runs. auto: attach where none runs; only: fail there; never: attach,"
    " and fail where one runs."
)
@seconds_option("--timeout", help="End COMMAND after this time, and exit with 124.")
@click.option(
    "--until-violation", is_flag=True, help="End COMMAND once something is violated, with SIGTERM."
)
@seconds_option(
    "--grace", default=5, help="How long COMMAND may take to end before it gets SIGKILL."
)
@fidelity_option
@require_option
@log_options()
@click.argument("command", nargs=-1, type=click.UNPROCESSED, required=True)
@click.pass_context
def exec_(
    ctx: click.Context,
    config: Path | None,
    report: Path | None,
    junit: Path | None,
    form: str,
    output: Path | None,
    fail_on: str,
    code: int,
    command_code: int | None,
    way: str,
    timeout: float | None,
    until_violation: bool,
    grace: float,
    fidelity: str | None,
    require: str | None,
    log: LogChoice,
    command: tuple[str, ...],
) -> None:
    """Check while COMMAND runs, then report.

    All processes of the machine are checked meanwhile, not only COMMAND and its children. Put --
    before COMMAND, so that its own options are not taken for rmapd's.

    While rmapd run is active, exec uses its daemon and attaches nothing: the report is of the time
    in which COMMAND runs.
    """
    from tracer.daemon import exec_supervisor, exec_way
    from tracer.supervision.exec_request import ExecRequest

    settings = start_log(load_settings(config, require, log, fidelity=fidelity))
    require_privilege()
    order = ExecRequest(
        settings,
        command,
        report,
        form,
        fail_on,
        junit,
        code,
        timeout,
        grace,
        output,
        command_code,
        until_violation,
    )
    try:
        ctx.exit(exec_way.run(order, way, fidelity, config))
    except click.exceptions.Exit:
        raise
    except Exception as error:
        ctx.exit(exec_supervisor.exit_code(outcome.exit_code_of(error)))


@main.command(
    "check-config",
    short_help="Check the configuration, and print what is in force.",
    exits=(("0", "the configuration is right"), ("2", "it is wrong; the message names the key")),
    examples=(
        ("What rmapd run would use, from file, environment and defaults", "rmapd check-config"),
        ("Before a file is installed", "rmapd check-config --config ./rmapd.toml"),
        ("A file to begin with", "rmapd check-config --example > rmapd.toml"),
    ),
)
@config_option
@click.option(
    "--example",
    is_flag=True,
    help="Print a commented configuration with every key and its default.",
)
def check_config(config: Path | None, example: bool) -> None:
    """Check the configuration, and print what is in force.

    The environment (RMAPD_LISTEN and so on) overrides the file, and the file the defaults.
    """
    if example:
        click.echo(configuration.example(), nl=False)
        return
    settings = load_settings(config, None)
    if settings.web_config:
        from tracer.web import Access

        Access(Path(settings.web_config))
    click.echo(configuration.in_force(settings), nl=False)


@main.command(
    short_help="Watch for a while, and save what this kernel does, for diff.",
    examples=(
        (
            "Save a minute, for rmapd diff with another kernel's",
            "sudo rmapd protocols --save here.json",
        ),
        (
            "Save ten minutes, without messages and progress",
            "sudo rmapd protocols -q --seconds 600 --save here.json",
        ),
    ),
)
@config_option
@seconds_option("--seconds", default=60, help="How long to watch.")
@file_option("--save", required=True, help="Write the report as JSON to this file.")
@fidelity_option
@log_options(progress=True)
@click.pass_context
def protocols(
    ctx: click.Context,
    config: Path | None,
    seconds: float,
    save: Path,
    fidelity: str | None,
    log: LogChoice,
) -> None:
    """Watch for a while, and save this kernel's protocols, for rmapd diff.

    A protocol is what one call of a kernel function does with locks, interval trees and the VMA, in
    order. Let the machine work meanwhile: what does not happen is not saved.
    """
    settings = start_log(load_settings(config, None, log, fidelity=fidelity))
    require_privilege()
    from tracer.daemon import exec_supervisor
    from tracer.supervision.exec_request import ExecRequest

    wait = ["sleep", str(seconds)]
    if progress.is_shown(log.quiet):
        wait = [sys.executable, "-P", "-m", progress.__name__, str(seconds)]
    with hold_lock_file(Path(settings.lock_file)):
        ctx.exit(exec_supervisor.run(ExecRequest(settings, wait, save, fail_on="never")))


for _command in (audit, compile_, doctor, soak, diff, report, explain, show_help, *COMMANDS):
    main.add_command(_command)
