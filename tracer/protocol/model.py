"""A protocol: what one call of a function that changes VMAs or walks rmap (a *window*) did with locks and trees, in order.

The kernel counts windows by protocol (probes/include/shared.h, Book 2); tracer/protocol/codec.py turns its bytes into these
classes, tracer/protocol/text.py is their text form, and tracer/invariants judge them.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

NULL = 0xFFFF
"""The error of a window that returned NULL or false."""


class Owner(enum.StrEnum):
    """What the owner field of an rwsem says: `r` somebody reads, `w` this task has it for write, `x` another task has."""

    FREE = "-"
    READ = "r"
    OTHER = "x"
    SELF = "w"


class Lock(enum.StrEnum):
    """Lock classes; mmap2, i_mmap2 and anon2 are instances other than the one met first in the window."""

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
        """The class without regard to the instance."""
        return Lock(self.value.rstrip("2"))

    @property
    def spoken(self) -> str:
        """As a kernel developer says it."""
        name = _SPOKEN.get(self.family, f"{self.family} lock")
        return f"another {name}" if self is not self.family else name


_SPOKEN = {
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
    """The rwsem operations, by the kernel's names. A failed trylock or an interrupted wait is no step."""

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
        return self.value.startswith("down_")

    @property
    def blocks(self) -> bool:
        """Whether it may wait, and so can deadlock."""
        return self.acquires and not self.value.endswith("trylock")

    @property
    def writes(self) -> bool:
        return "write" in self.value


class Tree(enum.StrEnum):
    """The two interval trees that rmap finds VMAs by."""

    FILE = "file"
    ANON = "anon"


class Part(enum.StrEnum):
    """The locks that a commit looks at, of the VMA that is stored, in this order."""

    MMAP = "mmap"
    VMA = "vma"
    I_MMAP = "i_mmap"
    ANON = "anon"


class Geometry(enum.StrEnum):
    """V1, read from the VMA when the window ends."""

    NONE = "none"
    HOLDS = "holds"
    EMPTY = "empty"
    UNALIGNED = "unaligned"
    NOT_AS_ASKED = "not_as_asked"
    PGOFF = "pgoff"
    OVERLAP = "overlap"


class Follows(enum.StrEnum):
    """V5, read from the VMAs when the window ends."""

    NONE = "none"
    HOLDS = "holds"
    MISSING = "missing"
    OTHER = "other"


class Walker(enum.StrEnum):
    """Whose rmap_one() a walk calls."""

    NONE = "none"
    TRY_TO_MIGRATE = "try_to_migrate"
    TRY_TO_UNMAP = "try_to_unmap"
    REMOVE_MIGRATION = "remove_migration"
    REFERENCED = "referenced"
    MKCLEAN = "mkclean"
    OTHER = "other"


BOUNDARY_WINDOWS = frozenset(
    "__vma_adjust vma_expand vma_shrink commit_merge __split_vma vma_merge vma_merge_new_range vma_merge_existing_range vma_modify "
    "do_brk_flags expand_downwards expand_upwards".split()
)
"""Windows that change the boundaries of a VMA that others can find. copy_vma() and dup_mmap() make new ones."""

FOLIO_LOCK_WALKERS = (
    Walker.TRY_TO_MIGRATE,
    Walker.TRY_TO_UNMAP,
    Walker.REMOVE_MIGRATION,
    Walker.MKCLEAN,
)
"""Walkers whose callers hold the folio lock: mm/rmap.c, try_to_migrate(), folio_mkclean(); mm/migrate.c, remove_migration_ptes()."""


@dataclass(frozen=True)
class Locking:
    """An rwsem operation."""

    lock: Lock
    kind: Kind


@dataclass(frozen=True)
class TreeStep:
    """A VMA enters or leaves a tree; owner: of the tree's lock, None where no other task can reach the tree yet."""

    tree: Tree
    enters: bool
    owner: Owner | None


@dataclass(frozen=True)
class Commit:
    """A VMA is stored with new boundaries. A part is absent where the VMA has no such lock."""

    parts: tuple[tuple[Part, Owner], ...]


@dataclass(frozen=True)
class Visit:
    """An rmap walk calls back; owner: of the walk's lock."""

    owner: Owner


@dataclass(frozen=True)
class Call:
    """An inner window ran here; it has a protocol of its own."""

    window: str


@dataclass(frozen=True)
class Lost:
    """An event is missing here."""


@dataclass(frozen=True)
class Overlong:
    """The window had more steps than a protocol holds."""


@dataclass(frozen=True)
class Group:
    """These steps came two times in a row, or more often."""

    steps: tuple[Step, ...]


Step: TypeAlias = Locking | TreeStep | Commit | Visit | Call | Lost | Overlong | Group


@dataclass(frozen=True)
class Held:
    """The owner states of the window's first three locks at one moment."""

    mmap: Owner = Owner.FREE
    i_mmap: Owner = Owner.FREE
    anon: Owner = Owner.FREE

    def items(self) -> tuple[tuple[Lock, Owner], ...]:
        return (Lock.MMAP, self.mmap), (Lock.I_MMAP, self.i_mmap), (Lock.ANON, self.anon)


@dataclass(frozen=True)
class Context:
    """What is known of the window besides its steps (enum context in shared.h)."""

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
    """One distinct behaviour of one function. error: errno of a failed window, or NULL."""

    window: str
    context: Context = Context()
    error: int = 0
    steps: tuple[Step, ...] = ()

    def flat(self, times: int = 1) -> tuple[Step, ...]:
        """The steps without groups, each group this many times."""
        return tuple(_flat(self.steps, times))

    @property
    def lost(self) -> bool:
        return Lost() in self.flat()

    @property
    def overlong(self) -> bool:
        return Overlong() in self.flat()

    @property
    def calls(self) -> frozenset[str]:
        """The inner windows."""
        return frozenset(step.window for step in self.flat() if isinstance(step, Call))


def _flat(steps: Iterable[Step], times: int) -> Iterator[Step]:
    for step in steps:
        if isinstance(step, Group):
            for _ in range(times):
                yield from _flat(step.steps, times)
        else:
            yield step


def joined(steps: Iterable[Step]) -> tuple[Step, ...]:
    """The steps with neighbouring commit parts in one commit for as long as the order of parts increases, as the kernel writes them."""
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
