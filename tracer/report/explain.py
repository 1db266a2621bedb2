"""`rmapd explain`: an invariant, or a violation as a report to linux-mm."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping
from typing import Any

from tracer.invariants.base import Invariant
from tracer.report.alignment import differences
from tracer.report.explain_sections import sections
from tracer.report.find_violation import ExplainedViolation
from tracer.report.similarity import legal_counterpart

_DETAIL = re.compile(r":| at 0x")
"""Where the part of a summary begins that is too long for a subject."""


def subject(known: ExplainedViolation) -> str:
    """Return the subject line: invariant, verdict, function, kernel and a short summary."""
    v = known.violation
    short = v.summary if known.evidence.kernel_text else _DETAIL.split(v.summary)[0]
    where = v.function if known.evidence.wrong else f"{known.culprit}()"
    return f"{v.invariant} {v.verdict} in {where} on {known.kernel}: {short}"


def as_text(known: ExplainedViolation, invariant: Invariant) -> str:
    """Return the explanation as a plain mail; prose is wrapped at 100 columns."""
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


def as_markdown(known: ExplainedViolation, invariant: Invariant) -> str:
    """Return the explanation as Markdown for an issue tracker."""
    out = [f"# {_plain(subject(known))}", ""]
    for section in sections(known, invariant):
        fenced = ["```", *(line.replace("```", "` ` `") for line in section.lines), "```"]
        body = fenced if section.code else "\n\n".join(map(_plain, section.lines)).split("\n")
        out += [f"## {_plain(section.title)}", "", *body, ""]
    return "\n".join([*out, *map(_plain, _foot(known))]) + "\n"


def _plain(line: str) -> str:
    """Escape Markdown, so that no name becomes a link, an image or HTML."""
    return re.sub(r"([\\`*_\[\]<>#~|])", r"\\\1", line)


def _foot(known: ExplainedViolation) -> list[str]:
    v = known.violation
    return ["-- ", f"rmapd {known.report.rmapd}".strip() + f", {v.id}: {v.signature}"]


def as_json(known: ExplainedViolation, invariant: Invariant) -> dict[str, Any]:
    """Return the explanation as JSON values; the violation has its names as they are."""
    both = legal_counterpart(known.violation, known.report)
    compared = differences(both[0].protocol, both[1].protocol) if both else []
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
        "nearest_legal": {
            "protocol": both[1].text,
            "windows": both[1].count,
            "differences": compared,
        }
        if both
        else None,
        "violation": dict(known.exact),
    }


def invariant_text(invariant: Invariant) -> str:
    """Return everything about an invariant as text."""
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
    """Return everything about an invariant as JSON values."""
    return {"id": invariant.id, "title": invariant.title} | _invariant_parts(invariant)


def list_text(known: Mapping[str, Invariant]) -> str:
    """Return all invariants, one a line; lines fit 80 columns."""
    return "".join(f"{name:3} {one.title}\n" for name, one in known.items())


def list_json(known: Mapping[str, Invariant]) -> list[dict[str, str]]:
    """Return all invariants with title and claim as JSON values."""
    return [{"id": name, "title": one.title, "claim": one.claim} for name, one in known.items()]


def _invariant_parts(invariant: Invariant) -> dict[str, str]:
    hooks = ", ".join(invariant.needs).replace("|", " or ")
    costs = dict(invariant.lacking)
    if one := invariant.otherwise:
        hooks += f"; or else, for a part, {', '.join(one.hooks)}"
        costs = {", ".join(invariant.needs): one.cost} | costs
    return {
        "claim": invariant.claim,
        "stated in": invariant.stated,
        "not violations": invariant.not_violations,
        "how confirmed": invariant.confirmed,
        "blind spots": invariant.blind_spots,
        "runbook": invariant.runbook,
        "hooks": hooks,
        "without": "\n".join(
            f"{name}: {cost}".replace("|", " or ") for name, cost in costs.items()
        ),
    }
