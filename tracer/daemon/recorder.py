"""Keep the checker's results in memory that outlives the process (checkpoint.py); restore them.

Without such a memory nothing is kept, and every call does nothing.
"""

from __future__ import annotations

from tracer.attach.attached import AttachedProbes
from tracer.bpf.maps import Table, possible_cpus
from tracer.checking.checker import Checker
from tracer.checking.protocol_verdicts import ProtocolVerdicts
from tracer.supervision.checkpoint import (
    Checkpoint,
    CheckpointMemory,
    CheckpointState,
    Recovered,
    UndoLogMap,
)
from tracer.supervision.takeover import TakeoverRecord

_SETTLED = ("ledger", "frozen")
"""Maps that the checker takes rows out of."""


class Recorder:
    """Logs what the checker takes out of the kernel's maps, and its state.

    run is the name of the run in the store. descriptors are those that another process needs to go
    on after this one has died; they are known after begin().
    """

    def __init__(self, memory: CheckpointMemory | None) -> None:
        self._memory, self._checkpoint = memory, Checkpoint(memory) if memory else None
        self.run, self.descriptors = "", list[int]()

    def tables(self, loaded: AttachedProbes) -> dict[str, Table]:
        """Return the maps by name; those whose rows are settled log each row before it changes."""
        tables = dict[str, Table](loaded.maps)
        if self._checkpoint:
            settled = {name: table for name, table in loaded.maps.items() if name in _SETTLED}
            tables |= {
                name: UndoLogMap(name, table, self._checkpoint.note_row, possible_cpus())
                for name, table in settled.items()
            }
        return tables

    def note_event(self, at: int, event: bytes) -> None:
        """Log an event before it is taken out of the ring at this position."""
        if self._checkpoint:
            self._checkpoint.note_event(at, event)

    def begin(self, takeover: TakeoverRecord) -> None:
        """Write the first record, before the gate opens."""
        if self._memory and self._checkpoint:
            self._checkpoint.begin(takeover.encoded())
            self.descriptors = [self._memory.fd, *takeover.maps_and_programs()]

    def commit(
        self, checker: Checker, rulings: ProtocolVerdicts, level: str, *, stored: bool = False
    ) -> None:
        """Write the checker's state: a death of this process loses nothing checked until now.

        level: the fidelity. stored: the state is in the store as well.
        """
        if not self._checkpoint:
            return
        tally, open_cases = checker.tally, checker.open_cases
        state = CheckpointState(
            level=level,
            checks=[(*which, count) for which, count in tally.checks.items()],
            rest=[(*which, count) for which, count in tally.rest.items()],
            violations=dict(tally.violations),
            answers=dict(open_cases.answers),
            entries=list(checker.entries.items()),
            case_rows=open_cases.held_rows(),
            late=checker.late.state,
            sweeps=open_cases.sweeps,
            run=self.run,
        )
        self._checkpoint.commit(state, rulings.changed_counts, open_cases.proven, stored=stored)

    def beat(self) -> None:
        """Record that this process is alive and checks."""
        if self._memory:
            self._memory.beat()


def resume(recovered: Recovered, checker: Checker, rulings: ProtocolVerdicts) -> None:
    """Put the state of a dead checker into a new one."""
    state = recovered.state
    checker.tally.resume(
        {(invariant, verdict): count for invariant, verdict, count in state.checks},
        {(invariant, verdict): count for invariant, verdict, count in state.rest},
        state.violations,
    )
    rulings.resume(state.protocols)
    checker.resume(dict(state.entries), state.late, state.case_rows)
    checker.open_cases.resume(state.answers, state.sweeps, state.proven)
