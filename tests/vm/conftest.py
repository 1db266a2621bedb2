"""The fault module, built once for the tests that load it."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.vm.guest import ROOT, image


@pytest.fixture(scope="session")
def module(tmp_path_factory: pytest.TempPathFactory) -> Path:
    release = image("6.1").name.removeprefix("vmlinuz-")
    headers = Path("/usr/src") / f"linux-headers-{release}"
    if not headers.exists() and os.environ.get("RMAPD_REQUIRE_KERNEL") != "1":
        pytest.skip(f"no {headers}: make vm-setup")
    folder = tmp_path_factory.mktemp("faults")
    shutil.copytree(ROOT / "tests/faults", folder, dirs_exist_ok=True)
    done = subprocess.run(["make", "-s", "-C", str(headers), f"M={folder}", "modules"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "rmapd_faults.ko"
