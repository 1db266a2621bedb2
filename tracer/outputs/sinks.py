"""What the daemon does about what was found: stored first, then logged, then handed to the OTLP collector.

The judging thread calls react() after each look at the books.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from tracer.config import STORE, Config
from tracer.errors import RmapdError
from tracer.invariants.verdict import Finding, Tally
from tracer.outputs.log import FindingLog
from tracer.outputs.otlp import Sender
from tracer.outputs.store.database import Foreign
from tracer.outputs.store.writer import Store
from tracer.process.privileges import User, files_as, hand_over
from tracer.results.json_form import as_json, violation_json
from tracer.results.snapshot import Snapshot

log = logging.getLogger("rmapd")

_RUN_SECONDS = 60.0  # how often the run's report is written


def open_store(
    config: Config, kernel: str, who: User | None = None, **earlier: Any
) -> Store | None:
    """The store that the configuration names, opened as the user that the daemon becomes. The default one may be out of reach, one
    that was asked for may not; and one that was root's is handed over. earlier: of a run that goes on (run, counted and rest of Store)."""
    path = Path(config.store)
    if not config.store:
        log.info("no store: what is found is in the log only")
        return None
    if config.store != STORE:
        return _opened(config, kernel, who, earlier)
    try:
        path.parent.mkdir(mode=0o700, exist_ok=True)
        hand_over(path.parent, path.name, who)
        return _opened(config, kernel, who, earlier)
    except (OSError, RmapdError) as error:
        said = error.in_a_line if isinstance(error, RmapdError) else error
        log.warning(
            "no store: %s; what is found is in the log only. --store FILE for another place", said
        )
        return None


def _opened(config: Config, kernel: str, who: User | None, earlier: Mapping[str, Any]) -> Store:
    try:
        with files_as(who):
            return Store(
                Path(config.store),
                kernel,
                config.store_bytes,
                config.store_days,
                must=True,
                **earlier,
            )
    except Foreign:
        raise
    except RmapdError as error:
        why = f"{error.why}, to the user {who.name} that rmapd becomes" if who else error.why
        raise RmapdError(error.what, why=why, hint=error.hint) from error


class Sinks:
    """The store, the log and the collector of one run."""

    def __init__(self, store: Store | None, journal: FindingLog, collector: Sender) -> None:
        self._store, self._journal, self._collector = store, journal, collector
        self._next_run = 0.0

    @property
    def run(self) -> str:
        """The run's name in the store."""
        return self._store.run if self._store else ""

    @property
    def stored(self) -> bool:
        """Whether all that it was given is in the store."""
        return self._store is not None and not self._store.state.unwritten

    def keep(self, tally: Tally) -> None:
        """What was counted in this tick: little enough to lose nothing by a kill, and nothing to do where nothing is new."""
        if self._store:
            self._store.keep(tally.violations.values(), tally.rest)

    def react(
        self,
        tally: Tally,
        new: Iterable[Finding],
        snapshot: Snapshot,
        *,
        ended: bool = False,
        early: str = "",
    ) -> Snapshot:
        """Store, then log; the snapshot with the state of the store. early: why the run did not end as it should."""
        self.keep(tally)
        if self._store and (ended or time.monotonic() >= self._next_run):
            self._next_run = time.monotonic() + _RUN_SECONDS
            report = as_json(snapshot, ["rmapd", "run"], 0) | (
                {"ended_early": {"reason": early}} if early else {}
            )
            self._store.keep_run(report, ended=ended)
        found = [tally.violations[finding.signature] for finding in new]
        self._journal.new(found)
        for violation in found:
            self._collector.offer(violation_json(violation))
        self._journal.repeats(tally.violations.values(), now=ended)
        return replace(
            snapshot,
            store=self._store.state if self._store else None,
            otlp=self._collector.counts(),
        )

    def close(self) -> None:
        if self._store:
            self._store.close()
