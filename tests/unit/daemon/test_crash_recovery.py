"""What a dead checker left is reported, whatever becomes of the store."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tests.support.snapshots import FINDING, snapshot
from tracer.config import Config
from tracer.daemon import crash_recovery
from tracer.invariants.verdict import Tally


@pytest.mark.parametrize("folder", [True, False])
def test_finding_is_logged_where_the_store_cannot_be_opened(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    folder: bool,
) -> None:
    tally = Tally()
    tally.record(FINDING, 1_700_000_000.0)
    checker = SimpleNamespace(tally=tally, take_new_findings=lambda: [FINDING])

    @contextlib.contextmanager
    def reopened(*_: object) -> Iterator[Any]:
        yield SimpleNamespace(checker=checker, stop=lambda: None)

    monkeypatch.setattr(crash_recovery, "reopen_session", reopened)
    monkeypatch.setattr(crash_recovery, "build_snapshot", lambda _: snapshot(gate_open=False))
    state = SimpleNamespace(run="x" * 16, stored={}, rest=[])
    remains = SimpleNamespace(log=SimpleNamespace(state=state))
    monkeypatch.setattr(crash_recovery, "find_remains", lambda _: remains)
    path = tmp_path / "store" / "rmapd.db"
    if folder:
        path.parent.mkdir()
    with caplog.at_level(logging.INFO):
        code = crash_recovery.store_after_death(Config(store=str(path)), cast(Any, None), "why")
    assert code == 0
    assert path.exists() == folder
    assert ("goes to the log only: cannot write the store" in caplog.text) != folder
    assert FINDING.summary in caplog.text
