"""What this kernel lets us check, and why not the rest: facts found by trying, not by version."""

from __future__ import annotations

from typing import Any

from tracer.daemon.session import Session
from tracer.invariants.base import Invariant
from tracer.kernel.running import Kernel
from tracer.printable import printable


def examine(session: Session) -> dict[str, Any]:
    """Everything doctor knows, as data; the session's gate is open while it looks."""
    kernel = session.kernel
    return {
        "kernel": kernel.release,
        "capabilities": {
            "BTF": f"yes, {len(kernel.types):,} types",
            "raw tracepoints": "yes",
            "fentry": kernel.fentry_refused or "yes",
            "kprobes": kernel.kprobe_refused or "yes",
            "page-table levels": "5" if kernel.five_level_paging else "4",
            "page-table oracle": "calibrated"
            if session.open_cases.oracle
            else f"not calibrated: {session.oracle_reason}",
        },
        "hooks": {
            h.hook.name: {
                "probe_object": h.probe_object,
                "state": h.state.value,
                "how": h.how,
                "reason": h.reason,
            }
            for h in session.loaded.hooks
        },
        "invariants": {
            name: _invariant(session, invariant) for name, invariant in session.invariants.items()
        },
    }


def _invariant(session: Session, invariant: Invariant) -> dict[str, Any]:
    level, reason = session.coverage[invariant.id]
    allows = "" if invariant.built else allowed(session.kernel, invariant.awaits)
    return {
        "title": invariant.title,
        "coverage": level.value,
        "reason": "; ".join(part for part in (reason, allows) if part),
    }


def allowed(kernel: Kernel, functions: tuple[str, ...]) -> str:
    """Whether this kernel would let these functions be probed, and what is in the way."""
    iterators = [f for f in functions if f.startswith("bpf_iter_")]
    if iterators:
        found = all(kernel.types.function(f) is not None for f in iterators)
        return (
            f"this kernel would allow it: it has {iterators[0]}"
            if found
            else f"this kernel has no {iterators[0]}"
        )
    if kernel.fentry_refused and kernel.kprobe_refused:
        refusals = (
            f"neither by fentry ({kernel.fentry_refused}) nor by kprobe ({kernel.kprobe_refused})"
        )
        return f"this kernel does not allow it: {functions[0]} can be probed {refusals}"
    absent = [f for f in functions if not kernel.clones(f)]
    notrace = [
        f
        for f in functions
        if f not in absent
        and kernel.traceable is not None
        and not kernel.traceable.intersection(kernel.clones(f))
    ]
    if absent or notrace:
        parts = [
            f"no {', '.join(absent)}" if absent else "",
            f"notrace: {', '.join(notrace)}" if notrace else "",
        ]
        return f"this kernel would allow a part of it ({'; '.join(part for part in parts if part)})"
    return "this kernel would allow it"


def as_text(found: dict[str, Any]) -> str:
    """For a terminal."""
    lines = [f"kernel {found['kernel']}", ""]
    lines += [f"  {name:18} {value}" for name, value in found["capabilities"].items()]
    lines += ["", "hooks"]
    for name, hook in found["hooks"].items():
        reason = f"  {hook['reason']}" if hook["reason"] else ""
        lines.append(f"  {hook['state']:11} {name:28} {hook['how']:7}{reason}")
    lines += ["", "invariants"]
    for name, invariant in found["invariants"].items():
        lines.append(f"  {name:3} {invariant['coverage']:8} {invariant['title']}")
        if invariant["reason"]:
            lines.append(f"      {'':8} {invariant['reason']}")
    return "\n".join(map(printable, lines)) + "\n"
