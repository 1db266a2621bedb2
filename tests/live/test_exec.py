"""`rmapd exec` on this kernel; its command migrates pages while processes fork, map and exit."""

from __future__ import annotations

import json
from pathlib import Path

from junitparser import JUnitXml
from tap.parser import Parser

from tests.live.conftest import WORKLOAD, rmapd, run_exec
from tests.support.daemons import remaining
from tracer.invariants.catalogue import discover


def test_twenty_thousand_migrations_hold(tmp_path: Path) -> None:
    cleared = 0
    for _ in range(10):
        done, report = run_exec(tmp_path, "--require", "M1,M4,L2", command=[*WORKLOAD, "60000"])
        assert done.returncode == 0, done.stdout + done.stderr
        m1, m4 = report["invariants"]["M1"]["checks"], report["invariants"]["M4"]["checks"]
        assert m1["holds"] >= 20000
        assert (m1["violated"], m1["suspect"], m1["unverifiable"]) == (0, 0, 0), report
        assert (m4["violated"], m4["suspect"], m4["unverifiable"]) == (0, 0, 0)
        assert set(report["lost"].values()) == {0}
        assert report["violations"] == []
        ledger = report["migration"]
        assert ledger["entries_recorded"] + ledger["entries_copied"] == ledger[
            "entries_removed"
        ] + report["oracle"].get("cleared", 0)
        assert m1["holds"] == ledger["entries_recorded"] + ledger["entries_copied"]
        cleared += report["oracle"].get("cleared", 0)
        if cleared:
            break
    assert cleared > 0, "no entry was zapped during a migration: the oracle had nothing to clear"
    assert not remaining()


def test_tiny_maps_make_checks_unverifiable_and_none_violated(tmp_path: Path) -> None:
    config = tmp_path / "tiny.toml"
    config.write_text(
        "[maps]\nledger_rows = 8\nmigration_rows = 1\nmm_rows = 2\norder_rows = 2\nring_pages = 1\n"
    )
    done, report = run_exec(tmp_path, "--config", str(config), command=[*WORKLOAD, "100000"])
    assert done.returncode == 0, done.stdout + done.stderr
    checks = report["invariants"]["M1"]["checks"]
    assert checks["unverifiable"] > 0
    assert report["lost"]["ledger"] > 0
    assert all(i["checks"]["violated"] == 0 for i in report["invariants"].values())
    assert checks["suspect"] == 0


def test_exec_returns_the_commands_exit_code_in_every_format() -> None:
    done = rmapd("exec", "--format", "json", "--", "sh", "-c", "exit 7")
    assert done.returncode == 7
    assert json.loads(done.stdout)["command"] == {
        "argv": ["sh", "-c", "exit 7"],
        "exit_code": 7,
        "exit_status": 7,
        "signal": None,
        "ended": "it exited",
    }
    assert json.loads(done.stdout)["exit"] == {
        "code": 7,
        "reason": "the command's own",
        "source": "command",
    }
    done = rmapd("exec", "--format", "ktap", "--", "true")
    assert done.stdout.startswith("KTAP version 1\n")
    done = rmapd("exec", "--", "sh", "-c", "kill -9 $$")
    assert done.returncode == 137


def test_required_invariant_without_coverage_is_exit_4() -> None:
    done = rmapd("exec", "--require", "M1,L5", "--", "true")
    assert done.returncode == 4
    assert "L5 is required and cannot be checked here" in done.stderr


def test_lower_fidelity_attaches_fewer_hooks(tmp_path: Path) -> None:
    done, report = run_exec(tmp_path, "--fidelity", "migration", command=["true"])
    assert done.returncode == 0
    assert "mmap_lock_released" not in report["hooks"]
    assert report["invariants"]["L2"]["coverage"] == "none"
    assert "forks are not seen" in report["invariants"]["M1"]["reason"]


def test_ktap_junit_and_json_reports_agree(tmp_path: Path) -> None:
    junit, report = tmp_path / "r.xml", tmp_path / "r.json"
    done = rmapd(
        "exec",
        "--format",
        "ktap",
        "--junit",
        str(junit),
        "--report",
        str(report),
        "--",
        *WORKLOAD,
        "20000",
    )
    assert done.returncode == 0, done.stderr
    tests = [line for line in Parser().parse_text(done.stdout) if line.category == "test"]
    (suite,) = JUnitXml.fromfile(str(junit))
    assert len(tests) == len(list(suite)) == len(discover())
    decided = {test.description.partition(":")[0] for test in tests if not test.skip}
    assert decided >= {"M1", "M4"}
    assert decided == {case.name.partition(":")[0] for case in suite if not case.result}
    found = json.loads(report.read_text())
    entries = next(one for one in found["histograms"] if one["name"] == "migration_entry_seconds")
    assert entries["count"] >= 5000
    assert found["timeline"]["totals"]["holds"][-1] == sum(
        one["checks"]["holds"] for one in found["invariants"].values()
    )
    assert (
        rmapd("report", "--from", str(report), "--output", str(tmp_path / "r.html")).returncode == 0
    )


def test_unwritable_output_is_rejected_before_the_command_runs(
    tmp_path: Path,
) -> None:
    for option in ("--report", "--junit"):
        done = rmapd("exec", option, str(tmp_path / "none/r"), "--", "touch", str(tmp_path / "ran"))
        assert done.returncode == 2
        assert "cannot write" in done.stderr
    assert not (tmp_path / "ran").exists()


def test_full_disk_loses_the_report_and_not_the_results(tmp_path: Path) -> None:
    done = rmapd("exec", "--report", "/dev/full", "--", "true")
    assert done.returncode == 125, "as timeout(1): rmapd failed, and not the command"
    assert "M1" in done.stdout
    assert "cannot write the report /dev/full: No space left on device" in done.stderr
    assert Path("/dev/full").is_char_device()
