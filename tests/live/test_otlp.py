"""A finding of a daemon that has dropped its privileges arrives at a collector.

The test injects the finding; everything after it is real.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.live.conftest import ROOT
from tests.support.collector import collector

DAEMON = """
import sys
from tracer.packed import pack
from tracer.cli import main
from tracer.checking.checker import Checker
from tracer.invariants.verdict import Finding, Verdict
step = {
    "time_ns": 5,
    "function": "vma_shrink",
    "task": {"pid": 7, "tgid": 7},
    "vma": {},
    "protocol": "vma_shrink[file]",
    "stack": [],
}
shape, summary = "injected by a test", "takes anon_vma first"
finding = Finding(
    "L1", Verdict.VIOLATED, "vma_expand", shape, summary, {"pid": 7}, trail=pack((step,))
)
real = Checker.tick
def tick(checker):
    real(checker)
    if finding.signature not in checker.tally.violations:
        checker.verdicts.record_finding(finding)
Checker.tick = tick
main(sys.argv[1:])
"""


def test_finding_of_unprivileged_daemon_arrives_at_collector(tmp_path: Path) -> None:
    with collector() as receiver:
        config = tmp_path / "rmapd.toml"
        config.write_text(f'otlp_endpoint = "{receiver.url}"\nlisten = "127.0.0.1:0"\nstore = ""\n')
        command = [sys.executable, "-c", DAEMON, "run", "--config", str(config), "--duration", "4"]
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )
    assert done.returncode == 0, done.stderr
    assert "privileges dropped" in done.stderr
    (line,) = (json.loads(line) for line in done.stdout.splitlines())
    (one,) = receiver.received
    sent = one["attributes"]
    assert (sent["rmapd.id"], sent["rmapd.invariant"], sent["rmapd.verdict"]) == (
        line["id"],
        "L1",
        "violated",
    )
    assert json.loads(sent["rmapd.trail"]) == line["trail"] != []
    assert one["resource"]["os.version"] == os.uname().release
