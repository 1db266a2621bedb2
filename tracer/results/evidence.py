"""The evidence, trail, task and machine of a violation, read back from a report or a store.

See EVIDENCE.md. Members that are not known have their default.
"""

from __future__ import annotations

from typing import Any

import msgspec


class Cgroup(msgspec.Struct, frozen=True):
    """A cgroup. id: its inode."""

    id: int | None = None
    name: str = ""


class Task(msgspec.Struct, frozen=True):
    """A task as the kernel's event named it."""

    pid: int | None = None
    tgid: int | None = None
    comm: str = ""
    cgroup: Cgroup | None = None


class Vma(msgspec.Struct, frozen=True):
    """A VMA with its range before and after. same: it is still a VMA of the same mm."""

    vma: str = ""
    was_start: str = ""
    was_end: str = ""
    vm_start: str = ""
    vm_end: str = ""
    flags: str = ""
    file: str = ""
    same: bool = True


class Folio(msgspec.Struct, frozen=True):
    """A folio when it was looked at."""

    folio: str = ""
    kind: str = ""
    order: int | None = None
    flags: list[str] = []
    pfn: str = ""


class EntryEvidence(msgspec.Struct, frozen=True):
    """A migration entry that was found. locked: whether its page is; None: not known."""

    addr: str = ""
    entry: str = ""
    pfn: str | None = None
    tgid: int | None = None
    comm: str = ""
    locked: bool | None = None
    first_walk: Vma = Vma()
    vma_now: Vma = Vma()
    folio_now: Folio = Folio()
    to_folio_now: Folio = Folio()
    second_walk: str = ""


class CycleEdge(msgspec.Struct, frozen=True):
    """`taken` was waited for while `held` was held, first in this protocol."""

    held: str = ""
    taken: str = ""
    protocol: str = ""
    stack: list[str] = []


class Culprit(msgspec.Struct, frozen=True):
    """The function that the evidence points at."""

    function: str = ""
    why: str = ""


class MapleNode(msgspec.Struct, frozen=True):
    """A node of a maple tree, all numbers in hexadecimal. bad: it is the one that is wrong."""

    node: str = ""
    type: str = ""
    min: str = ""
    max: str = ""
    parent: str = ""
    slots: list[str] = []
    pivots: list[str] = []
    gaps: list[str] = []
    gap_slot: int | None = None
    bad: bool = False


class WrongState(msgspec.Struct, frozen=True):
    """What the state audit found wrong with one object.

    problems: in words; names: of enum audit_problem. at: the node, VMA, anon_vma_chain or rb_node.
    tree: i_mmap or anon_vma, for a node of an interval tree.
    """

    problems: list[str] = []
    names: list[str] = []
    at: str = ""
    want: str = ""
    got: str = ""
    low: str = ""
    high: str = ""
    vma: str = ""
    tree: str = ""


class Evidence(EntryEvidence, frozen=True):
    """The evidence of any invariant.

    An entry's own members where there is one entry; vma and folio are addresses, or what was read
    there. low, high, confirmed, wrong, path: of the state audit. kernel_text, printed_by: the
    kernel's own report, and the task that was running if it is about another one.
    """

    entries: list[EntryEvidence] | None = None
    mm: str = ""
    vma: Vma | str = Vma()
    folio: Folio | str = Folio()
    addresses: dict[str, str] = {}
    proven: bool | None = None
    edges: list[CycleEdge] = []
    culprit: Culprit = Culprit()
    trail_note: str = ""
    opposite_stack: list[str] = []
    outer_mm: str | None = None
    inner_mm: str | None = None
    opposite_task: int | None = None
    age_seconds: float | None = None
    entries_outstanding: int | None = None
    low: str = ""
    high: str = ""
    confirmed: str = ""
    wrong: list[WrongState] = []
    path: list[MapleNode] = []
    lock: str = ""
    owner: str = ""
    system_call: int | None = None
    kernel_text: list[str] = []
    printed_by: str = ""


class Step(msgspec.Struct, frozen=True):
    """A window of a trail. marked: the evidence points at it."""

    time_ns: int = 0
    function: str = ""
    task: Task = Task()
    vma: Vma = Vma()
    protocol: str = ""
    marked: bool = False
    why: str = ""
    stack: list[str] = []


class MachineState(msgspec.Struct, frozen=True):
    """The kernel on which the violation was found."""

    kernel: str = ""
    tainted: str = ""
    command_line: list[str] = []


class ViolationDetails(msgspec.Struct, frozen=True):
    """All details of one violation."""

    evidence: Evidence = Evidence()
    trail: list[Step] = []
    task: Task = Task()
    machine: MachineState = MachineState()


def read_details(violation: Any) -> ViolationDetails:
    """Return the details of an object with these members. ValueError names the wrong member."""
    given = {name: getattr(violation, name) for name in ViolationDetails.__struct_fields__}
    try:
        return msgspec.convert(given, ViolationDetails)
    except msgspec.ValidationError as error:
        raise ValueError(str(error)) from error
