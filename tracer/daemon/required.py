"""Required invariants (--require, --strict), and the error where one cannot be checked."""

from __future__ import annotations

from collections.abc import Mapping

from tracer import ids
from tracer.config import Config
from tracer.errors import NotCheckable
from tracer.invariants.base import Coverage, Invariant


def required(config: Config, invariants: Mapping[str, Invariant]) -> tuple[str, ...]:
    """Return the ids of the required invariants; with strict: of all."""
    return tuple(name for name in invariants if name in config.require or config.strict)


def check(
    config: Config,
    invariants: Mapping[str, Invariant],
    coverage: Mapping[str, tuple[Coverage, str]],
    oracle_reason: str,
) -> None:
    """Raise RmapdError for an unknown invariant, NotCheckable for one that lacks required coverage.

    oracle_reason: why the page-table oracle cannot be used, or empty.
    """
    if wrong := [name for name in config.require if name not in invariants]:
        titles = {name: one.title for name, one in invariants.items()}
        raise ids.unknown(f"cannot require {','.join(config.require)}", wrong, titles)
    for name in config.require:
        level, reason = coverage[name]
        if level is Coverage.NONE:
            raise NotCheckable(
                f"{name} is required and cannot be checked here", why=reason, hint="rmapd doctor"
            )
    if config.strict:
        lost = [
            f"{name}: {level} ({why})"
            for name, (level, why) in coverage.items()
            if level is not Coverage.FULL
        ]
        if lost or oracle_reason:
            raise NotCheckable(
                "--strict: coverage is not full",
                why="; ".join([*lost, *filter(None, [oracle_reason])]),
                hint="rmapd doctor",
            )
