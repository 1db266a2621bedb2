"""The configuration: TOML, every key known, every value of the right type and in range."""

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

from tracer import bounded_input
from tracer.errors import RmapdError

CHANGEABLE = (
    "max_entry_age_seconds",
    "settle_seconds",
    "scan_seconds",
    "budget",
    "sampled_windows",
)
"""What a running daemon takes over at SIGHUP; all else is about what is attached, and needs a restart."""
STORE = "/var/lib/rmapd/rmapd.db"
LEVELS = ("full", "sampled", "owner", "migration")
"""Levels of fidelity, in the governor's order."""
FIDELITIES = ("auto", *LEVELS)
_FILES = ("web_config", "cache", "lock_file", "store")


def _says(meaning: str) -> msgspec.Meta:
    """What the example and docs/CONFIGURATION.md say of a key."""
    return msgspec.Meta(description=meaning)


class Maps(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Rows of the BPF maps: the bound on kernel memory. A full map is counted and turns checks unverifiable."""

    ledger_rows: Annotated[int, _says("a migration entry outstanding")] = 65536
    frozen_rows: Annotated[int, _says("a PMD that a THP split turned into migration entries")] = (
        1024
    )
    visit_rows: Annotated[
        int, _says("a VMA visited by a second rmap walk (the oldest gives way)")
    ] = 131072
    migration_rows: Annotated[int, _says("a task inside migrate_pages()")] = 4096
    mm_rows: Annotated[int, _says("an mm between its last task's exit and exit_mmap()")] = 16384
    order_rows: Annotated[
        int, _says("a pair of mmap_locks that were nested (the oldest gives way)")
    ] = 4096
    stack_rows: Annotated[
        int,
        _says(
            "a distinct kernel stack of an event, and another of a window in the flight recorder; a power of two"
        ),
    ] = 4096
    ring_pages: Annotated[int, _says("a page of the event ring; a power of two")] = 16
    protocol_rows: Annotated[int, _says("a distinct protocol")] = 4096
    hold_rows: Annotated[
        int, _says("an rwsem held by a task in a window (the oldest gives way)")
    ] = 16384
    flight_rows: Annotated[
        int, _says("a window in the flight recorder, per CPU; a power of two")
    ] = 1024

    def sizes(self) -> dict[str, int]:
        """As the programs' macros name them, with the fixed ones."""
        fixed = {"FORK_WINDOWS": 32, "QUERIES": 256, "HITS": 8192, "UPPERS": 8192, "LEAVES": 16384}
        return {name.upper(): getattr(self, name) for name in self.__struct_fields__} | fixed


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Every setting with its default."""

    listen: Annotated[str, _says("address and port of /metrics, the page and /api/")] = (
        "127.0.0.1:9743"
    )
    web_config: Annotated[
        str,
        _says(
            "file with TLS, users and headers of that port (ACCESS.md); empty: plain HTTP for everybody"
        ),
    ] = ""
    fidelity: Annotated[
        str,
        _says(
            "`migration`: the ledger and the oracle; `owner`: also windows, trees and who owns their locks; `sampled`: also all rwsems, in "
            "some of the windows; `full`, `auto`: in all"
        ),
    ] = "auto"
    require: Annotated[list[str], _says("invariants that must be checkable, else exit 4")] = []
    strict: Annotated[
        bool, _says("any invariant that is checked less than in full is fatal, exit 4")
    ] = False
    statistics: Annotated[
        bool,
        _says(
            "the kernel's run times per program (`rmapd_probe_run*`); costs a quarter of what the mmap_lock probes cost (COST.md)"
        ),
    ] = True
    drop_privileges: Annotated[
        bool,
        _says(
            "`run`: once attached, give up root's user id and every capability that judging does not need, for good (OPERATING.md)"
        ),
    ] = True
    user: Annotated[
        str,
        _says(
            "`run`, started by root: the user that it becomes with drop_privileges; where there is no `rmapd`, `nobody`"
        ),
    ] = "rmapd"
    budget: Annotated[
        float,
        _says(
            "`run` with fidelity `auto`: the share of the machine's CPU time that programs may take before fidelity is lowered"
        ),
    ] = 0.01
    sampled_windows: Annotated[
        int,
        _says(
            "where windows are sampled: of each function how many outermost windows are booked a second, on each CPU"
        ),
    ] = 1000
    max_entry_age_seconds: Annotated[float, _says("M4: how long a migration entry may live")] = 10.0
    settle_seconds: Annotated[
        float, _says("`exec`: how long to wait at the end for migrations that are under way")
    ] = 5.0
    scan_seconds: Annotated[
        float, _says("how often all page tables are searched without a suspect; 0: never")
    ] = 60.0
    otlp_endpoint: Annotated[
        str,
        _says(
            "`run`: where violations go as OTLP logs, e.g. `http://collector:4318/v1/logs`; empty: nowhere (FLEET.md)"
        ),
    ] = ""
    otlp_timeout_seconds: Annotated[
        float, _says("how long one attempt to send to `otlp_endpoint` may take")
    ] = 10.0
    cache: Annotated[
        str, _says("a folder for compiled probes: the next start is a second sooner; empty: none")
    ] = "/var/cache/rmapd"
    lock_file: Annotated[str, _says("held by the one rmapd that traces this kernel")] = (
        "/run/rmapd/rmapd.lock"
    )
    store: Annotated[
        str, _says("`run`: the SQLite file that what was found outlives the daemon in; empty: none")
    ] = STORE
    store_bytes: Annotated[
        int,
        _says(
            "the store's size; beyond it what was not met for longest is forgotten, not its counts"
        ),
    ] = 64 << 20
    store_days: Annotated[
        float, _says("how long a signature that is not met again is kept, and a run")
    ] = 90.0
    hang_seconds: Annotated[
        float,
        _says(
            "how long a judge may give no sign of life before it counts as dead, where rmapd supervises itself (OPERATING.md)"
        ),
    ] = 300.0
    maps: Maps = Maps()

    @property
    def address(self) -> tuple[str, int]:
        host, _, port = self.listen.rpartition(":")
        return host.strip("[]"), int(port)


def load(
    path: Path | None, environ: Mapping[str, str] | None = None, /, **overrides: object
) -> Config:
    """Read a configuration file (none: the defaults), apply the environment, then flags; check all. RmapdError names file and key."""
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
    _check(config, str(path) if path else "the command line or the environment")
    return config


def _group() -> str:
    """Of this process."""
    try:
        return grp.getgrgid(os.getegid()).gr_name
    except KeyError:
        return str(os.getegid())


def _keys(of: type[msgspec.Struct], before: str = "") -> Iterator[tuple[str, Any]]:
    """(name, field) of every key; those of a table as TABLE_KEY."""
    for field in msgspec.structs.fields(of):
        if isinstance(field.type, type) and issubclass(field.type, msgspec.Struct):
            yield from _keys(field.type, f"{before}{field.name}_")
        else:
            yield before + field.name, field


def _from_environment(config: Config, environ: Mapping[str, str]) -> Config:
    """RMAPD_LISTEN, RMAPD_MAPS_LEDGER_ROWS and so on; a list is separated by commas. A name that is nearly one of these is an error."""
    known = {f"RMAPD_{name.upper()}": field for name, field in _keys(Config)}
    top: dict[str, Any] = {}
    rows: dict[str, Any] = {}
    for variable, text in environ.items():
        if field := known.get(variable):
            where = rows if variable.startswith("RMAPD_MAPS_") else top
            where[field.name] = _value(variable, text, field.type)
        elif variable.startswith("RMAPD_") and (
            near := difflib.get_close_matches(variable, known, 1, cutoff=0.88)
        ):
            raise RmapdError(
                f"the environment has {variable}", why="there is no such key", hint=near[0]
            )
    return msgspec.structs.replace(config, **top, maps=msgspec.structs.replace(config.maps, **rows))


def _value(variable: str, text: str, kind: Any) -> Any:
    is_list = get_origin(get_args(kind)[0]) is list
    given: object = [part.strip() for part in text.split(",") if part.strip()] if is_list else text
    try:
        return msgspec.convert(given, kind, strict=False)
    except msgspec.ValidationError as error:
        raise RmapdError(
            f"{variable} in the environment is wrong",
            why=str(error),
            hint="docs/CONFIGURATION.md has its type",
        ) from error


def example() -> str:
    """A commented configuration: every key with its meaning and its default, none of them set."""
    head = "# rmapd's configuration: every key with its default. Made by `rmapd check-config --example`.\n"
    return head + _as_toml(
        Config(), lambda field, value: f"\n# {meaning(field)}\n#{field.name} = {value}\n"
    )


def in_force(config: Config) -> str:
    """The configuration as TOML: what file, environment and flags came to."""
    return _as_toml(config, lambda field, value: f"{field.name} = {value}\n")


def _as_toml(of: msgspec.Struct, line: Callable[[Any, str], str]) -> str:
    """Keys first, then tables, as TOML demands."""
    plain, tables = "", ""
    for field in msgspec.structs.fields(of):
        value = getattr(of, field.name)
        if isinstance(value, msgspec.Struct):
            tables += f"\n# {type(value).__doc__}\n[{field.name}]\n" + _as_toml(value, line)
        else:
            plain += line(field, json.dumps(value))
    return plain + tables


def meaning(field: Any) -> str:
    """What a key of Config or Maps is for."""
    return str(get_args(field.type)[1].description)


def _suggestion(message: str) -> str:
    """The known key nearest to an unknown one."""
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
    if not host or not port.isdigit() or int(port) > 65535:
        raise wrong("listen", f"{config.listen!r} is not ADDR:PORT", "127.0.0.1:9743")
    if config.fidelity not in FIDELITIES:
        raise wrong(
            "fidelity", f"{config.fidelity!r} is not one of {', '.join(FIDELITIES)}", "auto"
        )
    if not 0 < config.budget <= 1:
        raise wrong(
            "budget", f"{config.budget} is no share: above 0, and 1 at most", f"{Config().budget:g}"
        )
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
    _check_maps(config.maps, wrong)


def _check_maps(maps: Maps, wrong: Callable[[str, str, str], RmapdError]) -> None:
    for name in Maps.__struct_fields__:
        value = getattr(maps, name)
        if not 1 <= value <= 1 << 24:
            raise wrong(
                f"maps.{name}",
                f"{value} is not between 1 and {1 << 24}",
                str(getattr(Maps(), name)),
            )
    for name in ("ring_pages", "stack_rows", "flight_rows"):
        value = getattr(maps, name)
        if value & (value - 1):
            raise wrong(
                f"maps.{name}", f"{value} is not a power of two", str(getattr(Maps(), name))
            )
