"""The package and its unit under systemd on Debian: start, reload, watchdog, stop and removal.

`make test-systemd` runs this on this machine's kernel in namespaces (container.py), then on
Debian's own kernel in a guest with its own disk (debian.py). There, unlike in virtme-ng's guests,
/dev, /sys and /proc are as on an installed machine.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.vm import container, debian
from tests.vm.guest import ROOT, Result
from tracer.invariants.catalogue import discover

FULL = list(discover())
ATTACHING = sum(1 << cap for cap in (2, 21, 34, 38, 39))
"""CAP_DAC_READ_SEARCH, SYS_ADMIN, SYSLOG, PERFMON and BPF: the bounding set of the unit."""


@pytest.fixture(scope="module")
def files() -> list[Path]:
    """Return the files for the machine: the package (RMAPD_DEB, or built now) and the scripts."""
    missing = [
        tool for tool in ("qemu-system-x86_64", "mmdebstrap", "dh") if not shutil.which(tool)
    ]
    if missing and os.environ.get("RMAPD_REQUIRE_KERNEL") != "1":
        pytest.skip(f"no {', '.join(missing)}")
    if "RMAPD_DEB" not in os.environ:
        subprocess.run(["make", "--no-print-directory", "deb"], check=True, cwd=ROOT)
    (package,) = (
        [Path(os.environ["RMAPD_DEB"])]
        if "RMAPD_DEB" in os.environ
        else (ROOT / "build/deb").glob("*.deb")
    )
    return [
        package,
        *(
            ROOT / "tests" / name
            for name in ("vm/systemd.py", "vm/needs.py", "workloads/migrate.py")
        ),
    ]


def facts(result: Result) -> dict[str, Any]:
    print(result.output)
    assert result.code == 0, result.output
    found: dict[str, Any] = json.loads((result.folder / "facts.json").read_text())
    return found


def lived(found: dict[str, Any]) -> None:
    """Check the facts of a unit from installation to removal."""
    assert found["install"] == 0
    started(found)
    attached = {
        what: enough for what, enough in found["needs"].items() if what.startswith("attached: ")
    }
    assert len(attached) >= 10
    assert set(map(tuple, attached.values())) == {("none",)}
    reloaded = found["reload"]
    assert reloaded["good"] == 0
    assert "scan_seconds 60.0 -> 30.0; a restart is needed for require" in reloaded["taken"]
    assert reloaded["bad"] != 0
    assert "scan_seconds" in reloaded["refused"], "the nearest key is named"
    assert (reloaded["same"], reloaded["state"], reloaded["ready"]) == (True, "active", 200)
    limit = found["watchdog"]["limit"]
    assert limit - 5 < found["watchdog"]["killed"] < limit + 100
    assert (found["watchdog"]["restarts"], found["watchdog"]["ready"]) == ("1", 200)
    assert "found after a crash: systemd kept it for this start" in found["watchdog"]["found"]
    stopped = found["stop"]
    assert stopped["kept"][0] > 30, (
        "maps and programs for the next start: 44 with tracepoints alone, 136 with all hooks"
    )
    assert stopped["kept"][1] == 0, "none after a clean stop"
    assert (
        stopped["code"],
        stopped["ActiveState"],
        stopped["Result"],
        stopped["ExecMainStatus"],
    ) == (0, "inactive", "success", "0")
    assert stopped["left"] == []
    assert found["security"] <= 2.5, "0.5 of it for /dev/kmsg, which K1 reads"
    assert found["older"] == {"/var/lib/rmapd": "root 700", "/var/lib/rmapd/rmapd.db": "root 600"}
    assert {"rmapd.1.gz", "rmapd-run.1.gz", "rmapd-compile.1.gz"} <= set(found["pages"])
    assert len(found["completions"]) == 3
    assert (found["caches"], found["compiled"] > 100) == ([], True), "compiled when installed"
    assert found["upgrade"].pop("version").endswith("+next")
    assert found["upgrade"] == {"code": 0, "restarted": True, "state": "active", "ready": 200}
    missing = found["without_bcc"]
    assert (missing["compiled"], missing["removed"], missing["started"]) == (0, 0, 0)
    assert (missing["bcc"], missing["same"]) == ("note", True)
    assert "rmapd compile" in missing["programs"]
    assert (found["enable"], found["remove"]) == (0, 0)
    assert found["removed"] == {"left": [], "unit": False, "configuration": True}


def started(found: dict[str, Any]) -> None:
    assert found["start"]["code"] == 0
    assert not [
        state for state in found["start"]["seen"] if state[0] == "active" and state[1] != 200
    ], "READY=1 is sent only when the gate is open"
    assert "activating" in {state for state, _ in found["start"]["seen"]}
    assert found["start"]["ready"] == 200
    before, after = found["rights"]["attaching"], found["rights"]["judging"]
    assert (
        int(before["CapPrm"], 16)
        == int(before["CapBnd"], 16)
        == int(before["CapAmb"], 16)
        == ATTACHING
    )
    assert {int(after[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == {0}
    assert int(after["CapBnd"], 16) == ATTACHING, (
        "only CAP_SETPCAP could empty it; with no_new_privs it grants nothing"
    )
    for one in [after, *found["helpers"]]:
        assert len(set(one["Uid"].split())) == len(set(one["Gid"].split())) == 1
        assert "0" not in (one["Uid"].split()[0], one["Gid"].split()[0])
        assert one["Groups"].split() in ([], one["Gid"].split()[:1])
    assert len(found["ids"]) == 1, "all threads and the reattach helper have the same ids"
    assert found["owners"] == {
        "/var/lib/rmapd": "rmapd 700",
        "/var/lib/rmapd/rmapd.db": "rmapd 600",
        "/run/rmapd": "rmapd 700",
        "/run/rmapd/rmapd.lock": "rmapd 600",
        "/run/rmapd/rmapd.lock.exec": "rmapd 700",
        "/run/rmapd/rmapd.lock.exec/socket": "rmapd 600",
        "/var/cache/rmapd": "root 755",
    }
    assert found["cached"] == ["root"], "an attached daemon cannot change what the next one loads"
    code, output = found["exec"]
    assert code == 0, output
    assert output.startswith("rmapd: exec uses the daemon that runs (pid ")
    assert "by the daemon with pid " in output
    code, output = found["alone"]
    assert code == 125
    assert "another rmapd is tracing this kernel" in output
    code, output = found["as_the_user"]
    assert "only root may use the daemon" in output
    for helper in found["helpers"]:
        assert int(helper["CapPrm"], 16) & ~(1 << 38 | 1 << 39 | 1 << 21) == 0
    assert (after["NoNewPrivs"], after["Seccomp"], int(after["Seccomp_filters"])) == (
        "1",
        "2",
        int(before["Seccomp_filters"]) + 1,
    )
    assert {int(mask, 16) for mask in found["threads"]} == {0}
    doctor = found["doctor"]["invariants"]
    levels = {"full": 1.0, "partial": 0.5, "none": 0.0}
    outside = {
        f'rmapd_invariant_coverage{{invariant="{name}"}}': levels[one["coverage"]]
        for name, one in doctor.items()
    }
    assert found["coverage"] == outside, "the sandbox costs no coverage"
    assert found["judged"]['rmapd_checks_total{invariant="M1",verdict="holds"}'] > 2000
    assert found["judged"]['rmapd_probe_runs_total{hook="set_migration_pte"}'] > 2000
    assert found["judged"]["rmapd_oracle_ready"] == 1
    assert not any(
        value for name, value in found["judged"].items() if "violat" in name or "suspect" in name
    )


def test_unit_works_on_the_running_kernel(files: list[Path]) -> None:
    found = facts(container.run("python3 systemd.py", files, label="systemd"))
    lived(found)
    assert found["watchdog"]["limit"] == 30, "the limit of the unit"


def test_unit_works_on_the_kernel_of_debian(files: list[Path]) -> None:
    found = facts(debian.run("python3 systemd.py", files, label="systemd"))
    lived(found)
    assert {
        name for name, one in found["doctor"]["invariants"].items() if one["coverage"] == "full"
    } >= set(FULL) - {"V6"}, "6.1 has no vma_modify()"
    assert "tracing" in found["kinds"], "fentry"
    assert found["running"] > 50


def test_kprobes_attach_in_the_sandbox_of_the_unit(files: list[Path]) -> None:
    """rmapd prefers kprobes on a kernel that preempts (docs/KERNELS.md)."""
    found = facts(
        debian.run("python3 systemd.py install kprobes start judge stop", files, label="kprobes")
    )
    started(found)
    assert "kprobe" in found["kinds"]
    assert found["stop"]["left"] == []
