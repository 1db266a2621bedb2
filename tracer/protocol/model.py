"""The classes of a protocol.

A window is one call of a function that changes VMAs or walks rmap; its protocol is what it did
with locks and interval trees, in order. The probes count windows by protocol.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

NULL = 0xFFFF
"""The error of a window that returned NULL or false."""


class Owner(enum.StrEnum):
    """The owner of an rwsem: `r` held for read, `w` for write by this task, `x` by another task."""

    FREE = "-"
    READ = "r"
    OTHER = "x"
    SELF = "w"


class Lock(enum.StrEnum):
    """Lock classes; mmap2, i_mmap2 and anon2 are further instances in the same window."""

    OTHER = "other"
    MMAP = "mmap"
    MMAP2 = "mmap2"
    I_MMAP = "i_mmap"
    I_MMAP2 = "i_mmap2"
    ANON = "anon"
    ANON2 = "anon2"
    VMA = "vma"
    I_RWSEM = "i_rwsem"
    INVALIDATE = "invalidate"
    HUGETLB = "hugetlb"

    @property
    def family(self) -> Lock:
        """The class without the number of the instance."""
        return Lock(self.value.rstrip("2"))

    @property
    def display_name(self) -> str:
        """The name of the lock for kernel developers."""
        name = _DISPLAY_NAMES.get(self.family, f"{self.family} lock")
        return f"another {name}" if self is not self.family else name


_DISPLAY_NAMES = {
    Lock.OTHER: "lock of no known class",
    Lock.MMAP: "mmap_lock",
    Lock.I_MMAP: "i_mmap_rwsem",
    Lock.ANON: "anon_vma rwsem",
    Lock.VMA: "VMA lock",
    Lock.I_RWSEM: "i_rwsem",
    Lock.INVALIDATE: "invalidate_lock",
    Lock.HUGETLB: "hugetlb vma_lock",
}


class Kind(enum.StrEnum):
    """The rwsem operations by the kernel's names; only successful ones are steps."""

    DOWN_READ = "down_read"
    DOWN_WRITE = "down_write"
    DOWN_READ_KILLABLE = "down_read_killable"
    DOWN_WRITE_KILLABLE = "down_write_killable"
    DOWN_READ_TRYLOCK = "down_read_trylock"
    DOWN_WRITE_TRYLOCK = "down_write_trylock"
    UP_READ = "up_read"
    UP_WRITE = "up_write"
    DOWNGRADE_WRITE = "downgrade_write"

    @property
    def acquires(self) -> bool:
        """Whether it acquires the lock."""
        return self.value.startswith("down_")

    @property
    def blocks(self) -> bool:
        """Whether it may wait for the lock, and thus deadlock."""
        return self.acquires and not self.value.endswith("trylock")

    @property
    def writes(self) -> bool:
        """Whether it acquires, releases or downgrades the lock for write."""
        return "write" in self.value


class Tree(enum.StrEnum):
    """The two interval trees in which rmap finds VMAs."""

    FILE = "file"
    ANON = "anon"


class Part(enum.StrEnum):
    """The locks of the stored VMA whose owners a commit records, in this order."""

    MMAP = "mmap"
    VMA = "vma"
    I_MMAP = "i_mmap"
    ANON = "anon"


class Geometry(enum.StrEnum):
    """The result of V1, read from the VMA at the end of the window."""

    NONE = "none"
    HOLDS = "holds"
    EMPTY = "empty"
    UNALIGNED = "unaligned"
    NOT_AS_ASKED = "not_as_asked"
    PGOFF = "pgoff"
    OVERLAP = "overlap"


class Follows(enum.StrEnum):
    """The result of V5, read from the VMAs at the end of the window."""

    NONE = "none"
    HOLDS = "holds"
    MISSING = "missing"
    OTHER = "other"


class Kept(enum.StrEnum):
    """The result of V6: what differs where a merge, a split or a move was to keep it."""

    NONE = "none"
    HOLDS = "holds"
    FLAGS = "flags"
    UFFD = "uffd"
    POLICY = "policy"
    FILE = "file"
    NAME = "name"
    RANGE = "range"


class Walker(enum.StrEnum):
    """The user of an rmap walk, known by its rmap_one()."""

    NONE = "none"
    TRY_TO_MIGRATE = "try_to_migrate"
    TRY_TO_UNMAP = "try_to_unmap"
    REMOVE_MIGRATION = "remove_migration"
    REFERENCED = "referenced"
    MKCLEAN = "mkclean"
    OTHER = "other"


BOUNDARY_WINDOWS = frozenset(
    "__vma_adjust vma_expand vma_shrink commit_merge __split_vma vma_merge vma_merge_new_range "
    "vma_merge_existing_range vma_modify do_brk_flags expand_downwards expand_upwards".split()
)
"""Windows that change the boundaries of a VMA that other tasks can find.

copy_vma() and dup_mmap() are not among them: they make new VMAs.
"""

FOLIO_LOCK_WALKERS = (
    Walker.TRY_TO_MIGRATE,
    Walker.TRY_TO_UNMAP,
    Walker.REMOVE_MIGRATION,
    Walker.MKCLEAN,
)
"""Walkers whose callers hold the folio lock.

See mm/rmap.c, try_to_migrate() and folio_mkclean(), and mm/migrate.c, remove_migration_ptes().
"""


@dataclass(frozen=True)
class Locking:
    """An rwsem operation."""

    lock: Lock
    kind: Kind


@dataclass(frozen=True)
class TreeStep:
    """A VMA is inserted into a tree or removed from it.

    owner: of the tree's lock; None if no other task can reach the tree yet.
    """

    tree: Tree
    enters: bool
    owner: Owner | None


@dataclass(frozen=True)
class Commit:
    """A VMA is stored with new boundaries; a part is absent if the VMA has no such lock."""

    parts: tuple[tuple[Part, Owner], ...]


@dataclass(frozen=True)
class Visit:
    """An rmap walk visits a VMA; owner: of the walk's lock."""

    owner: Owner


@dataclass(frozen=True)
class Call:
    """An inner window, which has a protocol of its own."""

    window: str


@dataclass(frozen=True)
class Lost:
    """An event that was lost."""


@dataclass(frozen=True)
class Overlong:
    """The window had more steps than a protocol holds."""


@dataclass(frozen=True)
class Group:
    """Steps that were repeated two or more times."""

    steps: tuple[Step, ...]


Step: TypeAlias = Locking | TreeStep | Commit | Visit | Call | Lost | Overlong | Group


@dataclass(frozen=True)
class Held:
    """The owners of the first mmap_lock, i_mmap_rwsem and anon_vma lock at one moment."""

    mmap: Owner = Owner.FREE
    i_mmap: Owner = Owner.FREE
    anon: Owner = Owner.FREE

    def items(self) -> tuple[tuple[Lock, Owner], ...]:
        """Return the three locks with their owners."""
        return (Lock.MMAP, self.mmap), (Lock.I_MMAP, self.i_mmap), (Lock.ANON, self.anon)


@dataclass(frozen=True)
class Context:
    """The context of a window: enum context of probes/include/shared.h."""

    file: bool = False
    anon: bool = False
    imported: bool = False
    hugetlb: bool = False
    locked: bool = False
    folio_locked: bool = False
    moved: bool = False
    rebuilt: bool = False
    piece: bool = False
    entry: Held = Held()
    exit: Held = Held()
    geometry: Geometry = Geometry.NONE
    follows: Follows = Follows.NONE
    walker: Walker = Walker.NONE
    kept: Kept = Kept.NONE


FLAGS = (
    "file",
    "anon",
    "imported",
    "hugetlb",
    "locked",
    "folio_locked",
    "moved",
    "rebuilt",
    "piece",
)
"""The members of Context that are one bit each, in the order of enum context."""


@dataclass(frozen=True)
class Protocol:
    """One distinct behaviour of one function; error: the errno of a failed window, or NULL."""

    window: str
    context: Context = Context()
    error: int = 0
    steps: tuple[Step, ...] = ()

    def flat(self, times: int = 1) -> tuple[Step, ...]:
        """Return the steps with each group expanded this many times."""
        return tuple(_flat(self.steps, times))

    @property
    def lost(self) -> bool:
        """Whether an event of the window was lost."""
        return Lost() in self.flat()

    @property
    def overlong(self) -> bool:
        """Whether the window had more steps than a protocol holds."""
        return Overlong() in self.flat()

    @property
    def calls(self) -> frozenset[str]:
        """The functions of inner windows."""
        return frozenset(step.window for step in self.flat() if isinstance(step, Call))


def _flat(steps: Iterable[Step], times: int) -> Iterator[Step]:
    for step in steps:
        if isinstance(step, Group):
            for _ in range(times):
                yield from _flat(step.steps, times)
        else:
            yield step


def joined(steps: Iterable[Step]) -> tuple[Step, ...]:
    """Return the steps with adjacent commits joined while their parts are in rising order.

    The probes write a commit as one byte per part.
    """
    order, out = list(Part), list[Step]()
    for step in steps:
        last = out[-1] if out else None
        if (
            isinstance(step, Commit)
            and isinstance(last, Commit)
            and order.index(last.parts[-1][0]) < order.index(step.parts[0][0])
        ):
            out[-1] = Commit(last.parts + step.parts)
        else:
            out.append(step)
    return tuple(out)
