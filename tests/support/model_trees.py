"""A reader of mms' trees whose looks are scripted, for tests of what decides on them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from tracer.memory.vma_trees import COUNTED, LAST_ADDRESS, Doubt, Look
from tracer.tables.mm import Mm

MM = Mm(0x1000, 0, 42, "victim", 7)


def doubt(
    *problems: str,
    low: int = 0x4000,
    high: int = 0x4FFF,
    vma: int = 0,
    at: int = 0x2000,
    raced: bool = False,
    got: int = 1,
) -> Doubt:
    """A doubt about one range."""
    return Doubt(problems, raced, vma, at, 0, got, low, high)


def look(
    *doubts: Doubt,
    vmas: int = 10,
    nodes: int = 3,
    climbs: int = 5,
    undisturbed: bool = True,
    alive: bool = True,
    complete: bool = True,
    counts_writers: bool = True,
    high: int = LAST_ADDRESS,
    lock_seq: int = 1,
    map_count: int = 10,
    doubted: int | None = None,
    whole: bool = True,
) -> Look:
    """A look that saw some of everything."""
    counted = dict.fromkeys(COUNTED, 0) | {"vmas": vmas, "nodes": nodes, "climbs": climbs}
    return Look(
        low=0,
        high=high,
        counted=counted,
        doubts=doubts,
        doubted=len(doubts) if doubted is None else doubted,
        owned=(),
        undisturbed=undisturbed,
        counts_writers=counts_writers,
        complete=complete,
        alive=alive,
        lock_seq=lock_seq,
        map_count=map_count,
        whole=whole,
    )


@dataclass
class ScriptedTrees:
    """Answers each look with the next of a script, and when that is over, with `then`.

    asked: (mm, low, high, most) of each look.
    """

    script: deque[Look] = field(default_factory=deque)
    then: Look = field(default_factory=look)
    tasks: Sequence[Mm] = (MM,)
    asked: list[tuple[Mm, int, int, int]] = field(default_factory=list)
    before: Callable[[], None] = lambda: None
    renewed: int = 0

    def mms(self) -> Sequence[Mm]:
        return self.tasks

    def renew_memory_end(self) -> None:
        self.renewed += 1

    def look(self, mm: Mm, low: int = 0, high: int = LAST_ADDRESS, most: int = 0) -> Look:
        self.before()
        self.asked.append((mm, low, high, most))
        return replace(self.script.popleft() if self.script else self.then, low=low)

    def copy(self, addresses: Sequence[int]) -> dict[int, tuple[int, ...]]:
        return {}


def scripted(*looks: Look) -> ScriptedTrees:
    """Return trees that answer these looks in this order."""
    return ScriptedTrees(deque(looks))
