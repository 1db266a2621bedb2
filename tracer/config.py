"""The configuration: TOML, every key known, every value of the right type and in range."""

from __future__ import annotations

import difflib
import re
from pathlib import Path

import msgspec

from tracer.errors import RmapdError

FIDELITIES = ("auto", "full", "owner", "migration")


class Maps(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Rows of the BPF maps: the bound on kernel memory. A full map is counted and turns checks unverifiable."""

    ledger_rows: int = 65536
    frozen_rows: int = 1024
    visit_rows: int = 131072
    migration_rows: int = 4096
    mm_rows: int = 16384
    lock_rows: int = 16384
    order_rows: int = 4096
    stack_rows: int = 4096
    ring_pages: int = 16
    task_rows: int = 4096
    frame_rows: int = 8192
    protocol_rows: int = 4096
    hold_rows: int = 16384
    flight_rows: int = 1024

    def sizes(self) -> dict[str, int]:
        """As the programs' macros name them, with the fixed ones."""
        fixed = {"FORK_WINDOWS": 32, "QUERIES": 256, "HITS": 8192, "UPPERS": 8192, "LEAVES": 16384}
        return {name.upper(): getattr(self, name) for name in self.__struct_fields__} | fixed


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Every setting with its default."""

    listen: str = "127.0.0.1:9743"
    fidelity: str = "auto"
    require: list[str] = []
    strict: bool = False
    statistics: bool = True
    welcome_seconds: float = 10.0
    settle_seconds: float = 5.0
    patrol_seconds: float = 60.0
    lock_file: str = "/run/rmapd.lock"
    maps: Maps = Maps()

    @property
    def address(self) -> tuple[str, int]:
        host, _, port = self.listen.rpartition(":")
        return host.strip("[]"), int(port)


def load(path: Path | None, **overrides: object) -> Config:
    """Read a configuration file (none: the defaults), apply flags, check everything. RmapdError names file and key."""
    config = Config()
    if path is not None:
        try:
            config = msgspec.toml.decode(path.read_bytes(), type=Config)
        except OSError as error:
            raise RmapdError(f"cannot read the configuration {path}", why=error.strerror or str(error)) from error
        except msgspec.DecodeError as error:
            raise RmapdError(f"the configuration {path} is wrong", why=str(error), hint=_suggestion(str(error))) from error
    config = msgspec.structs.replace(config, **{key: value for key, value in overrides.items() if value is not None})
    _check(config, str(path) if path else "the command line")
    return config


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
        raise wrong("fidelity", f"{config.fidelity!r} is not one of {', '.join(FIDELITIES)}", "auto")
    for name, least in (("welcome_seconds", 0.1), ("settle_seconds", 0.0), ("patrol_seconds", 0.0)):
        if not least <= getattr(config, name) <= 1e6:
            raise wrong(name, f"{getattr(config, name)} is not between {least:g} and 1000000", f"{getattr(Config(), name):g}")
    for name in Maps.__struct_fields__:
        value = getattr(config.maps, name)
        if not 1 <= value <= 1 << 24:
            raise wrong(f"maps.{name}", f"{value} is not between 1 and {1 << 24}", str(getattr(Maps(), name)))
    for name in ("ring_pages", "stack_rows", "flight_rows"):
        value = getattr(config.maps, name)
        if value & (value - 1):
            raise wrong(f"maps.{name}", f"{value} is not a power of two", str(getattr(Maps(), name)))
