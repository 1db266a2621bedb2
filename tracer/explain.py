"""`rmapd explain`: an invariant, or a violation as one would send it to linux-mm: what was promised, what was seen, the proof, the protocol
beside the nearest legal one, the trail, the stacks."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tracer import stored
from tracer.aligned import aligned, differences, nearest
from tracer.difference import Seen
from tracer.errors import RmapdError
from tracer.invariant import Invariant
from tracer.notation import parse

_ADDRESSED = re.compile(r":| at 0x")
_PLAIN = ("outer_mm", "inner_mm", "opposite_task", "age_seconds", "entries_outstanding")
"""Numbers of the evidence that need no words."""
_MOST_HOURS, _MOST_STEPS, _MOST_FRAMES = 6, 12, 6


@dataclass(frozen=True)
class Known:
    """A violation as report.violation_json() has it, and the report of a run that met it ({}: none is left)."""

    violation: Mapping[str, Any]
    report: Mapping[str, Any]

    @property
    def kernel(self) -> str:
        return str(self.violation.get("machine", {}).get("kernel") or self.report.get("kernel", ""))

    @property
    def culprit(self) -> str:
        """The function that the evidence points at; where it points at none, the one that was watched."""
        return str(self.violation["evidence"].get("culprit", {}).get("function") or self.violation["function"])

    @property
    def legal(self) -> Seen | None:
        """The nearest protocol of the same function in the same run that broke nothing."""
        if not self.violation["protocol"]:
            return None
        own, protocols = self.violation["protocol"], self.report.get("protocols", [])
        others = [
            Seen(one["text"], one["count"], (), parse(one["text"]))
            for one in protocols
            if one["function"] == self.violation["function"] and not one["violates"] and not one["suspect"]
        ]
        return nearest(parse(own), others)


def find(id: str, store: Path, report: Path | None) -> Known:
    """By id, or by the beginning of one that is alone with it. RmapdError where there is none."""
    where = report or store
    if report:
        found = _read_report(report)
        everything = [Known(violation, found) for violation in found["violations"]]
    else:
        kept = stored.read(store)
        everything = [Known(violation, (kept.run_of(violation) or {}).get("report", {})) for violation in kept.violations]
    matching = [one for one in everything if str(one.violation["id"]).lower().startswith(id.lower())]
    exact = [one for one in matching if str(one.violation["id"]).lower() == id.lower()]
    if len(exact or matching) == 1:
        return (exact or matching)[0]
    known = [one.violation["id"] for one in matching or everything]
    why = f"{len(matching)} begin so" if matching else f"{where} has {len(known)} violations and suspects"
    shown = ", ".join(known[-10:]) + (f" and {len(known) - 10} more" if len(known) > 10 else "")
    raise RmapdError(f"no violation {id!r}", why=why, hint=f"one of {shown}" if known else "rmapd run --store FILE, or --report FILE.json")


def _read_report(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
        for violation in found["violations"]:
            str(violation["id"]), str(violation["protocol"]), dict(violation["evidence"])
        return dict(found)
    except OSError as error:
        raise RmapdError(f"cannot read {path}", why=error.strerror or str(error)) from error
    except (ValueError, KeyError, TypeError) as error:
        hint = "a file of rmapd exec --report"
        raise RmapdError(f"{path} is no report of rmapd", why=f"{type(error).__name__}: {error}", hint=hint) from error


@dataclass(frozen=True)
class Section:
    """A heading and what is under it; code: as it stands, not to be filled."""

    title: str
    lines: Sequence[str]
    code: bool = False


def sections(known: Known, invariant: Invariant) -> list[Section]:
    """The explanation, in the order in which a maintainer asks."""
    violation, evidence = known.violation, known.violation["evidence"]
    found = [
        Section("What was promised", _promised(invariant)),
        Section("What was seen", _seen(known)),
        Section("Where", _where(known), code=True),
        Section("Proof", _proof(violation, invariant)),
        Section("Protocol", _protocol(known), code=True),
        *_cycle(evidence),
        Section("Trail", _trail(violation), code=True),
        Section("Stack", list(violation["stack"]) or ["none was taken"], code=True),
    ]
    if opposite := evidence.get("opposite_stack"):
        found.append(Section(f"Stack of the opposite order, task {evidence['opposite_task']}", list(opposite), code=True))
    return [section for section in found if section.lines]


def _promised(invariant: Invariant) -> list[str]:
    return [f"{invariant.id}, {invariant.title}: {invariant.claim}", f"The kernel states it in {invariant.stated}."]


def _seen(known: Known) -> list[str]:
    v = known.violation
    why = v["evidence"].get("culprit", {}).get("why") or next((step["why"] for step in v["trail"] if step.get("marked")), "")
    by = _caller(known)
    lines = [f"{v['function']}(): {v['summary']}.", f"Function at fault: {known.culprit}(){by}" + (f" -- {why}." if why else ".")]
    times = f"{v['count']:,} times" if v["count"] != 1 else "Once"
    lines.append(f"{times}, first {v['first_seen']}, last {v['last_seen']}; {v['verdict']}.")
    hours = list(v.get("hours", {}).items())[-_MOST_HOURS:]
    if hours and v["count"] > 1:
        lines.append("By hour: " + ", ".join(f"{hour[:13]}h {count:,}" for hour, count in hours) + ".")
    return lines


def _caller(known: Known) -> str:
    """Who called it, by the stack: what is wrong with a walk is often its caller's."""
    names = [(frame.partition("+")[0], frame.partition(" ")[2]) for frame in known.violation["stack"]]
    inside = next((n for n, (name, _) in enumerate(names) if name == known.culprit), None)
    callers = () if inside is None else (each for each in names[inside:] if each[0] != known.culprit and not each[0].startswith("bpf_"))
    name, module = next(iter(callers), ("", ""))
    return f", called by {name}(){' ' if module else ''}{module}" if name else ""


def _where(known: Known) -> list[str]:
    v, machine = known.violation, known.violation.get("machine", {})
    rows = {
        "kernel": known.kernel + (f", tainted {machine['tainted']}" if machine.get("tainted") else ", not tainted" if machine else ""),
        "switches": " ".join(machine.get("command_line", [])),
        "task": _task(v["task"]),
    }
    evidence = v["evidence"]
    if "entries" in evidence or "pfn" in evidence:
        for entry in evidence.get("entries", [evidence]):
            rows |= {f"entry {entry['addr']}": _entry(entry)}
            rows |= {f"  {name}": text for name, text in _entry_parts(entry) if text}
    elif isinstance(evidence.get("folio"), str):
        rows |= {"address": f"{evidence['addr']} of mm {evidence['mm']}", "VMA": f"at {evidence['vma']}", "folio": evidence["folio"]}
        rows |= {name: text for name, text in _entry_parts(evidence) if text}
    else:
        rows |= {"VMA": _vma(evidence.get("vma", {})), "folio": _folio(evidence.get("folio", {}))}
        rows |= {name: value for name, value in evidence.get("addresses", {}).items() if name != "folio" or not evidence.get("folio")}
    rows |= {name.replace("_", " "): str(evidence[name]) for name in _PLAIN if evidence.get(name) is not None}
    wide = max((len(name) for name, text in rows.items() if text), default=0)
    return [f"{name:{wide}}  {text}".rstrip() for name, text in rows.items() if text]


def _task(task: Mapping[str, Any]) -> str:
    if not task:
        return ""
    group = task.get("cgroup", {})
    suffix = f", cgroup {group['name']} (inode {group['id']})" if group else ""
    return f"{task.get('comm', '')}[{task.get('pid')}], tgid {task.get('tgid')}{suffix}"


def _span(of: Mapping[str, Any], start: str = "vm_start", end: str = "vm_end") -> str:
    return f"{of[start]}-{of[end]}" if start in of and end in of else ""


def _vma(vma: Mapping[str, Any]) -> str:
    was, now = _span(vma, "was_start", "was_end"), _span(vma)
    span = f"{was}, then {now}" if was and now and was != now else now or was
    words = [span, vma.get("flags", ""), f"file {vma['file']}" if vma.get("file") else "", f"at {vma['vma']}" if vma.get("vma") else ""]
    return ", ".join(filter(None, words))


def _folio(folio: Mapping[str, Any]) -> str:
    if not folio:
        return ""
    words = [folio["folio"], f"pfn {folio['pfn']}" if "pfn" in folio else "", folio["kind"], f"order {folio['order']}"]
    return ", ".join(filter(None, [*words, " ".join(folio["flags"]) or "no flags"]))


def _entry(entry: Mapping[str, Any]) -> str:
    lock = {True: "its page is locked", False: "its page is not locked", None: "whether its page is locked is not known"}[entry["locked"]]
    return f"of {entry['comm']}[{entry['tgid']}]: {entry['entry']}, a migration entry for pfn {entry['pfn']}; {lock}"


def _entry_parts(entry: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    now = entry.get("vma_now", {})
    yield "VMA at the first walk", _vma(entry.get("first_walk", {}))
    yield "VMA now" if now.get("same", True) else "gone: what is there now", _vma(now)
    yield "folio now", _folio(entry.get("folio_now", {}))
    yield "moved to", _folio(entry.get("to_folio_now", {}))
    yield "second walk", entry.get("second_walk", "")


def _proof(violation: Mapping[str, Any], invariant: Invariant) -> list[str]:
    proven = {True: "What was read from the lock or the VMA itself proves it; lost events cannot change it."}.get(
        violation["evidence"].get("proven"), ""
    )
    lines = [f"How {invariant.id} is confirmed: {invariant.confirmed}", proven, f"Not violations: {invariant.not_violations}"]
    suspect = "It is a suspect, not proven." if violation["verdict"] == "suspect" else ""
    return [line for line in (suspect, *lines) if line]


def _protocol(known: Known) -> list[str]:
    if not known.violation["protocol"]:
        return []
    legal = known.legal
    if not legal:
        return [
            known.violation["protocol"],
            "",
            f"No legal protocol of {known.violation['function']}() was seen in this run to put beside it.",
        ]
    lines = aligned(parse(known.violation["protocol"]), legal.protocol)
    return [
        known.violation["protocol"],
        "",
        *lines,
        "",
        f"legal: the nearest of this function that broke nothing, {_windows(legal.count)} of this run",
    ]


def _windows(count: int) -> str:
    return f"{count:,} windows" if count != 1 else "one window"


def _cycle(evidence: Mapping[str, Any]) -> list[Section]:
    return [
        Section(
            f"{edge['taken']} taken with {edge['held']} held, first",
            [edge["protocol"], *(f"    {frame}" for frame in edge["stack"])],
            code=True,
        )
        for edge in evidence.get("edges", [])
    ]


def _trail(violation: Mapping[str, Any]) -> list[str]:
    trail, note = violation["trail"], violation["evidence"].get("trail_note", "")
    if not trail:
        return [note] if note else []
    end = max(step["time_ns"] for step in trail)
    shown = [step for n, step in enumerate(trail) if step.get("marked") or n >= len(trail) - _MOST_STEPS]
    lines = [f"({len(trail) - len(shown)} earlier windows: --format json)"] if len(shown) < len(trail) else []
    for step in shown:
        task, span = step["task"], _vma({key: value for key, value in step["vma"].items() if key != "vma"})
        head = f"{'>>' if step.get('marked') else '  '} {(step['time_ns'] - end) / 1e9:+.6f} s  [{task['pid']}]  "
        lines.append(head + (step["protocol"] or f"{step['function']}() of a protocol that is not known any more"))
        lines += [f"{'':18}VMA {span}"] if span else []
        if step.get("marked"):
            lines += [f"{'':18}^ {step['why']}"]
            lines += [f"{'':20}{frame}" for frame in step["stack"][:_MOST_FRAMES]]
    return [*lines, *(["", *textwrap.wrap(note, 100)] if note else [])]


def subject(known: Known) -> str:
    """The line above it all."""
    v = known.violation
    return f"{v['invariant']} {v['verdict']} in {known.culprit}() on {known.kernel}: {_ADDRESSED.split(v['summary'])[0]}"


def as_text(known: Known, invariant: Invariant) -> str:
    """For a mail: plain, at most a hundred columns where it is prose."""
    out = [f"Subject: {subject(known)}", ""]
    for section in sections(known, invariant):
        body = section.lines if section.code else [part for line in section.lines for part in textwrap.wrap(line, 100)]
        out += [section.title, "-" * len(section.title), *(f"    {line}".rstrip() if section.code else line for line in body), ""]
    return "\n".join([*out, *_foot(known)]) + "\n"


def as_markdown(known: Known, invariant: Invariant) -> str:
    """For an issue tracker."""
    out = [f"# {subject(known)}", ""]
    for section in sections(known, invariant):
        body = ["```", *section.lines, "```"] if section.code else [line.replace("_", r"\_").replace("*", r"\*") for line in section.lines]
        out += [f"## {section.title}", "", *("\n\n".join(body).split("\n") if not section.code else body), ""]
    return "\n".join([*out, *_foot(known)]) + "\n"


def _foot(known: Known) -> list[str]:
    version = known.report.get("rmapd", "")
    return ["-- ", f"rmapd {version}".strip() + f", {known.violation['id']}: {known.violation['signature']}"]


def as_json(known: Known, invariant: Invariant) -> dict[str, Any]:
    """The same as data."""
    legal = known.legal
    beside = differences(parse(known.violation["protocol"]), legal.protocol) if legal else []
    promised = {"id": invariant.id, "title": invariant.title, "claim": invariant.claim, "stated": invariant.stated}
    return {
        "subject": subject(known),
        "function_at_fault": known.culprit,
        "kernel": known.kernel,
        "promised": promised | {"confirmed": invariant.confirmed, "not_violations": invariant.not_violations},
        "nearest_legal": {"protocol": legal.text, "windows": legal.count, "differences": beside} if legal else None,
        "violation": dict(known.violation),
    }


def invariant_text(invariant: Invariant) -> str:
    """An invariant in full."""
    lines = [f"{invariant.id}: {invariant.title}", ""]
    for name, text in _invariant_parts(invariant).items():
        for n, line in enumerate(text.splitlines()):
            lines.append(textwrap.fill(line, 100, initial_indent=f"{name if n == 0 else '':16}", subsequent_indent=" " * 16))
    return "\n".join(lines) + "\n"


def invariant_json(invariant: Invariant) -> dict[str, str]:
    return {"id": invariant.id, "title": invariant.title} | _invariant_parts(invariant)


def _invariant_parts(invariant: Invariant) -> dict[str, str]:
    hooks = ", ".join(invariant.needs).replace("|", " or ") or f"none in this version; will need {', '.join(invariant.awaits)}"
    return {
        "claim": invariant.claim,
        "stated in": invariant.stated,
        "not violations": invariant.not_violations,
        "how confirmed": invariant.confirmed,
        "blind spots": invariant.blind_spots,
        "hooks": hooks,
        "without": "\n".join(f"{name}: {cost}".replace("|", " or ") for name, cost in (invariant.lacking or {}).items()),
    }
