"""The log of findings under a real journald, which runs in a mount namespace of its own."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

JOURNALD = Path("/lib/systemd/systemd-journald")
SCRIPT = """
mount -t tmpfs none /run && mount -t tmpfs none /var/log
mkdir -p /run/systemd/journal /run/log/journal
{journald} & J=$!
for _ in $(seq 100); do [ -S /run/systemd/journal/stdout ] && break; sleep 0.1; done
systemd-cat {python} {program}
read_back() {{ journalctl --directory=/run/log/journal RMAPD_INVARIANT=L1 "$@"; }}
for _ in $(seq 50); do read_back -q | grep -q . && break; sleep 0.1; done
read_back -o json --all --no-pager > {out}
kill $J; wait $J
"""
PROGRAM = """
import os
import time
# as systemd does for a service
os.environ["JOURNAL_STREAM"] = "{0.st_dev}:{0.st_ino}".format(os.fstat(1))
from tracer.outputs.log import FindingLog
from tracer.invariants.verdict import Finding, Verdict, Violation
evidence = {"long": "x" * 100_000}
finding = Finding(
    "L1", Verdict.VIOLATED, "vma_expand", "shape", "one line", {}, ("f+0x1",), evidence
)
FindingLog(time.time).new([Violation(finding, 1.0, 2.0, 3)])
"""


@pytest.mark.skipif(
    not JOURNALD.exists() or not shutil.which("systemd-cat"), reason="no systemd here"
)
def test_finding_is_one_searchable_journal_entry(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    script = SCRIPT.format(
        journald=JOURNALD, python=sys.executable, program=program, out=tmp_path / "out"
    )
    done = subprocess.run(
        ["unshare", "-m", "bash", "-c", script],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    (line,) = (tmp_path / "out").read_text().splitlines() or [done.stderr]
    entry = json.loads(line)
    assert (
        entry["RMAPD_VERDICT"],
        entry["RMAPD_FUNCTION"],
        entry["RMAPD_COUNT"],
        entry["_TRANSPORT"],
    ) == (
        "violated",
        "vma_expand",
        "3",
        "journal",
    )
    assert json.loads(entry["MESSAGE"])["id"] == entry["RMAPD_ID"], (
        "one whole entry, where a long line on stdout would be split"
    )
