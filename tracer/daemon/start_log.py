"""What the log has at the start: the hooks by reason, the coverage, the gate and the address."""

from __future__ import annotations

import logging

from tracer import logs
from tracer.invariants.base import Coverage
from tracer.results.hook_groups import WARNED_OF, GroupKind, HookGroups, group
from tracer.results.snapshot import Snapshot
from tracer.results.standing import ReasonKind
from tracer.results.standing_facts import standing

log = logging.getLogger("rmapd")

_HOW = {Coverage.FULL: "in full", Coverage.PARTIAL: "in part", Coverage.NONE: "not"}
_KNOWN_HERE = (ReasonKind.NOTHING, ReasonKind.COVERAGE, ReasonKind.HOOKS)
"""Reasons of the standing that a start need not name: nothing was checked yet, and coverage and
hooks have lines of their own."""


def log_start(snapshot: Snapshot, url: str = "") -> None:
    """Log what is watched, what is not and why, and that the gate is open.

    A hook that the kernel could have and that could not be attached is a warning, as is a gap that
    an operator asked not to have. url: of the web server; empty where there is none.
    """
    _log_hooks(group(snapshot.hooks, snapshot.invariants))
    for hook in snapshot.hooks:
        if not hook.on:
            log.debug("hook %s is %s: %s", hook.hook.name, hook.state, hook.reason)
    if snapshot.oracle_reason:
        log.warning(
            "the page-table oracle is not calibrated (%s): suspects stay suspects",
            snapshot.oracle_reason,
        )
    _log_coverage(snapshot)
    for kind, reason in standing(snapshot).reasons.items():
        if kind not in _KNOWN_HERE:
            log.warning("%s", reason)
    where = f", {url}/metrics" if url else ""
    log.info(
        "gate open on %s, fidelity %s%s",
        snapshot.kernel,
        snapshot.fidelity,
        where,
        extra=logs.fields(kernel=snapshot.kernel, fidelity=snapshot.fidelity, url=url),
    )


def _log_hooks(hooks: HookGroups) -> None:
    normal = [one.sentence for one in hooks.off if one.kind not in WARNED_OF]
    details = ". Details: rmapd doctor -v" if hooks.off else ""
    counts = dict.fromkeys((kind.value for kind in GroupKind), 0)
    for one in hooks.groups:
        counts[one.kind.value] += len(one.names)
    log.info("%s%s", "; ".join([hooks.head, *normal]), details, extra=logs.fields(hooks=counts))
    for one in hooks.off:
        if one.kind in WARNED_OF:
            log.warning(
                "hooks: %s",
                one.sentence,
                extra=logs.fields(hooks=list(one.names), reason=one.reason, kind=one.kind.value),
            )


def _log_coverage(snapshot: Snapshot) -> None:
    by_level = {
        level: [n for n, (found, _) in snapshot.coverage.items() if found is level]
        for level in Coverage
    }
    levels = [
        f"{len(names)} {_HOW[level]} ({' '.join(names)})"
        for level, names in by_level.items()
        if names
    ]
    log.info(
        "coverage: of %d invariants %s",
        len(snapshot.coverage),
        ", ".join(levels),
        extra=logs.fields(**{level.value: names for level, names in by_level.items()}),
    )
