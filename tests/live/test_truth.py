"""A violating window is logged and counted at once, not at the next tick.

The window is made up; the tables are real.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from queue import Queue
from threading import Thread
from typing import Any

from tests.live.conftest import daemon
from tests.support.daemons import RMAPD, sample, until
from tests.support.rehearsal import WindowRecorder, make
from tests.support.violations import ENCODING, VIOLATING, variant
from tracer.protocol.text import text

ROUNDS = 3


def read_lines(stream: Iterable[str], lines: Queue[dict[str, Any]]) -> None:
    for line in stream:
        lines.put(json.loads(line))


def test_violation_is_logged_before_the_next_tick(tmp_path: Path) -> None:
    """With ticks alone, one a second, half of the violations would wait longer than 0.5 s."""
    altered = [sys.executable, "-m", "tests.support.altered", str(make(tmp_path / "probes")), "{}"]
    logged, shown = [], []
    with (
        daemon(command=altered) as (process, url),
        contextlib.closing(WindowRecorder.find()) as recorder,
    ):
        assert process.stdout
        lines: Queue[dict[str, Any]] = Queue()
        Thread(target=read_lines, args=(process.stdout, lines), daemon=True).start()
        time.sleep(2)
        for number in range(ROUNDS):
            for invariant, line in VIOLATING.items():
                metric, key = (
                    f'rmapd_violations_total{{invariant="{invariant}"}}',
                    variant(line, number),
                )
                before, start = sample(url, metric), time.monotonic()
                recorder.record(key)
                row = lines.get(timeout=20)
                while row["invariant"] != invariant or row["protocol"] != text(
                    ENCODING.decode(key)
                ):
                    row = lines.get(timeout=20)
                logged.append(time.monotonic() - start)
                assert (row["verdict"], row["count"]) == ("violated", 1)
                assert row["trail"][-1]["protocol"] == row["protocol"], (
                    "the trail ends with the violating window"
                )
                while sample(url, metric) != before + 1:
                    assert time.monotonic() - start < 20
                shown.append(time.monotonic() - start)
        again, before = (
            variant(VIOLATING["L3"], 0),
            sample(url, 'rmapd_violations_total{invariant="L3"}'),
        )
        for _ in range(100):
            recorder.record(again)
        until(
            lambda: sample(url, 'rmapd_violations_total{invariant="L3"}') == before + 100,
            20,
            "all are counted",
        )
        assert lines.empty(), "a known signature causes no new line"
    for milliseconds in (logged, shown):
        assert sorted(milliseconds)[len(milliseconds) * 3 // 4] < 0.4, milliseconds


def test_second_start_needs_no_compiler(tmp_path: Path) -> None:
    (tmp_path / "bcc.py").write_text("raise ImportError('No module named bcc')\n")
    environment = os.environ | {"RMAPD_CACHE": str(tmp_path / "cache")}
    command = [RMAPD, "exec", "--format", "json", "--", "true"]
    first = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    broken = environment | {"PYTHONPATH": str(tmp_path)}
    second = subprocess.run(command, capture_output=True, text=True, check=True, env=broken)
    hooks = [
        {name: hook["state"] for name, hook in json.loads(done.stdout)["hooks"].items()}
        for done in (first, second)
    ]
    assert hooks[0] == hooks[1]
    for entry in (tmp_path / "cache").iterdir():
        entry.chmod(0o666)
    third = subprocess.run(command, capture_output=True, text=True, check=False, env=broken)
    assert third.returncode == 2
    assert "cannot import bcc" in third.stderr
