"""A host without a compiler starts from what `rmapd compile` made, and attaches the same."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

from tests.support.daemons import RMAPD
from tracer import __version__

EXEC = [RMAPD, "exec", "--daemon", "never", "--format", "json", "--", "true"]


def hooks(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr
    return {
        name: (one["state"], one["how"]) for name, one in json.loads(done.stdout)["hooks"].items()
    }


def run(command: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def test_host_without_compiler_starts_from_objects(tmp_path: Path) -> None:
    """The types come as a file, as from another host; bcc cannot be imported at the start."""
    shutil.copy("/sys/kernel/btf/vmlinux", tmp_path / "vmlinux.btf")
    made = subprocess.run(
        [RMAPD, "compile", "--btf", "vmlinux.btf", "--out", "objects"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "for vmlinux.btf, " in made.stdout
    compiled = run(EXEC, os.environ | {"RMAPD_CACHE": ""})

    (tmp_path / "python").mkdir()
    (tmp_path / "python/bcc.py").write_text("raise ImportError('No module named bcc')\n")
    without = os.environ | {
        "PYTHONPATH": str(tmp_path / "python"),
        "RMAPD_CACHE": str(tmp_path / "objects"),
    }
    assert hooks(run(EXEC, without)) == hooks(compiled)
    said = run([RMAPD, "doctor", "--format", "json"], without)
    assert said.returncode == 0, said.stderr
    found = json.loads(said.stdout)
    assert f"rmapd compile {__version__} for vmlinux.btf" in found["capabilities"]["programs"]
    assert found["installation"]["bcc"]["state"] == "note"
    audit = run([RMAPD, "audit", "--format", "json"], without)
    assert audit.returncode == 0, audit.stderr

    other = without | {"RMAPD_MAPS_LEDGER_ROWS": "1024"}
    refused = run(EXEC, other)
    assert refused.returncode == 2
    assert "cannot import bcc" in refused.stderr
    assert (
        "made with other [maps] in the configuration: ledger_rows 65536 -> 1024" in refused.stderr
    )
    assert "rmapd compile --btf FILE" in refused.stderr
