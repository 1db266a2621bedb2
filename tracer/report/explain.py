"""`rmapd explain`: an invariant, or a violation as one would send it to linux-mm: what was promised, what was seen, the proof, the protocol
beside the nearest legal one, the trail, the stacks."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec

from tracer.errors import RmapdError
from tracer.invariants.base import Invariant
from tracer.outputs.store import reader
from tracer.printable import shown
from tracer.report import model
from tracer.report.alignment import aligned, differences
from tracer.report.model import Report, ReportedViolation
from tracer.report.nearest import pair
from tracer.results.evidence import CycleEdge, EntryEvidence, Evidence, Folio, Task, Told, Vma

_ADDRESSED = re.compile(r":| at 0x")
_PLAIN = ("outer_mm", "inner_mm", "opposite_task", "age_seconds", "entries_outstanding")
"""Numbers of the evidence that need no words."""
_MOST_HOURS, _MOST_STEPS, _MOST_FRAMES = 6, 12, 6


class Known:
    """A violation as it was reported (`exact`), and the report of a run that met it ({}: none is left). All else of it is printable."""

    def __init__(self, exact: Mapping[str, Any], report: Mapping[str, Any]) -> None:
        self.exact, self._given = exact, report
        said = shown(exact)
        self.violation: ReportedViolation = msgspec.convert(said, ReportedViolation)
        self.told: Told = self.violation.told
        self.first_seen, self.last_seen = said["first_seen"], said["last_seen"]

    @property
    def evidence(self) -> Evidence:
        return self.told.evidence

    @cached_property
    def report(self) -> Report:
        """What is not of the violation itself."""
        return msgspec.convert(shown({"kernel": "", **self._given, "violations": []}), Report)

    @property
    def kernel(self) -> str:
        return self.told.machine.kernel or self.report.kernel

    @property
    def culprit(self) -> str:
        """The function that the evidence points at; where it points at none, the one that was watched."""
        return self.evidence.culprit.function or self.violation.function


def find(id: str, store: Path, report: Path | None) -> Known:
    """By id, or by the beginning of one that is alone with it. RmapdError where there is none."""
    where = report or store
    if report:
        found = model.read(report)
        everything = [(violation, found) for violation in found.get("violations", [])]
    else:
        kept = reader.read(store)
        everything = [
            (violation, (kept.run_of(violation) or {}).get("report", {}))
            for violation in kept.violations
        ]
    ids = [str(violation.get("id", "")) for violation, _ in everything]
    matching = [n for n, known in enumerate(ids) if known.lower().startswith(id.lower())]
    exact = [n for n in matching if ids[n].lower() == id.lower()]
    if len(exact or matching) == 1:
        try:
            return Known(*everything[(exact or matching)[0]])
        except (msgspec.ValidationError, KeyError, TypeError) as error:
            raise RmapdError(
                f"{where} has what no rmapd wrote", why=str(error), hint="another one"
            ) from error
    some = [ids[n] for n in matching] or ids
    why = (
        f"{len(matching)} begin so"
        if matching
        else f"{where} has {len(some)} violations and suspects"
    )
    names = ", ".join(some[-10:]) + (f" and {len(some) - 10} more" if len(some) > 10 else "")
    raise RmapdError(
        f"no violation {id!r}",
        why=why,
        hint=f"one of {names}" if some else "rmapd run --store FILE, or --report FILE.json",
    )


@dataclass(frozen=True)
class Section:
    """A heading and what is under it; code: as it stands, not to be filled."""

    title: str
    lines: Sequence[str]
    code: bool = False


def sections(known: Known, invariant: Invariant) -> list[Section]:
    """The explanation, in the order in which a maintainer asks."""
    evidence = known.evidence
    found = [
        Section("What was promised", _promised(invariant)),
        Section("What was seen", _seen(known)),
        Section("Where", _where(known), code=True),
        Section("Proof", _proof(known, invariant)),
        Section("Protocol", _protocol(known), code=True),
        *(_cycle(edge) for edge in evidence.edges),
        Section("Trail", _trail(known), code=True),
        Section("Stack", known.violation.stack or ["none was taken"], code=True),
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


def _seen(known: Known) -> list[str]:
    v = known.violation
    why = known.evidence.culprit.why or next(
        (step.why for step in known.told.trail if step.marked), ""
    )
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


def _caller(known: Known) -> str:
    """Who called it, by the stack: what is wrong with a walk is often its caller's."""
    names = [(frame.partition("+")[0], frame.partition(" ")[2]) for frame in known.violation.stack]
    inside = next((n for n, (name, _) in enumerate(names) if name == known.culprit), None)
    callers = (
        ()
        if inside is None
        else (
            each
            for each in names[inside:]
            if each[0] != known.culprit and not each[0].startswith("bpf_")
        )
    )
    name, module = next(iter(callers), ("", ""))
    return f", called by {name}(){' ' if module else ''}{module}" if name else ""


def _where(known: Known) -> list[str]:
    machine, evidence = known.told.machine, known.evidence
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
        "task": _task(known.told.task),
    }
    if evidence.entries is not None or evidence.pfn is not None:
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
        None: "whether its page is locked is not known",
    }[entry.locked]
    return f"of {entry.comm}[{entry.tgid}]: {entry.entry}, a migration entry for pfn {entry.pfn}; {lock}"


def _entry_parts(entry: EntryEvidence) -> Iterable[tuple[str, str]]:
    yield "VMA at the first walk", _vma(entry.first_walk)
    yield "VMA now" if entry.vma_now.same else "gone: what is there now", _vma(entry.vma_now)
    yield "folio now", _folio(entry.folio_now)
    yield "moved to", _folio(entry.to_folio_now)
    yield "second walk", entry.second_walk


def _proof(known: Known, invariant: Invariant) -> list[str]:
    proven = (
        "What was read from the lock or the VMA itself proves it; lost events cannot change it."
        if known.evidence.proven
        else ""
    )
    lines = [
        f"How {invariant.id} is confirmed: {invariant.confirmed}",
        proven,
        f"Not violations: {invariant.not_violations}",
    ]
    suspect = "It is a suspect, not proven." if known.violation.verdict == "suspect" else ""
    return [line for line in (suspect, *lines) if line]


def _protocol(known: Known) -> list[str]:
    """The protocol, and the nearest of the same function in the same run that broke nothing."""
    v = known.violation
    if not v.protocol:
        return []
    both = pair(v, known.report)
    if not both:
        return [
            v.protocol,
            "",
            f"No legal protocol of {v.function}() was seen in this run to put beside it.",
        ]
    seen, legal = both
    said = f"legal: the nearest of this function that broke nothing, {_windows(legal.count)} of this run"
    return [v.protocol, "", *aligned(seen.protocol, legal.protocol), "", said]


def _windows(count: int) -> str:
    return f"{count:,} windows" if count != 1 else "one window"


def _cycle(edge: CycleEdge) -> Section:
    lines = [edge.protocol, *(f"    {frame}" for frame in edge.stack)]
    return Section(f"{edge.taken} taken with {edge.held} held, first", lines, code=True)


def _trail(known: Known) -> list[str]:
    trail, note = known.told.trail, known.evidence.trail_note
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
        head = f"{'>>' if step.marked else '  '} {(step.time_ns - end) / 1e9:+.6f} s  [{step.task.pid}]  "
        lines.append(
            head + (step.protocol or f"{step.function}() of a protocol that is not known any more")
        )
        lines += [f"{'':18}VMA {span}"] if span else []
        if step.marked:
            lines += [f"{'':18}^ {step.why}"]
            lines += [f"{'':20}{frame}" for frame in step.stack[:_MOST_FRAMES]]
    return [*lines, *(["", *textwrap.wrap(note, 100)] if note else [])]


def subject(known: Known) -> str:
    """The line above it all."""
    v = known.violation
    return f"{v.invariant} {v.verdict} in {known.culprit}() on {known.kernel}: {_ADDRESSED.split(v.summary)[0]}"


def as_text(known: Known, invariant: Invariant) -> str:
    """For a mail: plain, at most a hundred columns where it is prose."""
    out = [f"Subject: {subject(known)}", ""]
    for section in sections(known, invariant):
        body = (
            section.lines
            if section.code
            else [part for line in section.lines for part in textwrap.wrap(line, 100)]
        )
        out += [
            section.title,
            "-" * len(section.title),
            *(f"    {line}".rstrip() if section.code else line for line in body),
            "",
        ]
    return "\n".join([*out, *_foot(known)]) + "\n"


def as_markdown(known: Known, invariant: Invariant) -> str:
    """For an issue tracker."""
    out = [f"# {_plain(subject(known))}", ""]
    for section in sections(known, invariant):
        fenced = ["```", *(line.replace("```", "` ` `") for line in section.lines), "```"]
        body = fenced if section.code else "\n\n".join(map(_plain, section.lines)).split("\n")
        out += [f"## {_plain(section.title)}", "", *body, ""]
    return "\n".join([*out, *map(_plain, _foot(known))]) + "\n"


def _plain(line: str) -> str:
    """As text and nothing else: no name makes a link, an image or HTML."""
    return re.sub(r"([\\`*_\[\]<>#~|])", r"\\\1", line)


def _foot(known: Known) -> list[str]:
    v = known.violation
    return ["-- ", f"rmapd {known.report.rmapd}".strip() + f", {v.id}: {v.signature}"]


def as_json(known: Known, invariant: Invariant) -> dict[str, Any]:
    """The same as data: the violation itself is exact."""
    both = pair(known.violation, known.report)
    beside = differences(both[0].protocol, both[1].protocol) if both else []
    promised = {
        "id": invariant.id,
        "title": invariant.title,
        "claim": invariant.claim,
        "stated": invariant.stated,
    }
    return {
        "subject": subject(known),
        "function_at_fault": known.culprit,
        "kernel": known.kernel,
        "promised": promised
        | {"confirmed": invariant.confirmed, "not_violations": invariant.not_violations},
        "nearest_legal": {"protocol": both[1].text, "windows": both[1].count, "differences": beside}
        if both
        else None,
        "violation": dict(known.exact),
    }


def invariant_text(invariant: Invariant) -> str:
    """An invariant in full."""
    lines = [f"{invariant.id}: {invariant.title}", ""]
    for name, text in _invariant_parts(invariant).items():
        for n, line in enumerate(text.splitlines()):
            lines.append(
                textwrap.fill(
                    line,
                    100,
                    initial_indent=f"{name if n == 0 else '':16}",
                    subsequent_indent=" " * 16,
                )
            )
    return "\n".join(lines) + "\n"


def invariant_json(invariant: Invariant) -> dict[str, str]:
    return {"id": invariant.id, "title": invariant.title} | _invariant_parts(invariant)


def _invariant_parts(invariant: Invariant) -> dict[str, str]:
    hooks = (
        ", ".join(invariant.needs).replace("|", " or ")
        or f"none in this version; will need {', '.join(invariant.awaits)}"
    )
    return {
        "claim": invariant.claim,
        "stated in": invariant.stated,
        "not violations": invariant.not_violations,
        "how confirmed": invariant.confirmed,
        "blind spots": invariant.blind_spots,
        "runbook": invariant.runbook,
        "hooks": hooks,
        "without": "\n".join(
            f"{name}: {cost}".replace("|", " or ") for name, cost in invariant.lacking.items()
        ),
    }
