"""Which addresses are looked at next: those of open cases, a few at a time.

One address of each migration comes first, so that the first verdict on it costs one look-up in each
mm and not one for each entry that it left. The other addresses follow in turns. A turn keeps its
addresses until their cases are decided, or until they had enough looks for that, so verdicts leave
as they are made. A look is at as many of them as fit: one that may decide is in more mms than those
before. Pure: it is given what is open, and what the last look cost.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from tracer.invariants.migration_entries import LOOKS
from tracer.tables.mm import Mm

TURN_NS = 20_000_000
"""CPU time of one look: the loop does nothing else meanwhile, and the pause after it is 50 times as
long."""
_FIRST_QUESTIONS = 64
"""In one look, before it is known what a question costs."""
_LOOKS_A_TURN = LOOKS + 1
"""An entry that was locked at the first look may still be proven in the same turn."""


@dataclass(frozen=True)
class Waiting:
    """An address at which open cases are looked for.

    migrations: whose cases they are. mms: in which the address is looked up.
    """

    migrations: frozenset[Hashable]
    mms: Sequence[Mm]


@dataclass
class Turns:
    """Chooses the addresses of each look. most: questions in one look, whatever they cost."""

    most: int
    _turn: dict[int, int] = field(default_factory=dict)  # looks so far, by address
    _first: bool = False
    _begun: set[Hashable] = field(default_factory=set)  # migrations whose first address had a turn
    _had: set[int] = field(default_factory=set)  # addresses that had a turn in this round
    _room: int = _FIRST_QUESTIONS

    def choose(self, waiting: Mapping[int, Waiting]) -> list[int]:
        """Return the addresses to look at now. waiting: by address, in the order of opening."""
        self._turn = {
            addr: looks
            for addr, looks in self._turn.items()
            if addr in waiting and looks < _LOOKS_A_TURN
        }
        if not self._turn:
            self._turn = dict.fromkeys(self._next_turn(waiting), 0)
        now = self._that_fit(self._turn, waiting, min(self.most, self._room))
        for addr in now:
            self._turn[addr] += 1
        return now

    def hurry(self, waiting: Collection[int]) -> bool:
        """Whether a turn of first addresses goes on, of which some are among these."""
        return self._first and any(
            looks < _LOOKS_A_TURN and addr in waiting for addr, looks in self._turn.items()
        )

    def everything(self, waiting: Mapping[int, Waiting]) -> list[int]:
        """Return all addresses, as far as `most` allows."""
        return self._that_fit(waiting, waiting, self.most)

    def _next_turn(self, waiting: Mapping[int, Waiting]) -> list[int]:
        """First addresses and others take turns, so that neither waits for all of the other."""
        self._begun &= {one for entry in waiting.values() for one in entry.migrations}
        self._had &= waiting.keys()
        first = [] if self._first else self._first_addresses(waiting)
        self._first = bool(first)
        if not first and not (others := [addr for addr in waiting if addr not in self._had]):
            self._had.clear()
            others = list(waiting)
        turn = self._that_fit(first or others, waiting, min(self.most, self._room))
        self._had.update(turn)
        self._begun.update(one for addr in turn for one in waiting[addr].migrations)
        return turn

    def _first_addresses(self, waiting: Mapping[int, Waiting]) -> list[int]:
        new, found = set(self._begun), list[int]()
        for addr, entry in waiting.items():
            if not entry.migrations <= new:
                new |= entry.migrations
                found.append(addr)
        return found

    def _that_fit(
        self, addresses: Iterable[int], waiting: Mapping[int, Waiting], most: int
    ) -> list[int]:
        """Return the first of these addresses, for at most so many questions; one at least."""
        found, questions = list[int](), 0
        for addr in addresses:
            questions += len(waiting[addr].mms)
            if found and questions > most:
                break
            found.append(addr)
        return found

    def spent(self, asking_ns: int, other_ns: int, questions: int) -> None:
        """Note what a look cost: its questions, and the rest, such as the list of mms.

        A look may ask for as long as the rest takes: small ones would cost far more. It is made
        larger step by step, as what one question costs alone says little about many.
        """
        most_ns = max(TURN_NS, other_ns)
        if asking_ns > most_ns:
            self._room = max(1, questions * most_ns // asking_ns)
        elif asking_ns <= most_ns // 2:
            self._room = max(self._room, 2 * questions)
