"""The commands that read a running daemon over its API: status, events, top."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tracer import logs
from tracer.cli_common import (
    complete_ids,
    config_option,
    format_option,
    load_settings,
    seconds_option,
)
from tracer.cli_help import Command, SectionOption
from tracer.config import names
from tracer.errors import RmapdError
from tracer.ids import all_canonical
from tracer.outcome import print_text
from tracer.printable import json_text
from tracer.screen import is_terminal

if TYPE_CHECKING:
    from tracer.client.connection import Client

log = logging.getLogger("rmapd")

_VARIABLE = "RMAPD_API_{}"
"""Variables of the environment that an option may come from instead."""


_SECTION = "Which daemon, and how to reach it"


def _option(name: str, *, help: str, metavar: str = "FILE", file: bool = True) -> Any:
    variable = _VARIABLE.format(name.removeprefix("--").replace("-", "_").upper())
    kind: Any = click.Path(path_type=Path, dir_okay=False) if file else str
    return click.option(
        name,
        type=kind,
        metavar=metavar,
        envvar=variable,
        help=help,
        cls=SectionOption,
        section=_SECTION,
    )


_OPTIONS = (
    _option(
        "--url",
        metavar="URL",
        file=False,
        help="Its address, such as https://HOST:9743 (default: that of the configuration on this"
        " host).",
    ),
    _option("--user", metavar="NAME", file=False, help="Log in as this user."),
    _option(
        "--password-file", help="Read the password from this file (default: ask at the terminal)."
    ),
    _option("--token-file", help="Send the bearer token in this file, to a proxy before it."),
    _option("--ca-file", help="Trust this CA alone (default: those of the system)."),
    _option("--cert-file", help="Show this certificate, where the daemon wants one."),
    _option("--key-file", help="The key of --cert-file."),
    _option(
        "--server-name",
        metavar="NAME",
        file=False,
        help="Expect this name in the daemon's certificate (default: the host's).",
    ),
    seconds_option(
        "--timeout",
        default=5,
        section=_SECTION,
        help="Time limit of one request.",
    ),
    config_option,
)


def client_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options that name a daemon; it gets a Client as `client`."""

    @wraps(command)
    def with_client(
        url: str | None,
        user: str | None,
        password_file: Path | None,
        token_file: Path | None,
        ca_file: Path | None,
        cert_file: Path | None,
        key_file: Path | None,
        server_name: str | None,
        timeout: float,
        config: Path | None,
        **others: Any,
    ) -> None:
        from tracer.client.address import from_configuration, from_url
        from tracer.client.connection import Client
        from tracer.client.credentials import Credentials, LoginOptions, authorization

        address = from_url(url) if url else from_configuration(load_settings(config, None))
        login = LoginOptions(user or "", password_file, token_file)
        shown = authorization(login, os.environ, _ask if is_terminal(sys.stdin) else None)
        if shown and not address.secure:
            log.warning(
                "%s is not encrypted: anyone on the way can read the password or the token",
                address.url,
            )
        credentials = Credentials(shown, ca_file, cert_file, key_file, server_name or "")
        with Client(address, credentials, max(0.1, timeout)) as client:
            command(client=client, **others)

    for option in reversed(_OPTIONS):
        with_client = option(with_client)
    return with_client


def _ask(prompt: str) -> str:
    return str(click.prompt(prompt, hide_input=True, err=True))


@click.command(
    cls=Command,
    short_help="Show a running daemon on one screen.",
    exits=(
        ("0", "nothing is violated: green, or amber"),
        ("3", "a violation"),
        ("4", "a required invariant is not checked"),
        ("5", "no daemon answers, or its checker hangs"),
        ("2", "usage, a wrong password, or a certificate that is not trusted"),
    ),
    examples=(
        ("The daemon on this host", "rmapd status"),
        (
            "For a script, by the exit code alone",
            "rmapd status --require M1,L2 > /dev/null || echo 'look at rmapd'",
        ),
        (
            "A daemon on another host",
            "rmapd status --url https://db1:9743 --user reader --password-file pw",
        ),
    ),
)
@client_options
@click.option(
    "--require",
    metavar="IDS",
    shell_complete=complete_ids,
    help="Exit with 4 where one of these invariants is not checked, such as M1,L2.",
)
@format_option("text", "json")
@click.pass_context
def status(ctx: click.Context, client: Client, require: str | None, form: str) -> None:
    """Show a running daemon on one screen.

    The colour and its reasons, findings, coverage, losses and cost. It needs no privileges.
    """
    from tracer.client.health import health

    required = all_canonical(names(require or ""))
    try:
        seen = client.status()
        found = health(seen, required)
    except RmapdError as error:
        if form == "json":
            given = {"what": error.what, "why": error.why, "hint": error.hint}
            print_text(_json(client, error.exit_code, reachable=False, error=given))
            ctx.exit(error.exit_code)
        raise
    if form == "json":
        shown = {"reason": found.reason, "age_seconds": round(seen.age_seconds, 3)}
        print_text(_json(client, found.exit_code, reachable=True, **shown, status=seen.exact))
    else:
        from rich.console import Console

        from tracer.client.status_text import as_lines

        console = Console(highlight=False, soft_wrap=not is_terminal(sys.stdout))
        with console.capture() as text:
            for line in as_lines(seen, found, client.address.url):
                console.print(line)
        print_text(text.get())
    ctx.exit(found.exit_code)


def _json(client: Client, exit_code: int, **more: Any) -> str:
    return json_text({"url": client.address.url, "exit_code": exit_code, **more}) + "\n"


@click.command(
    cls=Command,
    short_help="Print the findings of a running daemon as JSON lines.",
    examples=(
        ("What was found until now", "rmapd events"),
        ("Summaries as they come, until Ctrl-C", "rmapd events -f | jq -r .summary"),
    ),
)
@client_options
@click.option("-f", "--follow", is_flag=True, help="Go on, and print findings as they come.")
@click.option("--updates", is_flag=True, help="Print a finding again when it is met again.")
@seconds_option("--interval", default=1, help="With -f: how often to look.")
def events(client: Client, follow: bool, updates: bool, interval: float) -> None:
    """Print the findings of a running daemon as JSON lines, each once.

    With -f it goes on until Ctrl-C, also over restarts of the daemon, which it reports on standard
    error.
    """
    from tracer.client import events as reading

    source = reading.Events(client, updates=updates)
    if follow:
        reading.follow(source, _emit, max(0.2, interval))
    for one in source.look():
        _emit(one)


def _emit(one: dict[str, Any]) -> None:
    click.echo(json_text(one, indent=None))
    sys.stdout.flush()


@click.command(
    cls=Command,
    short_help="Watch a running daemon on the whole terminal, until q.",
    examples=(
        ("The daemon on this host", "rmapd top"),
        (
            "A daemon on another host, every ten seconds",
            "rmapd top --url https://db1:9743 --user reader --interval 10",
        ),
    ),
)
@client_options
@seconds_option("--interval", default=2, help="How often to look.")
def top(client: Client, interval: float) -> None:
    """Watch a running daemon on the whole terminal, until q.

    Verdicts and coverage, rates, the hottest functions and locks, migration entries, the audit, and
    findings with what led to them. ? shows the keys.
    """
    if not (is_terminal(sys.stdin) and is_terminal(sys.stderr)):  # Textual draws on standard error
        raise RmapdError(
            "rmapd top needs a terminal",
            why="its standard input or its standard error is none",
            hint="rmapd status, or rmapd events",
        )
    try:
        from tracer.client.top.app import run
    except ImportError as error:
        if (error.name or "").partition(".")[0] != "textual":
            raise
        raise RmapdError(
            "rmapd top cannot draw",
            why=f"it needs Textual: {error}",
            hint="make install EXTRAS=top, or pip install 'rmapd[top]'",
        ) from error
    with logs.held_back():
        run(client, max(0.5, interval))


COMMANDS = (status, events, top)
