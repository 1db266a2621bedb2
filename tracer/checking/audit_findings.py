"""Findings of the state audit: what is wrong in an mm, the path to it, and who changed it last."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from tracer.checking.findings import Draft, Explanation
from tracer.checking.open_doubts import DecidedDoubt
from tracer.checking.trail import Trails
from tracer.invariants.base import Invariant
from tracer.invariants.verdict import Finding, Verdict
from tracer.memory.maple_node import path_to
from tracer.memory.objects import ObjectReader
from tracer.memory.vma_trees import LAST_ADDRESS, Doubt, Trees
from tracer.printable import printable

_MOST_SHOWN = 8
_OF_PAGE = "PAGE_INDEX"
"""The problem of a folio: `at` of its doubt is the folio."""
_TREES = {"AUDIT_I_MMAP_RWSEM": "i_mmap", "AUDIT_ANON_VMA_RWSEM": "anon_vma"}
"""Lock of an interval tree -> the object that has the tree."""


class AuditFindings:
    """Drafts findings of the state audit.

    reader: reads the nodes on the path to what is wrong. trails: the windows in the flight recorder
    that changed these addresses last. clock: CLOCK_MONOTONIC in nanoseconds.
    """

    def __init__(
        self,
        invariants: Mapping[str, Invariant],
        reader: Trees,
        objects: ObjectReader,
        trails: Trails,
        clock: Callable[[], int],
    ) -> None:
        self._audited = {name: one.audit for name, one in invariants.items() if one.audit}
        self._reader, self._objects = reader, objects
        self._trails, self._clock = trails, clock

    def draft(self, decided: DecidedDoubt, invariant: str, doubts: Sequence[Doubt]) -> Draft:
        """Draft the finding that a rule is violated in an mm. doubts: those about this rule."""
        audited = self._audited[invariant]
        problems = sorted({p for doubt in doubts for p in doubt.problems if p in audited.problems})
        shape = f"problems={'+'.join(problems)}"
        if trees := sorted({_TREES[doubt.lock] for doubt in doubts if doubt.lock in _TREES}):
            shape += f" tree={'+'.join(trees)}"
        outline = Finding(invariant, Verdict.VIOLATED, audited.subject, shape, "")
        explain = partial(self._explain, decided, audited.problems, doubts)
        return Draft(outline, explain)

    def _explain(
        self, decided: DecidedDoubt, words: Mapping[str, str], doubts: Sequence[Doubt]
    ) -> Explanation:
        mm, first = decided.mm, doubts[0]
        wrong = [_described(doubt, words) for doubt in doubts[:_MOST_SHOWN]]
        where = f"{printable(mm.comm)}[{mm.tgid}] at {first.low:#x}-{first.high:#x}"
        evidence: dict[str, Any] = {
            "mm": hex(mm.mm),
            "tgid": mm.tgid,
            "comm": mm.comm,
            "low": hex(decided.low),
            "high": hex(decided.high),
            "confirmed": decided.reason,
            "wrong": wrong,
            "path": self._path(decided, first),
        }
        if vma := next((doubt.vma for doubt in doubts if doubt.vma), 0):
            evidence["vma_now"] = self._objects.vma(vma, mm.mm)
        if page := next((doubt.at for doubt in doubts if _OF_PAGE in doubt.problems), 0):
            evidence["folio_now"] = self._objects.folio(page)
        sentences = dict.fromkeys(text for one in wrong for text in one["problems"])
        return Explanation(
            f"{where}: {'; '.join(sentences)}",
            {"pid": mm.tgid, "tgid": mm.tgid, "comm": mm.comm},
            (),
            evidence,
            self._trails.of_range(mm.mm, first.low, first.high, self._clock()),
        )

    def _path(self, decided: DecidedDoubt, first: Doubt) -> list[dict[str, Any]]:
        """Return the nodes from the root to the bad one, or to the leaf of the bad VMA.

        The bad one is as it was when it was doubted; the others are read now.
        """
        root = self._reader.look(decided.mm, first.low, first.low, 1).root
        path = path_to(first.low, root, self._reader.copy, LAST_ADDRESS)
        out = []
        for node in path:
            bad = not first.vma and node.at == first.at
            out.append(node.as_json() | ({"bad": True} if bad else {}))
            if bad:
                break
        return out


def _described(doubt: Doubt, words: Mapping[str, str]) -> dict[str, Any]:
    """Return a doubt with the keys of a report: what is wrong in words, and the numbers."""
    numbers = {"want": doubt.want, "got": doubt.got, "low": doubt.low, "high": doubt.high}
    tree = _TREES.get(doubt.lock, "")
    texts = [words[p].format(**numbers, at=doubt.at) for p in doubt.problems if p in words]
    texts = [f"in the {tree} tree {text}" for text in texts] if tree else texts
    found = {"problems": texts, "names": list(doubt.problems), "at": hex(doubt.at)}
    found |= {name: hex(value) for name, value in numbers.items()}
    if tree:
        found["tree"] = tree
    return found | ({"vma": hex(doubt.vma)} if doubt.vma else {})
