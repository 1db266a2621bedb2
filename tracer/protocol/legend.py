"""The legend of the notation of protocols, for pages and reports.

It has examples and their meaning. Each example is written by text.py, which writes the protocols
themselves, so a legend has no sign of its own; docs/PROTOCOLS.md has the same table at more length.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cache
from typing import NamedTuple

from tracer.protocol.model import (
    NULL,
    Call,
    Commit,
    Context,
    Follows,
    Geometry,
    Group,
    Held,
    Kept,
    Kind,
    Lock,
    Locking,
    Lost,
    Overlong,
    Owner,
    Part,
    Protocol,
    Step,
    Tree,
    TreeStep,
    Visit,
    Walker,
)
from tracer.protocol.text import parts, text, words


class LegendRow(NamedTuple):
    """One sign: with arrows, in ASCII (empty where that is the same), and what it means."""

    sign: str
    ascii: str
    meaning: str


class LegendGroup(NamedTuple):
    """The signs of one part of a protocol."""

    title: str
    rows: tuple[LegendRow, ...]


_FLAGS: tuple[tuple[Context, str], ...] = (
    (Context(file=True), "the VMA has a file at entry"),
    (Context(anon=True), "the VMA has an anon_vma at entry"),
    (Context(imported=True), "the VMA got its anon_vma in this window, a neighbour's or a new one"),
    (Context(hugetlb=True), "the VMA is of hugetlbfs"),
    (Context(locked=True), "an rmap walk whose caller declares that it holds the lock"),
    (Context(folio_locked=True), "the folio was locked when the walk began"),
    (Context(moved=True), "vm_start or vm_end changed"),
    (
        Context(rebuilt=True),
        "the function cannot be probed here: the window is made from the calls around it",
    ),
    (Context(piece=True), "a part of dup_mmap(): before, between or after its copies of VMAs"),
)
_GEOMETRY: Mapping[Geometry, str] = {
    Geometry.HOLDS: "V1: the VMA at return is as it was asked for",
    Geometry.EMPTY: "V1: the VMA is empty at return",
    Geometry.UNALIGNED: "V1: an address of the VMA is not a multiple of the page size",
    Geometry.NOT_AS_ASKED: "V1: the VMA has other boundaries than it was asked for",
    Geometry.PGOFF: "V1: the VMA's page offset does not go with its start",
    Geometry.OVERLAP: "V1: the VMA overlaps another one",
}
_FOLLOWS: Mapping[Follows, str] = {
    Follows.HOLDS: "V5: the anon_vma followed the pages",
    Follows.MISSING: "V5: the VMA got the pages, and no anon_vma",
    Follows.OTHER: "V5: the VMA got the pages, and another anon_vma",
}
_KEPT: Mapping[Kept, str] = {
    Kept.HOLDS: "V6: nothing changed but what was asked for",
    Kept.FLAGS: "V6: addresses have other vm_flags than they were to have",
    Kept.UFFD: "V6: addresses have another userfaultfd, or none",
    Kept.POLICY: "V6: addresses have another memory policy",
    Kept.FILE: "V6: addresses have another file, or another offset in it",
    Kept.NAME: "V6: addresses have another name",
    Kept.RANGE: "V6: the range is not what was asked for, or an address beside it is gone",
}
_WALKERS: Mapping[Walker, str] = {
    Walker.TRY_TO_MIGRATE: "the walk replaces mappings by migration entries",
    Walker.TRY_TO_UNMAP: "the walk removes mappings",
    Walker.REMOVE_MIGRATION: "the walk removes migration entries",
    Walker.REFERENCED: "the walk asks whether the folio was used",
    Walker.MKCLEAN: "the walk makes mappings clean",
    Walker.OTHER: "the walk has another user",
}
_OWNERS: Mapping[Owner, str] = {
    Owner.SELF: "held for write by this task",
    Owner.OTHER: "held for write by another task",
    Owner.READ: (
        "held for read by some task, perhaps not this one. At entry and return, i_mmap and anon are"
        " shown if this task was the last reader; PREEMPT_RT does not keep that"
    ),
    Owner.FREE: "free",
}
_LOCKING: Mapping[Kind, str] = {
    Kind.DOWN_WRITE: "takes the lock for write, and may wait for it",
    Kind.DOWN_READ: "takes the lock for read, and may wait for it",
    Kind.DOWN_WRITE_KILLABLE: "takes the lock for write; a fatal signal ends the wait",
    Kind.DOWN_READ_KILLABLE: "takes the lock for read; a fatal signal ends the wait",
    Kind.DOWN_WRITE_TRYLOCK: "takes the lock for write without waiting",
    Kind.DOWN_READ_TRYLOCK: "takes the lock for read without waiting",
    Kind.UP_WRITE: "releases the lock, held for write",
    Kind.UP_READ: "releases the lock, held for read",
    Kind.DOWNGRADE_WRITE: "turns the lock from write to read",
}
_ANON_LEAVES = TreeStep(Tree.ANON, False, Owner.SELF)
_STEPS: tuple[tuple[Step, str], ...] = (
    *((Locking(Lock.ANON, kind), f"{meaning}: {kind}()") for kind, meaning in _LOCKING.items()),
    (
        _ANON_LEAVES,
        "the VMA leaves the interval tree of its anon_vma, whose lock is held for write",
    ),
    (
        TreeStep(Tree.FILE, True, Owner.SELF),
        "the VMA enters the interval tree of its file, whose lock is held for write",
    ),
    (
        TreeStep(Tree.FILE, True, Owner.READ),
        "the same with the lock in another state, here read: a violation of L4",
    ),
    (TreeStep(Tree.ANON, True, None), "the same in a tree that no other task can reach yet"),
    (
        Commit(((Part.MMAP, Owner.SELF), (Part.ANON, Owner.SELF))),
        "the VMA is stored with new boundaries, and the states of its locks at that moment",
    ),
    (Visit(Owner.READ), "the rmap walk visits a VMA, and the state of the walk's lock"),
    (Call("anon_vma_clone"), "another window ran here; it has a protocol of its own"),
    (Group((_ANON_LEAVES,)), "these steps two times or more in a row"),
    (Lost(), "an event is missing here: what depends on it is unverifiable"),
    (Overlong(), "the window had more steps than a protocol holds"),
)


@cache
def legend() -> tuple[LegendGroup, ...]:
    """Return the legend; every sign of the notation is in it."""
    return (
        LegendGroup("Before the steps: function[context] -error", tuple(_head())),
        LegendGroup("Steps, in order", tuple(_steps())),
        LegendGroup(
            "States of a lock", tuple(LegendRow(o.value, "", text) for o, text in _OWNERS.items())
        ),
        LegendGroup("Locks", tuple(LegendRow(lock.value, "", _lock(lock)) for lock in Lock)),
    )


def _head() -> Iterator[LegendRow]:
    contexts = [
        *_FLAGS,
        (
            Context(entry=Held(mmap=Owner.SELF)),
            "the state of a lock at entry; a free one is left out",
        ),
        *((Context(geometry=geometry), meaning) for geometry, meaning in _GEOMETRY.items()),
        *((Context(follows=follows), meaning) for follows, meaning in _FOLLOWS.items()),
        *((Context(kept=kept), meaning) for kept, meaning in _KEPT.items()),
        *((Context(walker=walker), meaning) for walker, meaning in _WALKERS.items()),
    ]
    for context, meaning in contexts:
        shown = Protocol("", replace(context, exit=context.entry))
        yield LegendRow(" ".join(parts(shown)[0]), "", meaning)
    for error, meaning in (
        (errno.ENOMEM, "the error that the function returned"),
        (NULL, "the function returned NULL or false"),
    ):
        yield LegendRow(text(Protocol("", error=error)).removeprefix("[] "), "", meaning)


def _steps() -> Iterator[LegendRow]:
    yield from (_step(step, meaning) for step, meaning in _STEPS)
    at_return = Protocol("", Context(exit=Held(mmap=Owner.SELF)))
    with_arrow, in_ascii = (parts(at_return, ascii=ascii)[1] for ascii in (False, True))
    meaning = "at the end: the states at return, where they are not those at entry"
    yield LegendRow(with_arrow, in_ascii, meaning)


def _step(step: Step, meaning: str) -> LegendRow:
    (sign,), (in_ascii,) = words([step]), words([step], ascii=True)
    return LegendRow(sign, "" if sign == in_ascii else in_ascii, meaning)


def _lock(lock: Lock) -> str:
    if lock is lock.family:
        return lock.display_name
    return f"{lock.display_name}: not the first one that the window met"
