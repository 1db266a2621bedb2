"""What the status of a daemon means as an exit code: for scripts, and for a message of the day."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tracer import ids
from tracer.client.answers import Seen
from tracer.errors import NOT_CHECKABLE, UNREACHABLE, VIOLATED
from tracer.results.standing import STALLED_SECONDS
from tracer.time_text import two_units


@dataclass(frozen=True)
class Health:
    """An exit code of docs/COMMANDS.md, and the reason in a sentence where it is not 0."""

    exit_code: int = 0
    reason: str = ""


def health(seen: Seen, require: Sequence[str] = ()) -> Health:
    """Return the health of a daemon that answers.

    require: ids of invariants that must be checkable, beside those that the daemon's own
    configuration requires. A violation comes first: it stays true even if the daemon hangs. Raises
    RmapdError for an id that the daemon does not know.
    """
    status = seen.status
    if wrong := [name for name in require if name not in status.invariants]:
        raise ids.unknown(
            f"cannot require {','.join(require)}",
            wrong,
            status.invariants,
            "rmapd there knows no invariant",
            f"some of {', '.join(status.invariants)}",
        )
    if violated := [name for name, one in status.invariants.items() if one.checks.violated]:
        return Health(VIOLATED, f"violated: {', '.join(violated)}")
    if not status.gate_open:
        return Health(UNREACHABLE, "the gate is closed: the daemon is ending")
    if seen.age_seconds > STALLED_SECONDS:
        return Health(
            UNREACHABLE,
            f"the checker hangs: it has read no tables for {two_units(seen.age_seconds)}",
        )
    wanted = dict.fromkeys([*status.required, *require])
    if lacking := [name for name in wanted if status.invariants[name].coverage == "none"]:
        why = "; ".join(f"{name} ({status.invariants[name].reason})" for name in lacking)
        return Health(NOT_CHECKABLE, f"required, and not checked here: {why}")
    return Health()
