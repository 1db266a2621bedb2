"""What the state audit found: the wrong state, and the nodes of the maple tree down to it."""

from __future__ import annotations

from collections.abc import Iterator

from tracer.report.section import Section
from tracer.results.evidence import Evidence, MapleNode, WrongState


def state_sections(evidence: Evidence) -> Iterator[Section]:
    """Yield the sections of a finding of the state audit; none for other findings."""
    if evidence.wrong:
        lines = [line for one in evidence.wrong for line in _wrong(one)]
        yield Section("Wrong state", [*lines, "", f"Confirmed: {evidence.confirmed}."], code=True)
    if evidence.path:
        head = "From the root, as mt_dump() prints it (hexadecimal); >> is the node that is wrong."
        lines = [line for depth, node in enumerate(evidence.path) for line in _node(depth, node)]
        yield Section("Maple tree", [head, "", *lines], code=True)


def _wrong(one: WrongState) -> Iterator[str]:
    at = "folio" if "PAGE_INDEX" in one.names else "at"
    what = "VMA" if one.vma == one.at else f"VMA {one.vma}, {at}" if one.vma else "at"
    yield f"{what} {one.at}, addresses {one.low}-{one.high}:"
    yield from (f"  {problem}" for problem in one.problems)
    yield f"  {' '.join(one.names)}; expected {one.want}, found {one.got}"


def _node(depth: int, node: MapleNode) -> Iterator[str]:
    """Yield the lines of a node: its range, then each slot with its pivot and gap."""
    mark = ">>" if node.bad else "  "
    yield (
        f"{mark} {'  ' * depth}{node.min}-{node.max}: node {node.node} depth {depth} "
        f"type {node.type} parent {node.parent}"
        + (f" gap_slot {node.gap_slot}" if node.gap_slot is not None else "")
    )
    for n, slot in enumerate(node.slots):
        pivot = node.pivots[n] if n < len(node.pivots) else "-"
        gap = f" gap {node.gaps[n]}" if n < len(node.gaps) else ""
        yield f"{mark} {'  ' * depth}  [{n}] slot {slot} pivot {pivot}{gap}"
