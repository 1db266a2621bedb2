"""The configuration in TOML: unknown keys, wrong types and values out of range are errors."""

from __future__ import annotations

import difflib
import grp
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import msgspec

from tracer import bounded_input, ids, logs
from tracer.config_maps import Maps, check_maps
from tracer.config_maps import help_text as _help
from tracer.errors import RmapdError
from tracer.printable import without_login

CHANGEABLE = (
    "max_entry_age_seconds",
    "max_wait_seconds",
    "settle_seconds",
    "scan_seconds",
    "budget",
    "sampled_windows",
    "log_level",
    "log_format",
)
"""Keys that a running daemon takes over at SIGHUP; the others concern attaching: restart it."""
STORE = "/var/lib/rmapd/rmapd.db"
LEVELS = ("full", "sampled", "owner", "migration")
"""Levels of fidelity, from the most to the least that is probed."""
FIDELITIES = ("auto", *LEVELS)
_FILES = ("web_config", "cache", "lock_file", "store")


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Every setting with its default."""

    listen: Annotated[str, _help("address and port of /metrics, the web page and /api/")] = (
        "127.0.0.1:9743"
    )
    web_config: Annotated[
        str,
        _help(
            "file with TLS, users and headers for that port (ACCESS.md); empty: plain HTTP "
            "without passwords"
        ),
    ] = ""
    fidelity: Annotated[
        str,
        _help(
            "how much to probe. `migration`: the ledger and the oracle; `owner`: also "
            "windows, trees and the owners of their locks; `sampled`: also all rwsems, in "
            "some of the windows; `full`: in all of them; `auto`: `full`, and `run` lowers it"
            " to keep within `budget`"
        ),
    ] = "auto"
    require: Annotated[
        list[str], _help("invariants that must be checkable; exit with 4 where one is not")
    ] = []
    strict: Annotated[
        bool, _help("exit with 4 where any invariant has less than full coverage")
    ] = False
    statistics: Annotated[
        bool,
        _help(
            "let the kernel measure the run time of each program (`rmapd_probe_run*`), one second "
            "in thirty"
        ),
    ] = True
    drop_privileges: Annotated[
        bool,
        _help(
            "`run`: once attached, drop root's user id and all capabilities that checking "
            "does not need, for good (OPERATING.md)"
        ),
    ] = True
    user: Annotated[
        str,
        _help(
            "`run` started by root: the user that it becomes with drop_privileges; `nobody` "
            "where the user `rmapd` does not exist"
        ),
    ] = "rmapd"
    budget: Annotated[
        float,
        _help(
            "`run` with fidelity `auto`: the share of the machine's CPU time that BPF "
            "programs may take before fidelity is lowered"
        ),
    ] = 0.01
    sampled_windows: Annotated[
        int,
        _help(
            "where windows are sampled: how many outermost windows of each function are "
            "recorded per second on each CPU"
        ),
    ] = 1000
    audit_budget: Annotated[
        float,
        _help("share of one CPU that the audit of all mms' trees may take; 0: no audit"),
    ] = 0.001
    max_entry_age_seconds: Annotated[float, _help("M4: the age limit of a migration entry")] = 10.0
    max_wait_seconds: Annotated[
        float,
        _help("L7: how long a wait for a lock of an mm, or a sleep in a window, may last"),
    ] = 30.0
    settle_seconds: Annotated[
        float, _help("`exec`: how long to wait at the end for migrations in progress")
    ] = 5.0
    scan_seconds: Annotated[
        float, _help("how often all page tables are searched even without a suspect; 0: never")
    ] = 60.0
    otlp_endpoint: Annotated[
        str,
        _help(
            "`run`: URL that violations are sent to as OTLP logs, for example "
            "`http://collector:4318/v1/logs`; empty: none (FLEET.md)"
        ),
    ] = ""
    otlp_timeout_seconds: Annotated[
        float, _help("time limit of one attempt to send to `otlp_endpoint`")
    ] = 10.0
    cache: Annotated[
        str,
        _help(
            "folder for compiled probes, which makes the next start a second faster; empty: none"
        ),
    ] = "/var/cache/rmapd"
    lock_file: Annotated[
        str,
        _help(
            "the lock file of the one rmapd that traces this kernel; the folder of this name"
            " with `.exec` has the socket by which `exec` uses a daemon (COMMANDS.md)"
        ),
    ] = "/run/rmapd/rmapd.lock"
    store: Annotated[
        str,
        _help("`run`: the SQLite file with all findings, which outlives the daemon; empty: none"),
    ] = STORE
    store_bytes: Annotated[
        int,
        _help(
            "size limit of the store; beyond it the least recently seen signatures are "
            "deleted, and their counts are kept"
        ),
    ] = 64 << 20
    store_days: Annotated[
        float, _help("how long a run is kept, and a signature that is not seen again")
    ] = 90.0
    hang_seconds: Annotated[
        float,
        _help(
            "how long the checker process may give no sign of life before it counts as dead, "
            "where rmapd supervises itself (OPERATING.md)"
        ),
    ] = 300.0
    log_level: Annotated[
        str,
        _help(
            "the least severe messages that the log has: `emerg`, `alert`, `crit`, `err`, "
            "`warning`, `notice`, `info` or `debug`; empty: `info` for `run`, else `warning`"
        ),
    ] = ""
    log_format: Annotated[
        str, _help("the log as `text`, or as `json`: one object a line (OPERATING.md)")
    ] = "text"
    maps: Maps = Maps()

    @property
    def address(self) -> tuple[str, int]:
        """The host and the port of `listen`."""
        host, _, port = self.listen.rpartition(":")
        return host.strip("[]"), int(port)


def load(
    path: Path | None, environ: Mapping[str, str] | None = None, /, **overrides: object
) -> Config:
    """Read a configuration file, apply the environment, then flags, and check the result.

    path None: no file. overrides: values of flags; None: not given. Raises RmapdError with the file
    and the key.
    """
    config = Config()
    if path is not None:
        try:
            closed = os.access(path, os.F_OK, effective_ids=True) and not os.access(
                path, os.R_OK, effective_ids=True
            )
            hint = f"chgrp {_group()} {path} && chmod g+r {path}" if closed else ""
            content = bounded_input.text(
                path, "the configuration", bounded_input.MOST_CONFIGURATION, hint
            )
            config = msgspec.toml.decode(content, type=Config)
        except (msgspec.DecodeError, RecursionError) as error:
            raise RmapdError(
                f"the configuration {path} is wrong", why=str(error), hint=_suggestion(str(error))
            ) from error
    config = _from_environment(config, environ or {})
    config = msgspec.structs.replace(
        config, **{key: value for key, value in overrides.items() if value is not None}
    )
    config = msgspec.structs.replace(config, require=ids.all_canonical(config.require))
    _check(config, str(path) if path else "the command line or the environment")
    return config


def _group() -> str:
    """Return the name of this process's group."""
    try:
        return grp.getgrgid(os.getegid()).gr_name
    except KeyError:
        return str(os.getegid())


def _keys(of: type[msgspec.Struct], before: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (name, field) of every key; a key of a table is named TABLE_KEY."""
    for field in msgspec.structs.fields(of):
        if isinstance(field.type, type) and issubclass(field.type, msgspec.Struct):
            yield from _keys(field.type, f"{before}{field.name}_")
        else:
            yield before + field.name, field


def _from_environment(config: Config, environ: Mapping[str, str]) -> Config:
    """Apply RMAPD_LISTEN, RMAPD_MAPS_LEDGER_ROWS and so on; commas separate the items of a list.

    A name that is similar to one of these is an error.
    """
    known = {f"RMAPD_{name.upper()}": field for name, field in _keys(Config)}
    top: dict[str, Any] = {}
    rows: dict[str, Any] = {}
    for variable, text in environ.items():
        if field := known.get(variable):
            where = rows if variable.startswith("RMAPD_MAPS_") else top
            where[field.name] = _value(variable, text, field.type)
        elif re.match(r"RMAPD_(?!API_)", variable) and (  # RMAPD_API_…: of tracer/client/
            near := difflib.get_close_matches(variable, known, 1, cutoff=0.88)
        ):
            raise RmapdError(
                f"the environment has {variable}", why="there is no such key", hint=near[0]
            )
    return msgspec.structs.replace(config, **top, maps=msgspec.structs.replace(config.maps, **rows))


def names(text: str) -> list[str]:
    """Return the names in a text with commas between."""
    return [part.strip() for part in text.split(",") if part.strip()]


def _value(variable: str, text: str, kind: Any) -> Any:
    is_list = get_origin(get_args(kind)[0]) is list
    given: object = names(text) if is_list else text
    try:
        return msgspec.convert(given, kind, strict=False)
    except msgspec.ValidationError as error:
        raise RmapdError(
            f"{variable} in the environment is wrong",
            why=str(error),
            hint="docs/CONFIGURATION.md has its type",
        ) from error


def example() -> str:
    """Return a configuration with every key in a comment, with its meaning and its default."""
    head = (
        "# rmapd's configuration: every key with its default."
        " Made by `rmapd check-config --example`.\n"
    )
    return head + _as_toml(
        Config(), lambda field, value: f"\n# {meaning(field)}\n#{field.name} = {value}\n"
    )


def in_force(config: Config) -> str:
    """Return the effective configuration as TOML, without logins: it is printed into logs."""
    return _as_toml(config, lambda field, value: f"{field.name} = {without_login(value)}\n")


def _as_toml(of: msgspec.Struct, line: Callable[[Any, str], str]) -> str:
    """Format the keys, then the tables: TOML needs this order."""
    plain, tables = "", ""
    for field in msgspec.structs.fields(of):
        value = getattr(of, field.name)
        if isinstance(value, msgspec.Struct):
            tables += f"\n# {type(value).__doc__}\n[{field.name}]\n" + _as_toml(value, line)
        else:
            plain += line(field, json.dumps(value))
    return plain + tables


def meaning(field: Any) -> str:
    """Return the help text of a key of Config or Maps."""
    return str(get_args(field.type)[1].description)


def _suggestion(message: str) -> str:
    """Return the known key that is most similar to an unknown one, or a hint."""
    unknown = re.search(r"unknown field `(\w+)`", message)
    if not unknown:
        return "see docs/CONFIGURATION.md for each key's type and default"
    known = [*Config.__struct_fields__, *Maps.__struct_fields__]
    near = difflib.get_close_matches(unknown[1], known, 1)
    return f"{near[0]}" if near else f"one of {', '.join(known)}"


def _check(config: Config, where: str) -> None:
    def wrong(key: str, why: str, hint: str) -> RmapdError:
        return RmapdError(f"{key} in {where} is wrong", why=why, hint=hint)

    host, _, port = config.listen.rpartition(":")
    if not host or not re.fullmatch("[0-9]{1,5}", port) or int(port) > 65535:
        raise wrong("listen", f"{config.listen!r} is not ADDR:PORT", "127.0.0.1:9743")
    if config.fidelity not in FIDELITIES:
        raise wrong(
            "fidelity", f"{config.fidelity!r} is not one of {', '.join(FIDELITIES)}", "auto"
        )
    if config.log_level and config.log_level.lower() not in (*logs.LEVELS, *logs.ALIASES):
        raise wrong(
            "log_level", f"{config.log_level!r} is no level", f"one of {', '.join(logs.LEVELS)}"
        )
    if config.log_format not in logs.FORMATS:
        raise wrong(
            "log_format",
            f"{config.log_format!r} is not one of {', '.join(logs.FORMATS)}",
            logs.FORMATS[0],
        )
    if not 0 < config.budget <= 1:
        raise wrong(
            "budget", f"{config.budget} is not above 0 and at most 1", f"{Config().budget:g}"
        )
    if not 0 <= config.audit_budget <= 1:
        raise wrong("audit_budget", f"{config.audit_budget} is not between 0 and 1", "0.001")
    if not 1 <= config.sampled_windows <= 10**9:
        raise wrong(
            "sampled_windows",
            f"{config.sampled_windows} is not between 1 and 1000000000",
            str(Config().sampled_windows),
        )
    if config.otlp_endpoint and not re.fullmatch(r"https?://[^\s/]+(/\S*)?", config.otlp_endpoint):
        raise wrong(
            "otlp_endpoint",
            f"{config.otlp_endpoint!r} is not a URL",
            "http://127.0.0.1:4318/v1/logs",
        )
    least_of = {
        "max_entry_age_seconds": 0.1,
        "max_wait_seconds": 1.0,
        "settle_seconds": 0.0,
        "scan_seconds": 0.0,
        "otlp_timeout_seconds": 0.1,
        "store_days": 0.04,
    }
    least_of["hang_seconds"] = 5.0
    for name, least in least_of.items():
        if not least <= getattr(config, name) <= 1e6:
            raise wrong(
                name,
                f"{getattr(config, name)} is not between {least:g} and 1000000",
                f"{getattr(Config(), name):g}",
            )
    if not 1 << 18 <= config.store_bytes <= 1 << 40:
        raise wrong(
            "store_bytes",
            f"{config.store_bytes} is not between {1 << 18} and {1 << 40}",
            str(64 << 20),
        )
    if unclean := [name for name in _FILES if "\0" in getattr(config, name)]:
        raise wrong(
            unclean[0],
            f"{getattr(config, unclean[0])!r} has a character that no file name can have",
            "without it",
        )
    check_maps(config.maps, wrong)
