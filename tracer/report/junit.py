"""A run as JUnit XML for CI servers: a test suite for the kernel, a test case per invariant."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType

from tracer.invariants.verdict import Verdict
from tracer.printable import printable
from tracer.report.tap_points import TapPoint, tap_points
from tracer.report.terminal import violation_text
from tracer.results.snapshot import Snapshot
from tracer.results.standing_facts import standing


def as_junit(
    s: Snapshot,
    argv: Sequence[str],
    exit_code: int,
    bad: Collection[Verdict] = (Verdict.VIOLATED,),
    more: Mapping[str, str] = MappingProxyType({}),
) -> str:
    """Return the run as one test suite.

    argv, exit_code: of the command of exec. bad: the verdicts that fail a case, with the text of
    its violations. A case without a decision is skipped. more: further properties of the suite.
    """
    found = tap_points(s, bad)
    counts = {
        "tests": len(found),
        "failures": sum(bool(p.failed) for p in found),
        "errors": 0,
        "skipped": sum(bool(p.skip) for p in found),
    }
    attributes = {name: str(count) for name, count in counts.items()} | {
        "time": f"{s.running_seconds:.3f}"
    }
    root = ET.Element("testsuites", attributes | {"name": "rmapd"})
    suite = ET.SubElement(root, "testsuite", attributes | {"name": _xml(f"rmapd on {s.kernel}")})
    properties = ET.SubElement(suite, "properties")
    for name, value in (
        ("kernel", s.kernel),
        ("fidelity", s.fidelity),
        ("command", " ".join(argv)),
        ("exit_code", str(exit_code)),
        *more.items(),
        *_standing(s),
    ):
        ET.SubElement(properties, "property", name=name, value=_xml(value))
    for point in found:
        _case(suite, point)
    ET.indent(root)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{ET.tostring(root, encoding="unicode")}\n'


def _standing(s: Snapshot) -> list[tuple[str, str]]:
    """Return the standing as properties: colour, title, reasons, entries without a verdict."""
    stands = standing(s)
    reasons = [(f"reason.{kind}", text) for kind, text in stands.reasons.items()]
    return [
        ("standing", stands.colour),
        ("standing.title", stands.title),
        *reasons,
        ("outstanding", str(s.outstanding)),
    ]


def _case(suite: ET.Element, point: TapPoint) -> None:
    case = ET.SubElement(
        suite, "testcase", classname="rmapd", name=f"{point.id}: {point.title}", time="0"
    )
    if point.failed:
        text = "\n\n".join("\n".join(violation_text(v)) for v in point.found)
        ET.SubElement(case, "failure", type=point.id, message=_xml(point.failed)).text = _xml(text)
    elif point.skip:
        ET.SubElement(case, "skipped", message=_xml(point.skip))
    findings = [
        printable(
            f"{v.first.verdict} {v.first.id} ×{v.count} {v.first.function}: {v.first.summary}"
        )
        for v in point.found
    ]
    ET.SubElement(case, "system-out").text = _xml("\n".join([point.checks, *findings]))


def _xml(text: str) -> str:
    """Escape characters that XML cannot contain, and control characters of terminals."""
    return printable(text, keep="\t\n")
