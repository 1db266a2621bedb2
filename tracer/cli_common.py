"""What the commands share: their options, the configuration and the log."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import msgspec
from click.shell_completion import CompletionItem

from tracer import config as configuration
from tracer import ids, logs
from tracer.cli_help import SectionOption
from tracer.errors import RmapdError
from tracer.invariants.catalogue import discover

_DEFAULT_CONFIG = Path("/etc/rmapd/rmapd.toml")
LOG_SECTION = "Log options"


def complete_ids(
    _ctx: click.Context, _parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Complete the last id of a list for the shell, with the title as its help."""
    before, _, last = incomplete.rpartition(",")
    head = f"{before}," if before else ""
    start = ids.canonical(last)
    return [
        CompletionItem(head + name, help=one.title)
        for name, one in discover().items()
        if name.startswith(start)
    ]


config_option = click.option(
    "--config",
    type=click.Path(path_type=Path),
    metavar="FILE",
    envvar="RMAPD_CONFIG",
    help=f"Configuration in TOML (default {_DEFAULT_CONFIG}, if it exists).",
)
fidelity_option = click.option(
    "--fidelity",
    type=click.Choice(configuration.FIDELITIES),
    metavar="LEVEL",
    help="How much to probe: full, sampled, owner or migration, from the most to the least; or"
    " auto: full, and run lowers it where it costs too much (default auto).",
)
require_option = click.option(
    "--require",
    metavar="IDS",
    shell_complete=complete_ids,
    help="Exit with 4 where one of these invariants cannot be checked here, such as M1,L2"
    " (rmapd explain --list has all).",
)
store_option = click.option(
    "--store",
    metavar="FILE",
    help=f"Keep findings in this SQLite file (default {configuration.STORE}; '': in none).",
)
Decorator = Callable[[Callable[..., None]], Callable[..., None]]


def file_option(*names: str, help: str, metavar: str = "FILE", required: bool = False) -> Decorator:
    """Make an option that takes a file."""
    kind: Any = click.Path(path_type=Path, dir_okay=False)
    return click.option(*names, type=kind, metavar=metavar, required=required, help=help)


def way_option(help: str) -> Decorator:
    """Make the option --daemon of exec and of what runs it: whether to use the daemon that runs."""
    return click.option(
        "--daemon",
        "way",
        type=click.Choice(("auto", "only", "never")),
        metavar="WAY",
        default="auto",
        show_default=True,
        help=help,
    )


def format_option(*forms: str) -> Decorator:
    """Make the option --format; the first form is the default."""
    kind, names = click.Choice(forms), f"{', '.join(forms[:-1])} or {forms[-1]}"
    return click.option(
        "--format",
        "form",
        type=kind,
        metavar="FORMAT",
        default=forms[0],
        show_default=True,
        help=f"Write {names}.",
    )


def _seconds(text: str) -> float:
    """Return the time in seconds. Raises click.BadParameter where it is none, or below 0."""
    try:
        found = float(text)
    except ValueError:
        found = math.nan
    if not found >= 0:
        raise click.BadParameter(f"{text} is no time in seconds: a number from 0 on.")
    return found


def seconds_option(
    name: str, *, help: str, default: float | None = None, section: str = "Options"
) -> Decorator:
    """Make an option that takes a time in seconds. section: of the help."""
    return click.option(
        name,
        type=_seconds,
        metavar="SECONDS",
        default=default,
        show_default=default is not None,
        help=help,
        cls=SectionOption,
        section=section,
    )


@dataclass(frozen=True)
class LogChoice:
    """What the command line chooses for the log.

    level, form: None where it does not. steps: how much further than the level, towards `debug`;
    negative with -q.
    """

    level: str | None = None
    form: str | None = None
    steps: int = 0

    @property
    def quiet(self) -> bool:
        """Whether -q is given: no progress is shown."""
        return self.steps < 0

    def chosen(self, settings: configuration.Config, default: str) -> configuration.Config:
        """Return the settings with the level that applies. default: where none is configured."""
        level = logs.stepped(logs.level_named(settings.log_level or default), self.steps)
        return msgspec.structs.replace(settings, log_level=level)


def _early_format(_ctx: click.Context, _option: click.Parameter, form: str | None) -> str | None:
    """Write errors in this format, too, also those of the configuration."""
    if form:
        logs.choose_format(form)
    return form


def log_options(*, steps: bool = True, progress: bool = False) -> Decorator:
    """Make the options of the log; the command gets them as `log`, a LogChoice.

    steps: with -v and -q. progress: the command shows progress, which -q switches off.
    """
    option = functools.partial(click.option, cls=SectionOption, section=LOG_SECTION)
    level = option(
        "--log-level",
        metavar="LEVEL",
        help="Log what is as severe or more: emerg, alert, crit, err, warning, notice, info or"
        " debug.",
    )
    form = option(
        "--log-format",
        type=click.Choice(logs.FORMATS),
        metavar="FORMAT",
        callback=_early_format,
        help="Write the log as text or as json, one object a line (default text).",
    )
    more = option("-v", "--verbose", count=True, help="Log more; -vv still more.")
    meaning = "Log less, and show no progress." if progress else "Log less; -qq still less."
    less = option("-q", "--quiet", count=True, help=meaning)

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def with_log(
            *args: Any,
            log_level: str | None,
            log_format: str | None,
            **others: Any,
        ) -> None:
            further, back = (others.pop("verbose"), others.pop("quiet")) if steps else (0, 0)
            if (log_level is not None) + bool(further) + bool(back) > 1:
                raise click.UsageError("--log-level, -v and -q exclude each other")
            command(*args, log=LogChoice(log_level, log_format, further - back), **others)

        decorated = level(form(with_log))
        return more(less(decorated)) if steps else decorated

    return decorate


def config_path(config: Path | None) -> Path | None:
    """Return the file that is given, or the default one if it exists."""
    try:
        there = _DEFAULT_CONFIG.exists()
    except PermissionError:  # it may exist: reading it then reports the error
        there = True
    return config or (_DEFAULT_CONFIG if there else None)


def load_settings(
    config: Path | None,
    require: str | None,
    log: LogChoice | None = None,
    default_level: str = "warning",
    **overrides: object,
) -> configuration.Config:
    """Read the configuration; flags win. Raises RmapdError.

    require: ids with commas between. log: resolve the level of the log, which is default_level
    where nothing chooses one; None: leave it as it is configured.
    """
    path = config_path(config)
    required = configuration.names(require) if require is not None else None
    chosen = {"log_level": log.level, "log_format": log.form} if log else {}
    settings = configuration.load(path, os.environ, require=required, **chosen, **overrides)
    titles = {name: one.title for name, one in discover().items()}
    if wrong := [name for name in settings.require if name not in titles]:
        raise ids.unknown(f"cannot require {','.join(settings.require)}", wrong, titles)
    return log.chosen(settings, default_level) if log else settings


def start_log(settings: configuration.Config) -> configuration.Config:
    """Let the log be what these settings choose; return them."""
    logs.configure(settings.log_level, settings.log_format)
    return settings


def require_privilege() -> None:
    """Raise RmapdError where this process may not load BPF programs."""
    from tracer.daemon.installation import cannot_attach, effective

    if why := cannot_attach(
        effective(Path("/proc/self/status").read_text(encoding="utf-8", errors="replace"))
    ):
        raise RmapdError("not enough privilege to load BPF programs", why=why, hint="sudo rmapd …")
