"""A session's judge and the memory that outlives it (checkpoint.py), where there is one: without it nothing is kept and nothing is done."""

from __future__ import annotations

from tracer.attach.attached import AttachedProbes
from tracer.bpf.maps import Table, possible_cpus
from tracer.checking.checker import Checker
from tracer.checking.protocol_verdicts import ProtocolVerdicts
from tracer.daemon.fidelity import Fidelity
from tracer.invariants.migration_entries import LEFT_BEHIND
from tracer.supervision.checkpoint import Checkpoint, CheckpointState, Left, Memory, Undoable
from tracer.supervision.handed_down import HandedDown

_SETTLED = ("ledger", "frozen")
"""Maps whose rows the judge takes out."""


class Recorder:
    """tables() and note_event are for the books and the ring, bind() for when there is a judge; then begin(), and commit() as often as
    something was judged. run: its name in the store; descriptors: all that who comes after needs, no attachment among them."""

    def __init__(self, memory: Memory | None) -> None:
        self._memory, self._checkpoint, self.run = memory, None, ""
        self.descriptors: list[int] = []

    _checkpoint: Checkpoint | None

    def tables(self, loaded: AttachedProbes) -> dict[str, Table]:
        """The maps, those whose rows are settled with a note of each."""
        tables = dict[str, Table](loaded.maps)
        if self._memory:
            settled = {name: table for name, table in loaded.maps.items() if name in _SETTLED}
            tables |= {
                name: Undoable(name, table, self.note_row, possible_cpus())
                for name, table in settled.items()
            }
        return tables

    def note_row(self, name: str, key: bytes, value: bytes) -> None:
        if self._checkpoint:
            self._checkpoint.note_row(name, key, value)

    def note_event(self, at: int, event: bytes) -> None:
        if self._checkpoint:
            self._checkpoint.note_event(at, event)

    def bind(self, judge: Checker, rulings: ProtocolVerdicts, fidelity: Fidelity) -> None:
        def look() -> CheckpointState:
            tally, open_cases = judge.tally, judge.open_cases
            return CheckpointState(
                level=fidelity.level,
                checks=[(*which, count) for which, count in tally.checks.items()],
                rest=[(*which, count) for which, count in tally.rest.items()],
                violations=dict(tally.violations),
                answers=dict(open_cases.answers),
                entries=list(judge.entries.items()),
                held=open_cases.held_rows(),
                late=judge.late.state,
                sweeps=open_cases.sweeps,
                run=self.run,
            )

        if self._memory:
            self._checkpoint = Checkpoint(
                self._memory, look, rulings.moved, lambda: judge.open_cases.proven
            )

    def begin(self, handed_down: HandedDown) -> None:
        if self._memory and self._checkpoint:
            self._checkpoint.begin(handed_down.encoded())
            self.descriptors = [self._memory.fd, *handed_down.kept()]

    def commit(self, *, stored: bool = False) -> None:
        """Nothing that was judged until now is lost when this process dies. stored: and it is in the store."""
        if self._checkpoint:
            self._checkpoint.commit(stored=stored)

    def beat(self) -> None:
        """This process is alive, and judges."""
        if self._memory:
            self._memory.beat()


def resume(left: Left, judge: Checker, rulings: ProtocolVerdicts) -> None:
    """Go on from where another judge was."""
    state, tally, open_cases = left.state, judge.tally, judge.open_cases
    tally.checks.update({(invariant, verdict): count for invariant, verdict, count in state.checks})
    tally.rest.update({(invariant, verdict): count for invariant, verdict, count in state.rest})
    tally.violations |= state.violations
    rulings.resume(state.protocols)
    open_cases.answers.update(state.answers)
    judge.entries.update(dict(state.entries))
    judge.late.resume(*state.late)
    open_cases.open(LEFT_BEHIND.id, state.held)
    open_cases.sweeps, open_cases.proven = state.sweeps, set(state.proven)
