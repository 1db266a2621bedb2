"""The sections of an explained violation, in the order in which a maintainer asks."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable

import msgspec

from tracer.invariants.base import Invariant
from tracer.report.alignment import aligned
from tracer.report.explain_state import state_sections
from tracer.report.find_violation import ExplainedViolation
from tracer.report.section import Section
from tracer.report.similarity import legal_counterpart
from tracer.results.evidence import CycleEdge, EntryEvidence, Folio, Task, Vma

_PLAIN = (
    "outer_mm",
    "inner_mm",
    "opposite_task",
    "age_seconds",
    "entries_outstanding",
    "system_call",
)
"""Members of the evidence that are printed as they are."""
_MOST_HOURS, _MOST_STEPS, _MOST_FRAMES = 6, 12, 6


def sections(known: ExplainedViolation, invariant: Invariant) -> list[Section]:
    """Return the sections of the explanation that have any lines."""
    evidence = known.evidence
    found = [
        Section("What was promised", _promised(invariant)),
        Section("What was seen", _seen(known)),
        Section("Where", _where(known), code=True),
        *state_sections(evidence),
        Section("What the kernel printed", evidence.kernel_text, code=True),
        Section("Proof", _proof(known, invariant)),
        Section("Protocol", _protocol(known), code=True),
        *(_cycle(edge) for edge in evidence.edges),
        Section("Trail", _trail(known), code=True),
        Section("Stack", known.violation.stack or ["none was recorded"], code=True),
    ]
    if evidence.opposite_stack:
        other = "not known" if evidence.opposite_task is None else evidence.opposite_task
        found.append(
            Section(
                f"Stack of the opposite order, task {other}", evidence.opposite_stack, code=True
            )
        )
    return [section for section in found if section.lines]


def _promised(invariant: Invariant) -> list[str]:
    return [
        f"{invariant.id}, {invariant.title}: {invariant.claim}",
        f"The kernel states it in {invariant.stated}.",
    ]


def _seen(known: ExplainedViolation) -> list[str]:
    v = known.violation
    why = known.evidence.culprit.why or next(
        (step.why for step in known.details.trail if step.marked), ""
    )
    if known.evidence.wrong:
        lines = [f"{v.summary}.", *_last_change(known)]
    elif known.evidence.kernel_text:
        lines = [f"The kernel complained: {v.summary}"]
    else:
        by = _caller(known)
        lines = [
            f"{v.function}(): {v.summary}.",
            f"Function at fault: {known.culprit}(){by}" + (f" -- {why}." if why else "."),
        ]
    times = f"{v.count:,} times" if v.count != 1 else "Once"
    lines.append(f"{times}, first {known.first_seen}, last {known.last_seen}; {v.verdict}.")
    hours = sorted(v.hours.items())[-_MOST_HOURS:]
    if hours and v.count > 1:
        lines.append(
            "By hour: " + ", ".join(f"{hour:%Y-%m-%dT%H}h {count:,}" for hour, count in hours) + "."
        )
    return lines


def _last_change(known: ExplainedViolation) -> list[str]:
    """Return the window that changed these addresses last; an audit sees state, and no culprit."""
    step = next((step for step in known.details.trail if step.marked), None)
    if step is None:
        return []
    return [f"Likely culprit, not proven: {step.function}(), {step.why}."]


def _caller(known: ExplainedViolation) -> str:
    """Return the caller of the function at fault, from the stack; it may hold the locks.

    A hook keeps its name where the kernel renamed or cloned the function; the stack has the symbol
    that the hook is attached to.
    """
    names = [(frame.partition("+")[0], frame.partition(" ")[2]) for frame in known.violation.stack]
    hook = known.report.hooks.get(known.culprit)
    own = {known.culprit, hook.symbol if hook else known.culprit}
    inside = next((n for n, (name, _) in enumerate(names) if name in own), None)
    callers = (
        ()
        if inside is None
        else (
            each for each in names[inside:] if each[0] not in own and not each[0].startswith("bpf_")
        )
    )
    name, module = next(iter(callers), ("", ""))
    return f", called by {name}(){' ' if module else ''}{module}" if name else ""


def _where(known: ExplainedViolation) -> list[str]:
    machine, evidence = known.details.machine, known.evidence
    taint = (
        f", tainted {machine.tainted}"
        if machine.tainted
        else ", not tainted"
        if known.violation.machine
        else ""
    )
    rows = {
        "kernel": known.kernel + taint,
        "switches": " ".join(machine.command_line),
        "task": _task(known.details.task),
        "lock": evidence.lock,
        "owner": evidence.owner,
        "printed by": evidence.printed_by,
        "mm": evidence.mm if evidence.lock or evidence.kernel_text else "",
    }
    if evidence.wrong:
        rows |= {"mm": evidence.mm, "addresses": f"{evidence.low}-{evidence.high}"}
        rows |= {"VMA now": _vma(evidence.vma_now)}
    elif evidence.entries is not None or evidence.pfn is not None:
        for entry in evidence.entries if evidence.entries is not None else [evidence]:
            rows |= {f"entry {entry.addr}": _entry(entry)}
            rows |= {f"  {name}": text for name, text in _entry_parts(entry) if text}
    elif isinstance(evidence.folio, str):
        rows |= {
            "address": f"{evidence.addr} of mm {evidence.mm}",
            "VMA": f"at {_address(evidence.vma)}",
            "folio": evidence.folio,
        }
        rows |= {name: text for name, text in _entry_parts(evidence) if text}
    else:
        rows |= {"VMA": _vma(evidence.vma), "folio": _folio(evidence.folio)}
        rows |= {
            name: value
            for name, value in evidence.addresses.items()
            if name != "folio" or evidence.folio == Folio()
        }
    rows |= {
        name.replace("_", " "): str(getattr(evidence, name))
        for name in _PLAIN
        if getattr(evidence, name) is not None
    }
    wide = max((len(name) for name, text in rows.items() if text), default=0)
    return [f"{name:{wide}}  {text}".rstrip() for name, text in rows.items() if text]


def _task(task: Task) -> str:
    if task == Task():
        return ""
    suffix = f", cgroup {task.cgroup.name} (inode {task.cgroup.id})" if task.cgroup else ""
    return f"{task.comm}[{task.pid}], tgid {task.tgid}{suffix}"


def _address(vma: Vma | str) -> str:
    return vma if isinstance(vma, str) else vma.vma


def _vma(vma: Vma | str) -> str:
    if isinstance(vma, str):
        return f"at {vma}" if vma else ""
    was = f"{vma.was_start}-{vma.was_end}" if vma.was_start and vma.was_end else ""
    now = f"{vma.vm_start}-{vma.vm_end}" if vma.vm_start and vma.vm_end else ""
    span = f"{was}, then {now}" if was and now and was != now else now or was
    return ", ".join(
        filter(
            None,
            [
                span,
                vma.flags,
                f"file {vma.file}" if vma.file else "",
                f"at {vma.vma}" if vma.vma else "",
            ],
        )
    )


def _folio(folio: Folio) -> str:
    if folio == Folio():
        return ""
    order = f"order {folio.order}" if folio.order is not None else ""
    words = [
        folio.folio,
        f"pfn {folio.pfn}" if folio.pfn else "",
        folio.kind,
        order,
        " ".join(folio.flags) or "no flags",
    ]
    return ", ".join(filter(None, words))


def _entry(entry: EntryEvidence) -> str:
    lock = {
        True: "its page is locked",
        False: "its page is not locked",
        None: "it is not known whether its page is locked",
    }[entry.locked]
    owner = f"{entry.comm}[{entry.tgid}]"
    return f"of {owner}: {entry.entry}, a migration entry for pfn {entry.pfn}; {lock}"


def _entry_parts(entry: EntryEvidence) -> Iterable[tuple[str, str]]:
    yield "VMA at the first walk", _vma(entry.first_walk)
    yield "VMA now" if entry.vma_now.same else "another VMA there now", _vma(entry.vma_now)
    yield "folio now", _folio(entry.folio_now)
    yield "moved to", _folio(entry.to_folio_now)
    yield "second walk", entry.second_walk


def _proof(known: ExplainedViolation, invariant: Invariant) -> list[str]:
    proven = (
        "The state of the lock or VMA itself proves it; lost events cannot change that."
        if known.evidence.proven
        else ""
    )
    lines = [
        f"How {invariant.id} is confirmed: {invariant.confirmed}",
        proven,
        f"Not violations: {invariant.not_violations}",
    ]
    suspect = "This is a suspect, not proven." if known.violation.verdict == "suspect" else ""
    return [line for line in (suspect, *lines) if line]


def _protocol(known: ExplainedViolation) -> list[str]:
    """Return the protocol, aligned with the most similar legal one of the function in this run."""
    v = known.violation
    if not v.protocol:
        return []
    both = legal_counterpart(v, known.report)
    if not both:
        return [
            v.protocol,
            "",
            f"This run has no legal protocol of {v.function}() to compare it with.",
        ]
    seen, legal = both
    note = (
        "legal: the most similar legal protocol of this function, "
        f"{_windows(legal.count)} of this run"
    )
    return [v.protocol, "", *aligned(seen.protocol, legal.protocol), "", note]


def _windows(count: int) -> str:
    return f"{count:,} windows" if count != 1 else "one window"


def _cycle(edge: CycleEdge) -> Section:
    lines = [edge.protocol, *(f"    {frame}" for frame in edge.stack)]
    return Section(f"{edge.taken} taken with {edge.held} held, first", lines, code=True)


def _trail(known: ExplainedViolation) -> list[str]:
    """Return the last windows of the trail, and all marked ones, with times before the last."""
    trail, note = known.details.trail, known.evidence.trail_note
    if not trail:
        return [note] if note else []
    end = max(step.time_ns for step in trail)
    steps = [step for n, step in enumerate(trail) if step.marked or n >= len(trail) - _MOST_STEPS]
    lines = (
        [f"({len(trail) - len(steps)} earlier windows: --format json)"]
        if len(steps) < len(trail)
        else []
    )
    for step in steps:
        span = _vma(msgspec.structs.replace(step.vma, vma=""))
        mark, seconds = ">>" if step.marked else "  ", (step.time_ns - end) / 1e9
        lines.append(
            f"{mark} {seconds:+.6f} s  [{step.task.pid}]  "
            + (step.protocol or f"{step.function}(), protocol no longer known")
        )
        lines += [f"{'':18}VMA {span}"] if span else []
        if step.marked:
            lines += [f"{'':18}^ {step.why}"]
            lines += [f"{'':20}{frame}" for frame in step.stack[:_MOST_FRAMES]]
    return [*lines, *(["", *textwrap.wrap(note, 100)] if note else [])]
